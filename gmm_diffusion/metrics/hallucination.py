"""Which finished images are made up in the eyes of a model: how unsteady its prediction is.

  (1) U(x_0) = mean over elements of the variance, over levels j, of x0(a_j x_0 + b_j eps_j)

with levels b_j / a_j spread evenly in logarithm over a window, and fresh noise at each. On a mode
of the data the prediction hardly depends on a little noise; between modes it does. The published
measure, in samplers/watch.py, looks at the calls of the sampler and needs many of them in the
window; this one looks at the image alone, whatever drew it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmm_diffusion.maths import marginals, noise
from gmm_diffusion.maths.schedules import Schedule
from gmm_diffusion.samplers.watch import WINDOW
from gmm_diffusion.types import Array, Denoiser, Time

LEVELS = 8


def times(schedule: Schedule, window: tuple[float, float] = WINDOW, levels: int = LEVELS) -> Time:
  """The times of (1), float64 [levels], as near to the window (low, high) in b / a as the schedule
  has them."""
  wanted = schedule.time_of_log_snr(-2 * np.log(np.geomspace(*window, levels)))
  return schedule.at(np.clip(wanted, schedule.first, schedule.last))


def unsteadiness(
  denoiser: Denoiser, x0: Array, at: Time, ids: Array, seed: int = 0, cond: Any = None
) -> Array:
  """Equation (1), [B]: large for what lies between modes.

  Args:
    denoiser: of the model.
    x0: items [B, ...], in the range of the model.
    at: of `times`.
    ids: numbers of the items [B], on which the noise depends.
    seed: of the noise.
    cond: passed to the denoiser.
  """
  keys = noise.sample_keys(seed, ids)

  def one(step_time):
    step, time = step_time
    eps = noise.at_step(keys, step, x0.shape[1:], x0.dtype).normal
    return denoiser(marginals.diffuse(x0, eps, time), time, cond).x0

  levels = jax.tree.map(lambda part: jnp.asarray(part, x0.dtype), at)
  found = jax.lax.map(one, (jnp.arange(len(at.t)), levels))
  return jnp.mean(jnp.var(found, 0), tuple(range(1, x0.ndim)))
