"""All samplers at equal numbers of network evaluations on one model: a table for a README.

Evaluations are counted: where a method's cost does not divide the budget it gets the most steps
that fit, and the cell says how many evaluations that is. Every sampler, mixtures and controls
included, stands on its best time grid, which the cell names, and mixtures and controls at their
best scale, in parentheses: both are chosen on one seed and reported on another. 'exact' is the
mixture at eta 1 with scales that keep the moments.

  python -m gmm_diffusion.main --config=configs/mnist.py:runlocal --mode=train --workdir=runs/mnist
  python -m experiments.studies.sampler_table --config=mnist:runlocal --workdir=runs/mnist
"""

import dataclasses
import os
import sys

from experiments.lib import cells as cells_lib
from experiments.lib import columns as columns_lib
from experiments.lib import common
from gmm_diffusion import files, specs
from gmm_diffusion.engine import build
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths.grids import GRIDS
from gmm_diffusion.metrics.estimates import Estimate

ROWS = {
  **{
    name: (name, 0.0)
    for name in ('DDIM', 'RAND', 'ORTHO', 'ORTHO-VUB', 'ORTHO*', 'ORTHO-VUB*', 'control')
  },
  'DDIM, eta 1': ('DDIM', 1.0),
  'ORTHO-VUB, eta 1': ('ORTHO-VUB', 1.0),
  'exact, eta 1': ('exact', 1.0),
  'control, eta 1': ('control', 1.0),
  **{name: (name, 0.0) for name in columns_lib.FAST},
}
METRICS = ('frechet', 'precision', 'recall')


def markdown(found: dict[str, dict[int, dict]], metric: str, budgets) -> str:
  """Rows are samplers, columns evaluations."""
  lines = [
    f'| {metric} | ' + ' | '.join(f'{nfe} evaluations' for nfe in budgets) + ' |',
    '|---|' + '---:|' * len(budgets),
  ]
  for row, by_budget in found.items():
    cells = []
    for nfe in budgets:
      one = by_budget.get(nfe)
      cells.append(
        '-'
        if one is None
        else f'{Estimate(*one[metric])} {one["grid"]}'
        + (f' ({one["scale"]:g})' if one['scale'] is not None else '')
        + (f' [{one["nfe"]}]' if one['nfe'] != nfe else '')
      )
    name = f'({row})' if 'control' in row else row
    lines.append(f'| {name} | ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines)


def on_grids(spec: specs.Spec, sampler: specs.Sampler, grids: list[str]) -> list[specs.Sampler]:
  """The sampler on each grid that the schedule and the number of steps allow."""
  out = []
  for grid in grids:
    one = dataclasses.replace(sampler, grid=grid)
    try:
      build.grid(build.schedule(spec.schedule), one)
    except UserError as error:
      print(f'{sampler.steps} steps: {error}')
    else:
      out.append(one)
  return out


def chosen_from(cells: cells_lib.Cells, options: list[specs.Sampler]) -> dict[str, float]:
  """{grid: Frechet distance on the choosing seed}, with the best scale."""
  out = {}
  for one in options if len(options) > 1 else ():
    value = cells.value(one, cells_lib.CHOOSE)
    out[one.grid] = min(value, out.get(one.grid, value))
  return out


def places(spec: specs.Spec, args) -> dict[tuple[str, int], list[specs.Sampler]]:
  """{(row, evaluations): the samplers to choose from}; where no sampler fits there is none."""
  out = {}
  for row in args.rows:
    for nfe in args.nfe:
      column, eta = ROWS[row]
      one = columns_lib.at_budget(spec.schedule, columns_lib.sampler_of(spec, column, eta=eta), nfe)
      if one is not None:
        out[row, nfe] = [
          option
          for place in on_grids(spec, one, args.grids)
          for option in cells_lib.with_scales(place, args.scales)
        ]
  return out


def found_in(
  choosing: cells_lib.Cells, reporting: cells_lib.Cells, options: dict, rows: list[str]
) -> dict[str, dict[int, dict]]:
  """{row: {evaluations: the metrics of the best sampler, and which it is}}; computes what is not
  there."""
  choosing.fill(
    (
      (one, cells_lib.CHOOSE) for several in options.values() if len(several) > 1 for one in several
    ),
    'choosing',
  )
  best = {place: choosing.best(several, 'frechet') for place, several in options.items()}
  reporting.fill(((one, cells_lib.REPORT) for one in best.values()), 'reporting')
  found = {row: {} for row in rows}
  for (row, nfe), one in best.items():
    cell = reporting.get(one, cells_lib.REPORT)
    found[row][nfe] = {
      **cell['metrics'],
      'nfe': cell['nfe'],
      'steps': one.steps,
      'grid': one.grid,
      'scale': one.scale if columns_lib.takes(ROWS[row][0], 'scale') else None,
      'chosen from': chosen_from(choosing, options[row, nfe]),
    }
  return found


def arguments():
  parser = common.parser(__doc__, 'runs/digits')
  common.model_arguments(parser)
  parser.add_argument('--nfe', type=int, nargs='+', default=[5, 10, 20])
  parser.add_argument('--scales', type=float, nargs='+', default=[0.1, 0.3, 1.0])
  parser.add_argument(
    '--rows', nargs='+', default=list(ROWS), choices=list(ROWS), metavar='ROW', help=', '.join(ROWS)
  )
  parser.add_argument(
    '--grids', nargs='+', default=[name for name in GRIDS if name != 'stride'], choices=list(GRIDS)
  )
  parser.add_argument('--count', type=int, default=1000)
  parser.add_argument('--choose-count', type=int, default=0, help='samples to choose by; 0: count')
  return parser.parse_args()


def main():
  args = arguments()
  files.make_workdir(args.workdir)
  spec = common.spec_of(args.config, args.set)
  subject = common.load_subject(spec, args.workdir, args.count)
  choosing = cells_lib.Cells(subject, args.workdir, args.choose_count or args.count)
  reporting = cells_lib.Cells(subject, args.workdir, args.count, everything=True)
  found = found_in(choosing, reporting, places(spec, args), args.rows)
  text = '\n\n'.join(markdown(found, metric, args.nfe) for metric in METRICS) + '\n'
  files.write_text(os.path.join(args.workdir, 'sampler_table.md'), text)
  common.save(
    args.workdir,
    'sampler_table',
    {
      'n': args.count,
      'n to choose by': choosing.count,
      'seeds': {'chosen on': cells_lib.CHOOSE, 'reported on': cells_lib.REPORT},
      **subject.facts,
      'rows': found,
    },
  )
  print(text)


if __name__ == '__main__':
  try:
    main()
  except UserError as error:
    sys.exit(f'error: {error}')
