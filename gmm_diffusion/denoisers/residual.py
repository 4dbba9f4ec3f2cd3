"""Restoration as diffusion of the residual: from a degraded image x_in to the image x_0.

With y = x - x_in the process of RDDM [2308.13712], I_t = x_0 + A_t (x_in - x_0) + B_t eps, is the
ordinary one, with a = 1 - A and b = B:

  (1) y_t = a_t y_0 + b_t eps,   y_0 = x_0 - x_in

so that every sampler runs on y, from noise alone, and x_in is added to what it ends at. Since y_t +
a_t x_in = a_t x_0 + b_t eps, a denoiser of x is one of y:

  (2) y_0 = D(y_t + a_t x_in) - x_in

Nothing but b / a matters to an exact denoiser: the flow of z = y / a is dz = eps d(b / a).
Schedules of residual and noise that do not depend on each other choose times, and what a network
sees, but no other path; and what is said of the order of the two holds for errors of networks.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from gmm_diffusion.denoisers import guidance
from gmm_diffusion.denoisers.network import network as plain_network
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths.marginals import match
from gmm_diffusion.maths.schedules import Schedule
from gmm_diffusion.types import Array, Denoiser


def network(
  apply: Callable[[Array, Array, Any], Array],
  schedule: Schedule,
  prediction: str = 'x0',
  clip: bool = True,
) -> Denoiser:
  """A Denoiser of y that takes cond = (labels or None, x_in), with x_in as y and in [-1, 1].

  Args:
    apply: (what `seen` gives [B, H, W, 2 C], network time [B], labels) -> output [B, H, W, C].
    schedule: of y.
    prediction: what the output means for y, a name in marginals.PREDICTIONS; 'x0' is the residual
      with the other sign, and 'eps' needs a schedule that does not end at a = 0.
    clip: x_in + y_0 to [-1, 1].
  """
  check(schedule, prediction)
  of_y = plain_network(
    lambda y, t, cond: apply(seen(y, _like(y, cond[1])), t, cond[0]), schedule, prediction
  )
  if not clip:
    return of_y

  def denoise(y, time, cond):
    return guidance.clip_x0(of_y, -1 - cond[1], 1 - cond[1])(y, time, cond)

  return denoise


def conditional(
  apply: Callable[[Array, Array, Any], Array],
  schedule: Schedule,
  prediction: str = 'eps',
  clip: bool = True,
) -> Denoiser:
  """The same of x itself, from noise alone: conditional diffusion, to compare with."""
  out = plain_network(
    lambda x, t, cond: apply(beside(x, _like(x, cond[1])), t, cond[0]),
    schedule,
    prediction,
  )
  return guidance.clip_x0(out) if clip else out


def of(denoiser: Denoiser) -> Denoiser:
  """Equation (2): a Denoiser of y that takes cond = (cond of the denoiser of x, x_in)."""

  def denoise(y, time, cond):
    inner, x_in = cond
    found = denoiser(y + match(time.a, y) * _like(y, x_in), time, inner)
    return found._replace(x0=found.x0 - x_in)

  return denoise


def seen(y: Array, x_in: Array) -> Array:
  """What a network of residuals sees: x_t = y_t + x_in, and x_in, [B, H, W, 2 C]."""
  return beside(y + x_in, x_in)


def beside(x: Array, x_in: Array) -> Array:
  """Both images as channels of one, [B, H, W, 2 C]."""
  return jnp.concatenate([x, x_in], -1)


def check(schedule: Schedule, prediction: str) -> None:
  """Raises UserError for a prediction that says nothing of x_0 where the schedule begins."""
  if prediction in ('eps', 'score') and schedule.at(np.asarray(schedule.last)).a == 0:
    raise UserError(
      f'prediction {prediction!r} says nothing of x_0 at the end of this schedule, where a = 0; '
      f'valid: x0, v, velocity'
    )


def _like(y, x_in):
  """x_in, if it has the shape of y."""
  if jnp.shape(x_in) != jnp.shape(y):
    raise UserError(
      f'a degraded image must have the shape of the image, {list(jnp.shape(y))}, got '
      f'{list(jnp.shape(x_in))}'
    )
  return x_in
