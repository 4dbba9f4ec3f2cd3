"""All samplers at equal numbers of network evaluations on one model: a table for a README.

Evaluations are counted: where a method's cost does not divide the budget it gets the most steps
that fit, and the cell says how many evaluations that is. Mixtures and controls have their best
scale, chosen on one seed and reported on another, in parentheses. 'exact' is the mixture at eta 1
with scales that keep the moments.

  python -m gmm_diffusion.main --config=configs/mnist.py:runlocal --mode=train --workdir=runs/mnist
  python -m experiments.studies.sampler_table --config=mnist:runlocal --workdir=runs/mnist
"""

import os
import sys

from experiments.lib import cells as cells_lib
from experiments.lib import columns as columns_lib
from experiments.lib import common
from gmm_diffusion import files
from gmm_diffusion.errors import UserError
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
        else str(Estimate(*one[metric]))
        + (f' ({one["scale"]:g})' if one['scale'] is not None else '')
        + (f' [{one["nfe"]}]' if one['nfe'] != nfe else '')
      )
    name = f'({row})' if 'control' in row else row
    lines.append(f'| {name} | ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines)


def main():
  parser = common.parser(__doc__, 'runs/digits')
  common.model_arguments(parser)
  parser.add_argument('--nfe', type=int, nargs='+', default=[5, 10, 20])
  parser.add_argument('--scales', type=float, nargs='+', default=[0.1, 0.3, 1.0])
  parser.add_argument(
    '--rows', nargs='+', default=list(ROWS), choices=list(ROWS), metavar='ROW', help=', '.join(ROWS)
  )
  parser.add_argument('--count', type=int, default=1000)
  args = parser.parse_args()
  files.make_workdir(args.workdir)
  spec = common.spec_of(args.config, args.set)
  subject = common.load_subject(spec, args.workdir, args.count)
  choosing, reporting = (
    cells_lib.Cells(subject, args.workdir, args.count),
    cells_lib.Cells(subject, args.workdir, args.count, everything=True),
  )
  places = {}
  for row in args.rows:
    for nfe in args.nfe:
      column, eta = ROWS[row]
      one = columns_lib.at_budget(spec.schedule, columns_lib.sampler_of(spec, column, eta=eta), nfe)
      if one is not None:
        places[row, nfe] = cells_lib.with_scales(one, args.scales)
  choosing.fill(
    (
      (option, cells_lib.CHOOSE)
      for options in places.values()
      if len(options) > 1
      for option in options
    ),
    'choosing scales',
  )
  best = {place: choosing.best(options, 'frechet') for place, options in places.items()}
  reporting.fill(((one, cells_lib.REPORT) for one in best.values()), 'reporting')
  found = {row: {} for row in args.rows}
  for (row, nfe), one in best.items():
    cell = reporting.get(one, cells_lib.REPORT)
    found[row][nfe] = {
      **cell['metrics'],
      'nfe': cell['nfe'],
      'steps': one.steps,
      'scale': one.scale if len(places[row, nfe]) > 1 else None,
    }
  text = '\n\n'.join(markdown(found, metric, args.nfe) for metric in METRICS) + '\n'
  files.write_text(os.path.join(args.workdir, 'sampler_table.md'), text)
  common.save(
    args.workdir,
    'sampler_table',
    {
      'n': args.count,
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
