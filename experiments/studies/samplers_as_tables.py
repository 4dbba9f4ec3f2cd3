"""Samplers as tables of numbers: a picture, and what each table keeps.

Every row is a call of the network. Its numbers say how much the next state takes of the state and
of each prediction of x_0 so far.

  python -m experiments.studies.samplers_as_tables --workdir=runs/samplers_as_tables
"""

import os

import numpy as np
from matplotlib import pyplot

from experiments.lib import common
from gmm_diffusion import files, samplers
from gmm_diffusion.maths import grids, schedules
from gmm_diffusion.samplers import linear

CALLS = 5
SHAPE = (1,)  # deterministic samplers have the same table for samples of any shape
AUTHORS = dict(extrapolate=False)
# title: (name, options, steps)
SHOWN = {
  'DDIM': ('ddim', {}, CALLS),
  'DPM-Solver++ 2M': ('dpmpp', dict(order=2, **AUTHORS), CALLS),
  'UniPC 3': ('unipc', dict(order=3, **AUTHORS), CALLS),
  'DEIS 3': ('deis', dict(order=3, **AUTHORS), CALLS),
  'iPNDM 4': ('ipndm', dict(order=4, **AUTHORS), CALLS),
  'BDIA': ('bdia', {}, CALLS),
  'Heun': ('heun', {}, (CALLS + 1) // 2),
  'UniPC 3, extrapolated': ('unipc', dict(order=3), CALLS),
}
# these have noise, too, and are not drawn
NOISY = {
  'DPM-Solver++ SDE': ('dpmpp_sde', dict(order=2, **AUTHORS), CALLS),
  'DDPM, small variance': ('ddpm', dict(variance='small'), CALLS),
  'DDPM, large variance': ('ddpm', dict(variance='large'), CALLS),
}


def tables(grid: str) -> dict[str, linear.Table]:
  """The table of each sampler, 5 calls each."""
  schedule = schedules.linear()
  return {
    title: linear.embed(
      samplers.make(name, options, schedule), grids.make(schedule, steps, grid), SHAPE
    )
    for title, (name, options, steps) in (SHOWN | NOISY).items()
  }


def kept(table: linear.Table) -> dict[str, float]:
  """The largest errors of mean and variance of q(x_s | x_0) over all states."""
  found = linear.consistency(table)
  return {key: max(float(np.abs(row[key]).max()) for row in found) for key in ('mean', 'variance')}


def draw(axis, title: str, table: linear.Table) -> None:
  """One table: the state's column first, then those of the predictions."""
  cells = np.concatenate([table.keep, table.weights[..., 0]], 1)
  axis.imshow(np.clip(cells, -2, 2), cmap='RdBu_r', vmin=-2, vmax=2)
  for (n, j), value in np.ndenumerate(cells):
    if abs(value) >= 0.005:
      color = 'white' if abs(value) > 1.3 else 'black'
      axis.text(j, n, f'{value:.2f}', ha='center', va='center', fontsize=7, color=color)
  axis.axvline(0.5, color='0.2', lw=1)
  axis.set_xticks(range(CALLS + 1), ['state', *(f'$m_{j}$' for j in range(CALLS))], fontsize=8)
  axis.set_yticks(range(CALLS), [f't = {t:.0f}' for t in table.time.t], fontsize=8)
  axis.set_title(title, fontsize=10)


def main():
  parser = common.parser(__doc__, 'runs/samplers_as_tables')
  parser.add_argument('--grid', default='trailing', choices=list(grids.GRIDS))
  args = parser.parse_args()
  files.make_workdir(args.workdir)
  found = tables(args.grid)
  errors = {title: kept(table) for title, table in found.items()}
  for title, error in errors.items():
    print(f'{title:<24}mean {error["mean"]:.0e}  variance {error["variance"]:.0e}')
  common.save(args.workdir, 'samplers_as_tables', {'grid': args.grid, 'kept': errors})
  figure, axes = pyplot.subplots(2, 4, figsize=(15, 6.6), dpi=100)
  for axis, (title, table) in zip(axes.flat, list(found.items())[: len(SHOWN)]):
    draw(axis, title, table)
  figure.tight_layout()
  path = os.path.join(args.workdir, 'samplers_as_tables.png')
  files.write(path, lambda name: figure.savefig(name))


if __name__ == '__main__':
  main()
