"""What a mixture kernel costs, what its parameters do, and whether its shape helps: paired tests on
a model of one's own.

  cost        plan, compilation and time of a step against DDIM, K = 1..1024
  components  K and the priors
  scale       the scale, for the mixture and for isotropic noise of the same energy (the control)
  shape       mixture against control and DDIM over eta and steps, best scale
  interval    offsets in a part of the trajectory only (sampler.scale_interval)

Each comparison is of Frechet distances from the same noise, over several seeds; its interval is
that of a t test of the differences, p is corrected for all comparisons of the question (Holm).
Scales are chosen on a seed of their own. Two settings: 'trailing' is the usual one, x_0 clipped to
the range of images; 'leading' never reaches the noisiest time and does not clip, where DDIM gives
too little variance, which added noise of any kind might mend.

  python -m gmm_diffusion.main --config=configs/digits.py --mode=train --workdir=runs/digits
  python -m experiments.studies.mixture_questions --config=digits --workdir=runs/digits
"""

import dataclasses
import os
import sys
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmarks import mixture_cost
from experiments.lib import cells as cells_lib
from experiments.lib import common, mixture_plots, paired
from gmm_diffusion import files, samplers
from gmm_diffusion.engine import build
from gmm_diffusion.errors import UserError

COMPONENTS = (1, 2, 4, 8, 64, 1024)
SETTINGS = ('trailing', 'leading')
PARTS = ('everywhere', 'first third', 'middle third', 'last third', 'all but the last step')


class Lab(NamedTuple):
  """What the questions share: settings by name, each (cells, sampler to start from), and the
  arguments."""

  settings: dict[str, tuple[cells_lib.Cells, Any]]
  args: Any


class Comparison(NamedTuple):
  """One line of an answer: where, which difference, and the Frechet distances of all seeds.

  DDIM is 'ddim', the mixture 'mixture', its control 'control'.
  """

  where: dict[str, Any]
  scale: float
  values: dict[str, list[float]]


def lab(args) -> Lab:
  spec = common.spec_of(args.config, args.set)
  subject = common.load_subject(spec, args.workdir, args.count)
  base = spec.sampler
  free = common.with_denoiser(subject, clip=False)
  settings = {
    'trailing': (
      cells_lib.Cells(subject, args.workdir, args.count),
      dataclasses.replace(base, grid='trailing'),
    ),
    'leading': (
      cells_lib.Cells(free, args.workdir, args.count),
      dataclasses.replace(base, grid='leading'),
    ),
  }
  return Lab({name: settings[name] for name in args.settings}, args)


def compare(
  here: Lab, title: str, wanted: list[tuple[dict, str, Any]], choose: bool
) -> list[Comparison]:
  """Draws DDIM, mixture and control for each (where, setting, mixture sampler); chooses scales
  first if asked."""
  args, rows = here.args, []
  if choose:
    for name, (cells, _) in here.settings.items():
      cells.fill(
        (
          (one, cells_lib.CHOOSE)
          for _, setting, mixture in wanted
          if setting == name
          for one in cells_lib.with_scales(mixture, args.scales)
        ),
        f'{title}, {name}: choosing scales',
      )
    wanted = [
      (
        where,
        setting,
        here.settings[setting][0].best(cells_lib.with_scales(mixture, args.scales), 'frechet'),
      )
      for where, setting, mixture in wanted
    ]
  trio = lambda mixture: {
    'ddim': dataclasses.replace(mixture, name='ddim'),
    'mixture': mixture,
    'control': dataclasses.replace(mixture, name=samplers.control_of(mixture.name)),
  }
  for name, (cells, _) in here.settings.items():
    cells.fill(
      (
        (one, seed)
        for _, setting, mixture in wanted
        if setting == name
        for one in trio(mixture).values()
        for seed in args.seeds
      ),
      f'{title}, {name}',
    )
  for where, setting, mixture in wanted:
    cells = here.settings[setting][0]
    rows.append(
      Comparison(
        {'setting': setting, **where},
        mixture.scale,
        {
          label: [cells.value(one, seed) for seed in args.seeds]
          for label, one in trio(mixture).items()
        },
      )
    )
  return rows


