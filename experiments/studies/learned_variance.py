"""What a learned variance of the reverse step is worth: DDPM with the variance that the network
says, and with the two fixed ones, on the same network and on one that was trained without.

  python -m experiments.studies.learned_variance --workdir=runs/learned_variance

Both networks have the same seed, size and number of updates. Frechet distances of the three
variances are paired by noise; the likelihood is that of held-out images.
"""

import dataclasses
import os

from experiments.lib import cells as cells_lib
from experiments.lib import common, paired
from gmm_diffusion import tasks
from gmm_diffusion.data import sources
from gmm_diffusion.engine import build, drawing
from gmm_diffusion.tasks.diffusion import bound

VARIANCES = ('small', 'large', 'learned')


def rows_of(args, learned: bool) -> list[dict]:
  """Rows of one network: for each number of steps and variance the Frechet distances of all seeds,
  and the difference to the first variance."""
  name = 'learned' if learned else 'fixed'
  workdir = os.path.join(args.workdir, name)
  spec = common.spec_of(args.config, [f'net.learn_sigma={learned}', *args.set])
  tasks.run('train', workdir, dataclasses.asdict(spec), common.program())  # goes on, or is over
  subject = common.load_subject(spec, workdir, args.count)
  cells, rows = cells_lib.Cells(subject, workdir, args.count), []
  kinds = VARIANCES[: 2 + learned]
  samplers = {
    (steps, kind): dataclasses.replace(
      spec.sampler, name='ddpm', variance=kind, steps=steps, grid=args.grid
    )
    for steps in args.steps
    for kind in kinds
  }
  cells.fill(((one, seed) for one in samplers.values() for seed in args.seeds), name)
  for steps in args.steps:
    values = {
      kind: [cells.value(samplers[steps, kind], seed) for seed in args.seeds] for kind in kinds
    }
    for kind, own in values.items():
      row = {'network': name, 'steps': steps, 'variance': kind, 'values': own}
      if kind != kinds[0]:
        row['minus_small'] = paired.difference(own, values[kinds[0]])._asdict()
      rows.append(row)
  return rows


def bits(args) -> dict:
  """The bound on held-out images."""
  spec = common.spec_of(args.config, ['net.learn_sigma=True', *args.set])
  data = sources.load(spec.data)
  weights = build.weights(spec, data, os.path.join(args.workdir, 'learned'))
  found = bound.find(drawing.Model(spec, data, weights))
  return {name: value.record() for name, value in found.items()}


def table(rows: list[dict]) -> str:
  """The rows for people."""
  lines = [
    '| network | steps | variance | Frechet distance | minus small |',
    '|---|---|---|---|---|',
  ]
  for row in rows:
    mean = sum(row['values']) / len(row['values'])
    away = row.get('minus_small')
    words = str(paired.Difference(**away)) if away else ''
    cells = row['network'], str(row['steps']), row['variance'], f'{mean:.4f}', words
    lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines)


def main():
  parser = common.parser(__doc__, 'runs/learned_variance')
  common.model_arguments(parser, 'digits')
  parser.add_argument('--steps', type=int, nargs='+', default=[5, 10, 25, 50])
  parser.add_argument('--grid', default='trailing')
  parser.add_argument('--count', type=int, default=1000, help='samples of a seed')
  parser.add_argument('--seeds', type=int, nargs='+', default=list(range(100, 108)))
  args = parser.parse_args()
  rows = rows_of(args, True) + rows_of(args, False)
  found = bits(args)
  print(table(rows), found, sep='\n')
  settings = {name: getattr(args, name) for name in ('steps', 'grid', 'count', 'seeds')}
  common.save(args.workdir, 'learned_variance', {**settings, 'bits': found, 'rows': rows})


if __name__ == '__main__':
  main()
