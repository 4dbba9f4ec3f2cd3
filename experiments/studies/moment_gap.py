"""How far a mixture kernel is from matching its moments, over eta, scale, K and covariance
handling.

Two views: the residuals of the moment report, and what they do to the chain, as the covariance of
q(x_s | x_0) in the middle of a 10-step run relative to b_s^2 (one is right).

  python -m experiments.studies.moment_gap --workdir=runs/moment_gap
"""

import itertools
import os

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot
from tqdm import tqdm

from experiments.lib import common
from gmm_diffusion import files, samplers
from gmm_diffusion.maths import grids, marginals, noise, schedules
from gmm_diffusion.samplers.run import initial_state, run

D, STEPS, N = 64, 10, 4000
ETAS, SCALES, COMPONENTS = (0.0, 0.2, 0.5, 1.0), (0.01, 0.1, 1.0, 10.0), (2, 8)
HANDLINGS = (
  ('A', 'rand_centred', 'diagonal'),
  ('A', 'rand_centred', 'exact'),
  ('B', 'ortho', 'diagonal'),
  ('B', 'ortho', 'vub'),
  ('B', 'ortho', 'exact'),
)


def chain_variance(kernel, plan, grid) -> np.ndarray:
  """Mean variance per coordinate of q(x_s | x_0) over b_s^2, for all steps but the last, [STEPS -
  1]."""
  zero = lambda x, time, cond: marginals.from_x0(x, jnp.zeros_like(x), time)
  keys = noise.sample_keys(0, np.arange(N))

  @jax.jit
  def path(plan):
    x = initial_state(grid, keys, (D,))
    return run(kernel, zero, grid, plan, x, lambda n: noise.at_step(keys, n, (D,)), keep='all').path

  variance = np.mean(np.square(path(plan), dtype=np.float64), (1, 2))
  return variance[:-1] / grid.b_s[:-1] ** 2


def row_of(grid, handling, K, eta, scale, infeasible) -> dict:
  """The moments and the chain of one kernel."""
  form, offsets, covariance = handling
  options = {
    'form': form,
    'offsets': offsets,
    'covariance': covariance,
    'components': K,
    'eta': eta,
    'scale': scale,
    'infeasible': infeasible,
  }
  kernel = samplers.make('ddim_gmm', options)
  plan, report = kernel.plan(grid, (D,))
  return {
    **options,
    'steps_infeasible': sum(bool(row['infeasible']) for row in report),
    'mean_residual': max(row['mean_residual'] for row in report),
    'covariance_residual': max(row['covariance_residual'] for row in report),
    'chain_variance': chain_variance(kernel, plan, grid).tolist(),
  }


def panels(above, below, rows, eta) -> None:
  """Over the scale, for K = 8 and one eta: residuals above, variances of the chain below."""
  for form, _, covariance in HANDLINGS:
    for style, infeasible in (('-', 'clip'), (':', 'shrink')):
      line = [
        row
        for row in rows
        if (row['form'], row['covariance'], row['components'], row['eta'], row['infeasible'])
        == (form, covariance, 8, eta, infeasible)
      ]
      residuals = [max(row['covariance_residual'], 1e-9) for row in line]
      variances = [max(row['chain_variance']) for row in line]
      label = f'{form} {covariance} ({infeasible})'
      above.plot(SCALES, residuals, style, marker='.', label=label)
      below.plot(SCALES, variances, style, marker='.')
  above.set(title=f'eta = {eta:g}', xscale='log', yscale='log', ylim=(1e-9, 1e2))
  below.set(xlabel='scale', yscale='log', ylim=(0.5, 1e4))
  below.axhline(1, color='0.7', zorder=0)


def plot(path: str, rows: list[dict]) -> None:
  figure, axes = pyplot.subplots(2, len(ETAS), figsize=(4 * len(ETAS), 7), dpi=100, sharex=True)
  for (above, below), eta in zip(axes.T, ETAS):
    panels(above, below, rows, eta)
  axes[0, 0].set_ylabel('worst covariance residual of a step')
  axes[1, 0].set_ylabel('largest variance of q(x_s|x_0) / b_s²')
  axes[0, -1].legend(fontsize=7)
  figure.suptitle(f'K = 8, D = {D}, {STEPS} steps')
  figure.tight_layout()
  files.write(path, lambda name: figure.savefig(name))


def main():
  args = common.parser(__doc__, 'runs/moment_gap').parse_args()
  grid = grids.make(schedules.sqrt_linear(), STEPS, 'trailing')
  cells = list(itertools.product(HANDLINGS, COMPONENTS, ETAS, SCALES, ('clip', 'shrink')))
  bar = tqdm(cells, desc='moment gap', unit='kernel', dynamic_ncols=True)
  rows = [row_of(grid, *cell) for cell in bar]
  common.save(args.workdir, 'moment_gap', {'D': D, 'steps': STEPS, 'N': N, 'rows': rows})
  plot(os.path.join(args.workdir, 'moment_gap.png'), rows)


if __name__ == '__main__':
  main()
