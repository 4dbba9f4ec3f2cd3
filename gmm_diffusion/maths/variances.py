"""The variance of the reverse step as a network says it, and the bound on the likelihood
[improved DDPM, arXiv 2102.09672].

A step of the chain from t to s has, where x_0 is known,

  (1) q(x_s | x_t, x_0) = N(mu(x_0), beta~ I),   beta~ = (b_s / b_t)^2 beta,
      beta = b_t^2 - (a_t / a_s)^2 b_s^2

A network that also says a share v for each element, 0 to 1 or beyond, has the variance [eq. 15]

  (2) log sigma^2 = v log beta + (1 - v) log beta~

and -log p(x_0) is at most the sum over the steps of

  (3) KL = 1/2 (log sigma^2 - log beta~ - 1 + (beta~ + g^2 (x_0 - D(x_t))^2) / sigma^2),
      g = a_s - a_t sqrt(b_s^2 - beta~) / b_t
  (4) -log P, P the probability of the grey level of x_0 under N(D(x_t), sigma^2), for the step
      that ends at clean data; its beta~ would be 0, and is that of the step before

and the distance of x_T to noise, which does not depend on the network:

  (5) KL(q(x_T | x_0) || N(0, b_T^2 I)) = a_T^2 x_0^2 / (2 b_T^2)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gmm_diffusion.maths import grids, marginals
from gmm_diffusion.maths.marginals import match
from gmm_diffusion.maths.schedules import Schedule
from gmm_diffusion.types import Array, StepGrid, Time

_HALF = 1 / 255  # half a grey level, of images in [-1, 1]


class Row(NamedTuple):
  """log beta, log beta~ and g^2 of (1) to (3), and whether the step ends at clean data."""

  log_beta: Any
  log_tilde: Any
  gain: Any
  ends: Any


def rows(grid: StepGrid) -> Row:
  """Rows [N] of the steps of a grid, float64; where only one step ends the chain and is all of it,
  its beta~ is beta."""
  tau = marginals.posterior_std(grid, 1.0)
  beta = marginals.added_variance(grid)
  ends = grid.b_s == 0
  tilde = tau**2
  inner = tilde[~ends]
  tilde = np.where(ends, inner[-1] if len(inner) else beta, tilde)
  return Row(np.log(beta), np.log(tilde), marginals.x0_weight(grid, tau) ** 2, ends)


def of_training(process: Schedule) -> Row:
  """Rows of the steps between all training times, by the number of the time, [T]."""
  grid = grids.from_times(process, process.training_times[::-1])
  return Row(*(part[::-1] for part in rows(grid)))


def log_variance(share: Array, row: Row) -> Array:
  """Equation (2), for shares [B, ...] and a row of numbers or of [B]."""
  high, low = match(row.log_beta, share), match(row.log_tilde, share)
  return share * high + (1 - share) * low


def bits(x0: Array, found: Array, log_var: Array, row: Row) -> Array:
  """(3), or (4) where the step ends at clean data, in bits for each element: [B].

  Args:
    x0: images in [-1, 1] of 255 steps, [B, ...].
    found: D(x_t).
    log_var: of equation (2).
    row: of each item, [B].
  """
  low = match(row.log_tilde, x0)
  error = match(row.gain, x0) * (x0 - found) ** 2
  kl = 0.5 * (log_var - low - 1 + (jnp.exp(low) + error) * jnp.exp(-log_var))
  inside = _log_probability(x0, found, jnp.exp(-0.5 * log_var))
  each = jnp.where(match(row.ends, x0) > 0, -inside, kl)
  return jnp.mean(each, tuple(range(1, x0.ndim))) / np.log(2)


def _log_probability(x0, mean, inverse_std):
  """Of the grey level of x0, the outermost without an end. Taken in the lower tail, where small
  probabilities keep their digits."""
  log_cdf = jax.scipy.special.log_ndtr
  first, last = x0 < -1 + _HALF, x0 > 1 - _HALF
  above = (_HALF - jnp.abs(x0 - mean)) * inverse_std
  below = (-_HALF - jnp.abs(x0 - mean)) * inverse_std
  inside = log_cdf(above) + jnp.log(-jnp.expm1(jnp.minimum(log_cdf(below) - log_cdf(above), -1e-6)))
  of_first = log_cdf((x0 + _HALF - mean) * inverse_std)
  of_last = log_cdf((mean - x0 + _HALF) * inverse_std)
  return jnp.where(first, of_first, jnp.where(last, of_last, inside))


def prior_bits(x0: Array, time: Time) -> Array:
  """Equation (5) at the noisiest time, where sampling starts, in bits for each element: [B]."""
  square = jnp.mean(x0**2, tuple(range(1, x0.ndim)))
  return (time.a / time.b) ** 2 * square / (2 * np.log(2))
