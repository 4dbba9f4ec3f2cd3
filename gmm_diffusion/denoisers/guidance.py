"""Denoisers made from denoisers: clipping, classifier-free and classifier guidance.

  (1) classifier-free  eps = eps_u + g (eps_c - eps_u)               [Ho & Salimans eq. 6]
  (2) classifier       eps = eps - g b_t grad_x log p(y | x_t)       [ADM algorithm 2]

x_0 and eps stay consistent: whichever one is changed, the other is derived again.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gmm_diffusion.maths import marginals
from gmm_diffusion.types import Array, Denoiser, Prediction, Time


def clip_x0(denoiser: Denoiser, low: Array | float = -1.0, high: Array | float = 1.0) -> Denoiser:
  """Clips x_0 to [low, high], numbers or of its shape, and derives eps again, as guided-diffusion
  does."""

  def denoise(x, time, cond):
    found = denoiser(x, time, cond)
    x0 = jnp.clip(found.x0, low, high)
    return marginals.from_x0(x, x0, time)._replace(share=found.share)

  return denoise


def classifier_free(
  denoiser: Denoiser,
  scale: float,
  null_label: int,
  channels: int = 0,
  interval: tuple[float, float] | None = None,
) -> Denoiser:
  """Equation (1) for integer labels cond [B]; both branches are one call of twice the batch.

  Args:
    denoiser: takes labels; `null_label` is "no class".
    scale: g; 1 is the conditional prediction.
    null_label: the label of the unconditional prediction.
    channels: guides only so many leading channels, the others stay conditional (DiT's code: 3 of
      4); 0 is all.
    interval: guides only where low <= b_t / a_t <= high [Kynkaanniemi et al. 2404.07724]; outside,
      one conditional call of the batch is all that is computed where all samples share a time.

  Returns:
    A Denoiser for times of shape [] or [B].
  """

  def guide(x, time, cond):
    labels = jnp.concatenate([cond, jnp.full_like(cond, null_label)])
    # a time for each sample is one for each of both branches
    twice = jax.tree.map(lambda y: jnp.concatenate([y, y]) if jnp.ndim(y) else y, time)
    both = denoiser(jnp.concatenate([x, x]), twice, labels)
    g = jnp.where(jnp.arange(x.shape[-1]) < (channels or x.shape[-1]), scale, 1.0).astype(x.dtype)
    g = g.reshape((1,) * (x.ndim - 1) + (-1,))

    def mix(y):  # x_0 is linear in eps at fixed x, so it mixes with the same weights
      conditional, unconditional = jnp.split(y, 2)
      return unconditional + g * (conditional - unconditional)

    share = None if both.share is None else jnp.split(both.share, 2)[0]  # the conditional one
    return Prediction(mix(both.x0), mix(both.eps), share)

  if interval is None:
    return guide
  low, high = interval

  def denoise(x, time, cond):
    inside = jnp.asarray((low * time.a <= time.b) & (time.b <= high * time.a))
    if inside.ndim == 0:
      return jax.lax.cond(inside, guide, denoiser, x, time, cond)
    pick = inside.reshape(inside.shape + (1,) * (x.ndim - 1))
    guided, plain = guide(x, time, cond), denoiser(x, time, cond)
    return jax.tree.map(lambda one, other: jnp.where(pick, one, other), guided, plain)

  return denoise


def log_prob_of(logits: Array, labels: Array) -> Array:
  """log p(label) [B] of logits [B, classes]."""
  return jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)[:, 0]


def classifier(
  denoiser: Denoiser, log_prob: Callable[[Array, Time, Array], Array], scale: float
) -> Denoiser:
  """Equation (2); log_prob(x [B, ...], time, labels [B]) -> [B]."""

  def denoise(x, time, cond):
    gradient = jax.grad(lambda y: jnp.sum(log_prob(y, time, cond)))(x)
    found = denoiser(x, time, cond)
    eps = found.eps - scale * marginals.match(time.b, x) * gradient
    return marginals.from_eps(x, eps, time)._replace(share=found.share)

  return denoise