def answer(rows: list[Comparison], choose: bool) -> tuple[str, list[dict]]:
  """A Markdown table and records, with p values corrected for all comparisons of the question."""
  pairs = (('mixture', 'ddim'), ('control', 'ddim'), ('mixture', 'control'))
  found = [[paired.difference(row.values[a], row.values[b]) for a, b in pairs] for row in rows]
  p = iter(paired.holm([one.p for line in found for one in line]))
  keys = list(rows[0].where)
  lines = [
    '| '
    + ' | '.join(
      keys
      + (['scale'] if 'scale' not in keys else [])
      + ['DDIM', 'mixture', 'control']
      + [f'{a} - {b}' for a, b in pairs]
    )
    + ' |',
    '|' + '---|' * len(keys) + '---:|' * (6 + ('scale' not in keys)),
  ]
  out = []
  for row, line in zip(rows, found):
    corrected = [next(p) for _ in line]
    means = [f'{np.mean(row.values[name]):.4f}' for name in ('ddim', 'mixture', 'control')]
    shown = [f'{one} (p {q:.2g})' + ('*' if q < 0.05 else '') for one, q in zip(line, corrected)]
    lines.append(
      '| '
      + ' | '.join(
        [str(value) for value in row.where.values()]
        + ([f'{row.scale:g}'] if 'scale' not in keys else [])
        + means
        + shown
      )
      + ' |'
    )
    out.append(
      {
        **row.where,
        'scale': row.scale,
        'scale_chosen': choose,
        'frechet': row.values,
        **{
          f'{a} - {b}': {**one._asdict(), 'p_holm': q}
          for (a, b), one, q in zip(pairs, line, corrected)
        },
      }
    )
  return '\n'.join(lines), out


def components(here: Lab) -> list[Comparison]:
  """K with uniform priors, and K = 8 with unequal ones, at one scale and the first eta and number
  of steps."""
  cells, base = next(iter(here.settings.values()))
  dim = int(np.prod(build.sample_shape(cells.subject.spec, cells.subject.data)))
  ladder, halves = np.arange(1, 9) / 36, 0.5 ** np.append(np.arange(1, 8), 7)
  cases = {f'{K}': (K, ()) for K in COMPONENTS}
  cases.update(
    {'8, priors 1:2:..:8': (8, tuple(ladder)), '8, priors 1/2, 1/4, ..': (8, tuple(halves))}
  )
  one = dataclasses.replace(
    base,
    name=here.args.mixture,
    eta=here.args.etas[0],
    steps=here.args.steps[0],
    scale=here.args.scale,
  )
  return compare(
    here,
    'components',
    [
      (
        {'K': label},
        next(iter(here.settings)),
        dataclasses.replace(one, components=K, priors=priors),
      )
      for label, (K, priors) in cases.items()
      if K <= dim
    ],
    False,
  )


def scale(here: Lab) -> list[Comparison]:
  """All scales at the first eta and number of steps."""
  wanted = [
    (
      {'scale': value},
      setting,
      dataclasses.replace(
        base, name=here.args.mixture, eta=here.args.etas[0], steps=here.args.steps[0], scale=value
      ),
    )
    for setting, (_, base) in here.settings.items()
    for value in here.args.scales
  ]
  return compare(here, 'scale', wanted, False)


def shape(here: Lab) -> list[Comparison]:
  """eta x steps, each with its best scale."""
  wanted = [
    (
      {'eta': eta, 'steps': steps},
      setting,
      dataclasses.replace(base, name=here.args.mixture, eta=eta, steps=steps),
    )
    for setting, (_, base) in here.settings.items()
    for eta in here.args.etas
    for steps in here.args.steps
  ]
  return compare(here, 'shape', wanted, True)


def intervals(spec, sampler) -> dict[str, tuple[float, ...]]:
  """The parts of a trajectory in noise levels b_t / a_t, with ends between those of the steps."""
  grid = build.grid(build.schedule(spec.schedule), sampler)
  level = grid.b_t / np.maximum(grid.a_t, 1e-12)
  edge = np.concatenate(
    [[1e9], np.sqrt(level[1:] * level[:-1]), [0.0]]
  ).tolist()  # step n lies between edge[n + 1] and edge[n]
  a, b, n = round(len(level) / 3), round(2 * len(level) / 3), len(level)
  return dict(
    zip(
      PARTS,
      ((), (edge[a], edge[0]), (edge[b], edge[a]), (edge[n], edge[b]), (edge[n - 1], edge[0])),
    )
  )


