"""What the straight line over the last step does (sampler.extrapolate): each multistep sampler with
and without it, each on its best grid, on a model of one's own or of others.

  python -m experiments.studies.last_step --start=runs/digits --workdir=runs/last_step --calls 5 8

Frechet distances to held-out items by two judges, on features of a classifier and on histograms of
gradients, paired by noise over seeds. Grids are chosen by the first judge, on noise of their own.
"""

from typing import Any

import numpy as np
from tqdm import tqdm

from experiments.lib import common, paired
from experiments.studies import posterior_kernels, transfer
from gmm_diffusion.maths import grids
from gmm_diffusion.tune import tiers

SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
  'DPM-Solver++ 2M': ('dpmpp', {'order': 2}),
  'DPM-Solver++ 3M': ('dpmpp', {'order': 3}),
  'DPM-Solver++ SDE': ('dpmpp_sde', {}),
  'UniPC 2': ('unipc', {'order': 2}),
  'UniPC 3': ('unipc', {'order': 3}),
  'DEIS 3': ('deis', {'order': 3}),
  'iPNDM 4': ('ipndm', {'order': 4}),
}
GRIDS = 'trailing', 'leading', 'quadratic', 'karras', 'tangent'


def row_of(calls: int, label: str, args, judge, subject) -> dict[str, Any]:
  """A sampler with and without the line: values over the seeds, and their paired difference."""
  name, options = SAMPLERS[label]

  def values(grid, seed, extrapolate):
    times = subject.times(grids.make(subject.schedule, calls, grid).t)
    found = grids.from_times(subject.schedule, times)
    full = {**options, 'extrapolate': extrapolate}
    return judge(subject.end(name, full, found, tiers.stream(0, seed), np.arange(args.count)))

  row: dict[str, Any] = {'calls': calls, 'what': label, 'sampler': name, **options}
  for extrapolate in (False, True):
    tried = {grid: values(grid, args.seeds, extrapolate)[0] for grid in args.grids}
    best = min(tried, key=lambda grid: tried[grid])
    found = np.array([values(best, seed, extrapolate) for seed in range(args.seeds)]).T
    by = dict(zip(posterior_kernels.JUDGES, found.tolist(), strict=True))
    row[str(extrapolate)] = {'grid': best, 'choosing': tried, **by}
  for one in posterior_kernels.JUDGES:
    without, with_line = (row[str(extrapolate)][one] for extrapolate in (False, True))
    away = paired.difference(with_line, without)
    row[f'{one} minus'] = away._asdict()
    print(
      f'{calls} calls, {label}, {one}: {np.mean(without):.3f} on {row["False"]["grid"]}, '
      f'{np.mean(with_line):.3f} on {row["True"]["grid"]}, {away}',
      flush=True,
    )
  return row


def main():
  parser = common.parser(__doc__, 'runs/last_step')
  transfer.arguments(parser, 'runs/digits')
  parser.set_defaults(calls=[5, 8])
  parser.add_argument('--grids', nargs='+', default=GRIDS, choices=grids.GRIDS)
  parser.add_argument('--samplers', nargs='+', default=list(SAMPLERS), choices=SAMPLERS)
  parser.add_argument('--seeds', type=int, default=4)
  args = parser.parse_args()
  here = posterior_kernels.lab(args)
  judge = here.judges
  every = [(calls, label) for calls in args.calls for label in args.samplers]
  bar = tqdm(every, desc='last step', unit='sampler', dynamic_ncols=True)
  rows = [row_of(calls, label, args, judge, here.subject) for calls, label in bar]
  common.save(args.workdir, 'last_step', {'count': args.count, 'seeds': args.seeds, 'rows': rows})


if __name__ == '__main__':
  main()
