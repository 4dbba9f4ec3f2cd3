"""Denoisers made from denoisers: clipping, classifier-free and classifier guidance.

  (1) classifier-free  eps = eps_u + g (eps_c - eps_u)               [Ho & Salimans eq. 6]
  (2) classifier       eps = eps - g b_t grad_x log p(y | x_t)       [ADM algorithm 2]

x_0 and eps stay consistent: whichever one is changed, the other is derived again.
"""

from typing import Callable

import jax
import jax.numpy as jnp

from gmm_diffusion.aliases import Array, Denoiser, Time
from gmm_diffusion.maths import marginals


def clip_x0(denoiser: Denoiser, low: float = -1.0, high: float = 1.0) -> Denoiser:
  """Clips x_0 to [low, high] and derives eps again, as guided-diffusion does."""

  def denoise(x, time, cond):
    x0 = jnp.clip(denoiser(x, time, cond).x0, low, high)
    return marginals.from_x0(x, x0, time)

  return denoise


def classifier_free(denoiser: Denoiser, scale: float, null_label: int) -> Denoiser:
  """Equation (1) for integer labels cond [B]; both branches are one call of twice the batch."""

  def denoise(x, time, cond):
    labels = jnp.concatenate([cond, jnp.full_like(cond, null_label)])
    both = denoiser(jnp.concatenate([x, x]), time, labels)
    eps_c, eps_u = jnp.split(both.eps, 2)
    x0_c, x0_u = jnp.split(both.x0, 2)
    # x_0 is linear in eps at fixed x, so it mixes with the same weights
    return marginals.Prediction(x0_u + scale * (x0_c - x0_u), eps_u + scale * (eps_c - eps_u))

  return denoise


def classifier(denoiser: Denoiser, log_prob: Callable[[Array, Time, Array], Array], scale: float) -> Denoiser:
  """Equation (2); log_prob(x [B, ...], time, labels [B]) -> [B]."""

  def denoise(x, time, cond):
    gradient = jax.grad(lambda y: jnp.sum(log_prob(y, time, cond)))(x)
    eps = denoiser(x, time, cond).eps - scale * marginals.match(time.b, x) * gradient
    return marginals.from_eps(x, eps, time)

  return denoise
