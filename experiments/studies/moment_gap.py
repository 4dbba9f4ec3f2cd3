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


def main():
  args = common.parser(__doc__, 'runs/moment_gap').parse_args()
  grid = grids.make(schedules.sqrt_linear(), STEPS, 'trailing')
  rows = []
  cells = list(itertools.product(HANDLINGS, COMPONENTS, ETAS, SCALES, ('clip', 'shrink')))
  for (form, offsets, covariance), K, eta, scale, infeasible in tqdm(
    cells, desc='moment gap', unit='kernel', dynamic_ncols=True
  ):
    kernel = samplers.make(
      'ddim_gmm',
      dict(
        form=form,
        offsets=offsets,
        covariance=covariance,
        components=K,
        eta=eta,
        scale=scale,
        infeasible=infeasible,
      ),
    )
    plan, report = kernel.plan(grid, (D,))
    rows.append(
      {
        'form': form,
        'offsets': offsets,
        'covariance': covariance,
        'components': K,
        'eta': eta,
        'scale': scale,
        'infeasible': infeasible,
        'steps_infeasible': sum(bool(row['infeasible']) for row in report),
        'mean_residual': max(row['mean_residual'] for row in report),
        'covariance_residual': max(row['covariance_residual'] for row in report),
        'chain_variance': chain_variance(kernel, plan, grid).tolist(),
      }
    )
  common.save(args.workdir, 'moment_gap', {'D': D, 'steps': STEPS, 'N': N, 'rows': rows})

  figure, axes = pyplot.subplots(2, len(ETAS), figsize=(4 * len(ETAS), 7), dpi=100, sharex=True)
  for column, eta in enumerate(ETAS):
    for form, _, covariance in HANDLINGS:
      for style, infeasible in (('-', 'clip'), (':', 'shrink')):
        line = [
          row
          for row in rows
          if (row['form'], row['covariance'], row['components'], row['eta'], row['infeasible'])
          == (form, covariance, 8, eta, infeasible)
        ]
        label = f'{form} {covariance} ({infeasible})'
        axes[0, column].plot(
          SCALES,
          [max(row['covariance_residual'], 1e-9) for row in line],
          style,
          marker='.',
          label=label,
        )
        axes[1, column].plot(
          SCALES, [max(row['chain_variance']) for row in line], style, marker='.'
        )
    axes[0, column].set(title=f'eta = {eta:g}', xscale='log', yscale='log', ylim=(1e-9, 1e2))
    axes[1, column].set(xlabel='scale', yscale='log', ylim=(0.5, 1e4))
    axes[1, column].axhline(1, color='0.7', zorder=0)
  axes[0, 0].set_ylabel('worst covariance residual of a step')
  axes[1, 0].set_ylabel('largest variance of q(x_s|x_0) / b_s²')
  axes[0, -1].legend(fontsize=7)
  figure.suptitle(f'K = 8, D = {D}, {STEPS} steps')
  figure.tight_layout()
  files.write(os.path.join(args.workdir, 'moment_gap.png'), lambda name: figure.savefig(name))


if __name__ == '__main__':
  main()