def interval(here: Lab) -> list[Comparison]:
  """Each part of the trajectory with its best scale, at the first eta and the last number of
  steps; with the last step of the source, as a part of its own."""
  wanted = []
  for setting, (cells, base) in here.settings.items():
    one = dataclasses.replace(
      base,
      name=here.args.mixture,
      eta=here.args.etas[0],
      steps=here.args.steps[-1],
      last_step='source',
    )
    wanted += [
      ({'offsets': part}, setting, dataclasses.replace(one, scale_interval=ends))
      for part, ends in intervals(cells.subject.spec, one).items()
    ]
  return compare(here, 'interval', wanted, True)


QUESTIONS = {
  'components': (components, False),
  'scale': (scale, False),
  'shape': (shape, True),
  'interval': (interval, True),
}


def cost(here: Lab) -> tuple[str, list[dict]]:
  """A Markdown table and records of what a kernel costs, at the last number of steps."""
  cells, base = next(iter(here.settings.values()))
  sampler = dataclasses.replace(base, steps=here.args.steps[-1])
  return mixture_cost.table(cells.subject, sampler, COMPONENTS, here.args.repeats)


def tested(here: Lab, question: str, picture: str) -> tuple[str, list[dict]]:
  """A Markdown table and records of a question that paired tests answer, and its plot."""
  args, (ask, choose) = here.args, QUESTIONS[question]
  text, rows = answer(ask(here), choose)
  mixture_plots.PLOTS[question](picture, rows)
  head = f'{args.mixture}, N = {args.count}, {len(args.seeds)} seeds'
  return f"{head}; * p < 0.05 after Holm's correction\n\n{text}", rows


def record(here: Lab, text: str, rows: list[dict]) -> dict[str, Any]:
  """An answer as it is kept."""
  args, (cells, _) = here.args, next(iter(here.settings.values()))
  return common.with_facts(
    {
      'table': text,
      'rows': rows,
      'n': args.count,
      'seeds': args.seeds,
      'mixture': args.mixture,
      **cells.subject.facts,
    }
  )


def arguments():
  parser = common.parser(__doc__, 'runs/digits')
  common.model_arguments(parser)
  parser.add_argument(
    '--questions', nargs='+', default=['cost', *QUESTIONS], choices=['cost', *QUESTIONS]
  )
  parser.add_argument('--settings', nargs='+', default=list(SETTINGS), choices=SETTINGS)
  parser.add_argument('--mixture', default='ddim_gmm_ortho_vub', help='a mixture sampler')
  parser.add_argument('--etas', type=float, nargs='+', default=[0.0, 0.5, 1.0])
  parser.add_argument('--steps', type=int, nargs='+', default=[5, 10])
  parser.add_argument(
    '--scales', type=float, nargs='+', default=[0.1, 0.3, 1.0, 3.0], help='to choose from'
  )
  parser.add_argument('--scale', type=float, default=1.0, help='where it is fixed')
  parser.add_argument(
    '--seeds', type=int, nargs='+', default=[100, 101, 102, 103, 104], help='to test on'
  )
  parser.add_argument('--count', type=int, default=500, help='samples of a seed')
  parser.add_argument('--repeats', type=int, default=7, help='of a timing')
  args = parser.parse_args()
  if samplers.control_of(args.mixture) is None:
    raise UserError(
      f'--mixture must be a mixture sampler, such as ddim_gmm or ddim_gmm_ortho_vub; got '
      f'{args.mixture!r}'
    )
  if cells_lib.CHOOSE in args.seeds or len(args.seeds) < 2:
    raise UserError(
      f'--seeds must be two or more without {cells_lib.CHOOSE}, on which scales are chosen; got '
      f'{args.seeds}'
    )
  return args


def main():
  args = arguments()
  files.make_workdir(args.workdir)
  here = lab(args)
  name = os.path.join(args.workdir, 'mixture_questions')
  stored = files.read_json(name + '.json', {'answers': {}})
  for question in args.questions:
    if question == 'cost':
      text, rows = cost(here)
    else:
      text, rows = tested(here, question, f'{name}_{question}.png')
    stored['answers'][question] = record(here, text, rows)
    files.write_json(name + '.json', stored)
    files.write_text(
      name + '.md',
      '\n\n'.join(f'## {key}\n\n{one["table"]}' for key, one in stored['answers'].items()) + '\n',
    )
    print(f'\n{question}\n{text}', flush=True)


if __name__ == '__main__':
  try:
    main()
  except UserError as error:
    sys.exit(f'error: {error}')
