"""Exact denoisers E[x_0 | x_t] of data whose distribution is known.

(1) Gaussian N(m, v)   x_0 = m + a v / (a^2 v + b^2) (x - a m)
(2) mixture            x_0 = sum_j w_j (m_j + g_j (x - a m_j)),  g_j = a v_j / (a^2 v_j + b^2),
                       w_j proportional to pi_j N(x; a m_j, (a^2 (v_j + k^2) + b^2) I), k = 0
(3) empirical          (2) with v_j = 0: attention over the data set [GMM eq. 14]

(2) with k > 0 is no longer exact: it blurs which component x belongs to, as a smooth network does,
and so makes samples between the components. It is the known case for samplers.watch.
"""

from collections.abc import Callable

import jax.numpy as jnp

from gmm_diffusion.denoisers.guidance import log_prob_of
from gmm_diffusion.maths import marginals, mixtures
from gmm_diffusion.maths.marginals import match
from gmm_diffusion.types import Array, Denoiser, Time


def gaussian(mean: Array, variance: Array) -> Denoiser:
  """Equation (1); mean and (diagonal) variance broadcast against one sample."""

  def denoise(x, time, cond):
    del cond
    a, b = match(time.a, x), match(time.b, x)
    m, v = (jnp.broadcast_to(jnp.asarray(y, x.dtype), x.shape[1:])[None] for y in (mean, variance))
    x0 = m + a * v / (a**2 * v + b**2) * (x - a * m)
    return marginals.from_x0(x, x0, time)

  return denoise


def mixture(
  means: Array,
  variances: Array | float,
  log_priors: Array | None = None,
  block: int = 1024,
  soften: float = 0.0,
) -> Denoiser:
  """Equation (2) at one time for the whole batch.

  Args:
    means: [J, ...], samples' shape after the first axis.
    variances: isotropic variance of each component, [J] or a number.
    log_priors: [J]; uniform if None.
    block: see mixtures.posterior.
    soften: k, the deviation by which components are blurred where x is assigned to them.
  """
  J = len(means)
  flat = jnp.reshape(means, (J, -1))
  variances = jnp.broadcast_to(jnp.asarray(variances, flat.dtype), (J,))

  def denoise(x, time, cond):
    del cond
    a, b = jnp.asarray(time.a, x.dtype), jnp.asarray(time.b, x.dtype)
    total = a**2 * variances + b**2
    gain = a * variances / total
    values = jnp.concatenate([(1 - a * gain)[:, None] * flat, gain[:, None]], 1)
    queries = x.reshape(len(x), -1)
    found = mixtures.posterior(
      queries,
      mixtures.units(a * flat, 1 / (total + (a * soften) ** 2), log_priors),
      values,
      block,
    ).mean
    x0 = found[:, :-1] + found[:, -1:] * queries
    return marginals.from_x0(x, x0.reshape(x.shape), time)

  return denoise


def log_responsibility(
  means: Array, variances: Array | float, log_priors: Array | None = None
) -> Callable[[Array, Time, Array], Array]:
  """log p(component | x_t), the exact classifier of noisy samples of a mixture: (x [B, ...], time,
  components int [B]) -> [B]. Classifier guidance by it with scale 1 makes (2) the exact denoiser of
  the component."""
  J = len(means)
  flat = jnp.reshape(means, (J, -1))
  priors = jnp.zeros(J, flat.dtype) if log_priors is None else jnp.asarray(log_priors, flat.dtype)

  def log_prob(x, time, labels):
    total = time.a**2 * jnp.broadcast_to(jnp.asarray(variances, x.dtype), (J,)) + time.b**2
    distance = jnp.sum((x.reshape(len(x), 1, -1) - time.a * flat[None]) ** 2, -1)
    logits = priors[None] - flat.shape[1] / 2 * jnp.log(total)[None] - distance / (2 * total[None])
    return log_prob_of(logits, labels)

  return log_prob


def empirical(data: Array, block: int = 1024) -> Denoiser:
  """Equation (3) for data [J, ...]."""
  return mixture(data, 0.0, None, block)
