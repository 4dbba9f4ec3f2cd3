"""Time-shift sampler, arXiv 2305.15583 (TS-DPM) on DDIM.

  (1) x_s' = a_s' x_0 + b_s' eps
  (2) s' = argmin |b_s'^2 - Var(x_t)| over the schedule's times within half a window of s

Var(x_t) is the unbiased variance over the elements of one sample, so every sample has its own s'.
As in the source the next evaluation is at s, not s', the first step is not shifted, and neither are
steps to one of the cleanest times.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import marginals
from gmm_diffusion.maths.schedules import Schedule
from gmm_diffusion.samplers.base import Kernel, Plan, State, require
from gmm_diffusion.types import Array


class Row(NamedTuple):
  """Levels of the times that s' may be, shape [window]; all alike where there is no choice."""

  a: Array
  b: Array


def time_shift(
  shift_window: int = 20, shift_cutoff: int = 300, schedule: Schedule | None = None
) -> Kernel:
  """DDIM with shifted targets.

  Args:
    shift_window: s' is at most shift_window // 2 of the schedule's training times away from s.
    shift_cutoff: no shift where s is one of the first shift_cutoff + 1 training times (the
      cleanest).
    schedule: the schedule of the grid.

  Raises:
    UserError: on negative numbers, without a schedule, or (from plan) for samples of one element.
  """
  if shift_window < 0 or shift_cutoff < 0:
    raise UserError(
      f'shift_window and shift_cutoff must be >= 0, got {shift_window} and {shift_cutoff}'
    )
  require(schedule, 'time_shift')

  def plan(grid, shape):
    if np.prod(shape) < 2:
      raise UserError(
        f'time_shift measures the variance over the elements of a sample: it needs at least 2, got '
        f'shape {shape}'
      )
    times = schedule.training_times
    nearest = np.abs(times - grid.s[:, None]).argmin(1)
    choice = nearest[:, None] + np.arange(-(shift_window // 2), shift_window // 2 + 1)
    levels = schedule.at(times[np.clip(choice, 0, len(times) - 1)])
    use = (nearest > shift_cutoff) & (np.arange(len(nearest)) > 0)
    pick = lambda level, plain: np.where(use[:, None], level, plain[:, None])
    return Plan(Row(pick(levels.a, grid.a_s), pick(levels.b, grid.b_s))), []

  def step(state, row, extra, shared, denoise, noise):
    del shared, noise
    prediction = denoise(state.x, row.now)
    variance = jnp.var(state.x.reshape(len(state.x), -1), axis=1, ddof=1)
    index = jnp.argmin(jnp.abs(extra.b[None] ** 2 - variance[:, None]), axis=1)
    return State(marginals.reverse_mean(prediction, extra.a[index], extra.b[index])), ()

  return Kernel(plan, State, step)
