"""Gaussian reverse kernels: DDPM, DDIM, RDDM, and the rectified-flow family RFIM with Euler.

All are x_s = mu + std z with mu = a_s x_0 + sqrt(b_s^2 - tau^2) eps [GMM eq. 6, 20].
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import marginals
from gmm_diffusion.maths.variances import log_variance, rows
from gmm_diffusion.samplers.base import Kernel, Plan, State
from gmm_diffusion.types import Array, StepGrid

NO_VARIANCE = (
  "sampler.variance 'learned' needs a network that says it (net.learn_sigma); valid here: small, "
  'large'
)


class Row(NamedTuple):
  """weight of eps in mu, and deviation of the added noise."""

  weight: Array
  std: Array


def check_eta(eta: float) -> None:
  if not 0 <= eta <= 1:
    raise UserError(f'eta must be in [0, 1], got {eta:g}')


def gaussian(
  tau: Callable[[StepGrid], Array],
  std: Callable[[StepGrid, Array, int], Array] | None,
) -> Kernel:
  """Kernel with tau(grid) in the mean and std(grid, tau, D) of added noise; None adds none."""

  def plan(grid, shape):
    t = tau(grid)
    s = np.zeros_like(t) if std is None else std(grid, t, int(np.prod(shape)))
    return Plan(Row(marginals.noise_weight(grid, t), s)), []

  def step(state, row, extra, shared, denoise, noise):
    del shared
    x = marginals.reverse_mean(denoise(state.x, row.now), row.a_s, extra.weight)
    if std is not None:
      x = x + extra.std * noise.normal
    return State(x), ()

  return Kernel(plan, State, step)


def _implicit(tau, eta):
  check_eta(eta)
  return gaussian(lambda grid: tau(grid, eta), None if eta == 0 else lambda grid, t, dim: t)


def ddim(eta: float = 0.0) -> Kernel:
  """DDIM [DDIM eq. 12]. eta = 0 is deterministic; eta = 1 has the DDPM posterior variance."""
  return _implicit(marginals.posterior_std, eta)


def rfim(eta: float = 0.0) -> Kernel:
  """Rectified-flow implicit model, tau = eta b_s [GMM eq. 20]. eta = 0 is Euler's method."""
  return _implicit(marginals.flow_std, eta)


def residual(eta: float = 0.0) -> Kernel:
  """RDDM's kernel [2308.13712], tau of marginals (8); eta = 0 is DDIM. For denoisers/residual.py,
  and any other."""
  return _implicit(marginals.residual_std, eta)


def euler() -> Kernel:
  """The Euler step of the probability-flow ODE of a rectified flow."""
  return rfim(0.0)


def _learned() -> Kernel:
  """DDPM with the variance that the network says, on the steps of the grid."""

  def plan(grid, shape):
    del shape
    return Plan((marginals.noise_weight(grid, marginals.posterior_std(grid, 1.0)), rows(grid))), []

  def step(state, row, extra, shared, denoise, noise):
    del shared
    (weight, own), found = extra, denoise(state.x, row.now)
    if found.share is None:
      raise UserError(NO_VARIANCE)
    std = jnp.where(own.ends, 0, jnp.exp(0.5 * log_variance(found.share, own)))
    return State(marginals.reverse_mean(found, row.a_s, weight) + std * noise.normal), ()

  return Kernel(plan, State, step)


def ddpm(variance: str = 'small') -> Kernel:
  """Ancestral sampling [DDPM algorithm 2].

  variance 'small' is the posterior variance beta~, 'large' is beta_t = b_t^2 - (a_t / a_s)^2 b_s^2,
  and 'learned' what the network says between the two and beyond [arXiv 2102.09672]; no noise is
  added in a step that ends at clean data.
  """
  if variance not in ('small', 'large', 'learned'):
    raise UserError(f'unknown variance {variance!r}; valid: small, large, learned')
  if variance == 'learned':
    return _learned()

  def std(grid, tau, dim):
    if variance == 'small':
      return tau
    return np.where(grid.b_s > 0, np.sqrt(marginals.added_variance(grid)), 0)

  return gaussian(lambda grid: marginals.posterior_std(grid, 1.0), std)
