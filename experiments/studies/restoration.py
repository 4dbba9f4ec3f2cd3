"""Networks that were trained to restore, beside an unconditional network that is guided by the
measurement and was never told of it: the same measurements of the same test images.

  python -m experiments.studies.restoration --workdir=runs/restoration --start=runs/digits

runs/digits is a trained network of configs/digits.py. Networks are trained once for each problem,
in folders of the workdir.
"""

import dataclasses
import os

import numpy as np
from tqdm import tqdm

from experiments.lib import common
from experiments.studies import inverse_problems
from gmm_diffusion import files, tasks
from gmm_diffusion.data import sources
from gmm_diffusion.engine import build, drawing, measuring
from gmm_diffusion.engine.runs import Run
from gmm_diffusion.metrics.estimates import Estimate
from gmm_diffusion.tasks.restoration import evaluate

METHODS = ('exact', 'dps', 'pigdm', 'stsl')  # of denoisers.inverse, and the training images


def problem_settings(args, problem: str) -> list[str]:
  """Changes to a config that describe a problem."""
  of_problem = inverse_problems.PROBLEMS[problem].items()
  return [
    *(f'inverse.{key}={value}' for key, value in of_problem),
    f'inverse.noise={args.noise}',
    f'inverse.draws={args.draws}',
    f'evaluate.count={args.count}',
    f'evaluate.cache={args.workdir}',
  ]


def trained(args, problem: str) -> list[dict]:
  """Rows of the networks that were trained for a problem."""
  workdir = os.path.join(args.workdir, problem.replace(' ', '_').replace(',', ''))
  changes = [*problem_settings(args, problem), "evaluate.samplers=('ddim',)"]
  spec = common.spec_of(
    args.config, [*changes, 'sampler.eta=0.0', f'restoration.steps={tuple(args.steps)}', *args.set]
  )
  tasks.run('all', workdir, dataclasses.asdict(spec), common.program())
  rows = []
  for record in files.read_json(os.path.join(workdir, 'results.json'), []):
    own = {
      key: record[key]
      for key in ('metric', 'value', 'interval', 'minus_regression')
      if key in record
    }
    rows.append({'problem': problem, 'method': record['sampler'], 'calls': record['nfe'], **own})
  return rows


def guided(args, problem: str) -> list[dict]:
  """Rows of the unconditional network under each method, and of the training images exactly."""
  sampler = ['sampler.name=ddim', 'sampler.eta=1.0', f'sampler.steps={args.guided_steps}']
  settings = [*problem_settings(args, problem), *sampler]
  spec = common.spec_of(args.unconditional, settings)
  data, rows = sources.load(spec.data), []
  weights = build.weights(spec, data, args.start)
  bench = evaluate.bench_of(Run(spec, data, args.workdir, ''), args.count)
  ids = np.arange(args.count * args.draws)
  true = measuring.originals(spec, data, ids[:: args.draws])
  for method in METHODS:
    one = dataclasses.replace(spec, inverse=dataclasses.replace(spec.inverse, method=method))
    arrays = weights
    if method == 'exact':
      one = dataclasses.replace(one, denoiser=dataclasses.replace(one.denoiser, name='empirical'))
      arrays = build.weights(one, data, args.start)
    made = drawing.prepare(one, one.sampler, data)
    x = drawing.Model(one, data, arrays).sample(made, len(ids)).x
    values = evaluate.values_of(x.reshape(args.count, args.draws, *data.shape), true, bench)
    name = 'training images, exact' if method == 'exact' else f'guided, {method}'
    for metric, value in values.items():
      row = {'problem': problem, 'method': name, 'calls': args.guided_steps, 'metric': metric}
      rows.append({**row, **value.record()})
  return rows


def table(rows: list[dict]) -> str:
  """Methods as rows, metrics as columns."""
  metrics = list(dict.fromkeys(row['metric'] for row in rows))
  cells: dict[tuple[str, int], dict[str, str]] = {}
  for row in rows:
    text = str(Estimate(row['value'], *row['interval']))
    cells.setdefault((row['method'], row['calls']), {})[row['metric']] = text
  lines = ['| | calls | ' + ' | '.join(metrics) + ' |', '|---|---:|' + '---:|' * len(metrics)]
  for (method, calls), found in cells.items():
    lines.append(f'| {method} | {calls} | ' + ' | '.join(found.get(m, '') for m in metrics) + ' |')
  return '\n'.join(lines)


def main():
  parser = common.parser(__doc__, 'runs/restoration')
  common.model_arguments(parser, 'restore')
  parser.add_argument('--start', default='runs/digits', help='workdir of the unconditional network')
  parser.add_argument('--unconditional', default='digits', help='its config')
  problems = list(inverse_problems.PROBLEMS)
  parser.add_argument('--problems', nargs='*', default=problems, choices=problems)
  parser.add_argument('--count', type=int, default=64, help='test images')
  parser.add_argument('--draws', type=int, default=4, help='of each image')
  parser.add_argument('--noise', type=float, default=0.2, help='of the measurements')
  parser.add_argument('--steps', type=int, nargs='*', default=[1, 10], help='of trained networks')
  parser.add_argument('--guided-steps', type=int, default=50, help='of DDIM with eta 1')
  args = parser.parse_args()
  rows = []
  for problem in tqdm(args.problems, desc='restoration', unit='problem'):
    mine = trained(args, problem) + guided(args, problem)
    rows += mine
    print(f'\n{problem}\n{table(mine)}', flush=True)
  settings = {name: getattr(args, name) for name in ('count', 'draws', 'noise', 'guided_steps')}
  common.save(args.workdir, 'restoration_methods', {**settings, 'rows': rows})


if __name__ == '__main__':
  main()
