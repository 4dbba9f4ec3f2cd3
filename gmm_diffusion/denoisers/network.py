"""A network as a Denoiser."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import marginals
from gmm_diffusion.maths.schedules import Schedule
from gmm_diffusion.types import Array, Denoiser


def network(
  apply: Callable[[Array, Array, Any], Array], schedule: Schedule, prediction: str = 'eps'
) -> Denoiser:
  """Wraps apply(x [B, ...], network time [B], cond) -> output.

  Args:
    apply: the network with its parameters bound. Twice as many output channels as input channels
      are a learned variance: those that come last are 2 share - 1, share of maths/variances.py (2).
    schedule: says how x and the time enter the network.
    prediction: what the output means, a name in marginals.PREDICTIONS.

  Returns:
    The Denoiser.
  """
  if prediction not in marginals.PREDICTIONS:
    raise UserError(f'unknown prediction {prediction!r}; valid: {", ".join(marginals.PREDICTIONS)}')
  convert = marginals.PREDICTIONS[prediction]

  def denoise(x, time, cond):
    inputs, t = schedule.network_input(x, time)
    output = apply(inputs, jnp.broadcast_to(jnp.asarray(t, x.dtype), (len(x),)), cond)
    mean, rest = jnp.split(output.astype(x.dtype), [x.shape[-1]], -1)
    found = convert(x, mean, time)
    return found._replace(share=(rest + 1) / 2) if rest.shape == x.shape else found

  return denoise
