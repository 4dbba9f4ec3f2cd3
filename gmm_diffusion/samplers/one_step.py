"""One call: x_0 as predicted at one noise level, for networks from --mode=distill.

On more than one step each prediction receives new noise, x_s = a_s x_0 + b_s z, and is made again
[consistency models, 2303.01469, algorithm 1]. A trained network that was not distilled gives the
blurred mean of what it was trained on.
"""

import numpy as np

from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import grids
from gmm_diffusion.maths.schedules import Schedule
from gmm_diffusion.samplers import gaussian
from gmm_diffusion.samplers.base import Kernel
from gmm_diffusion.types import StepGrid

LEVEL = 5.0


def one_step(level: float = LEVEL) -> Kernel:
  """The kernel; `level` is b / a where the call is made, see `grid`."""
  if not level > 0:
    raise UserError(f'sampler.level must be > 0, got {level:g}')
  return gaussian.rfim(1.0)  # tau = b_s: nothing of the old noise stays


def grid(schedule: Schedule, level: float = LEVEL) -> StepGrid:
  """The one step, from the time of the schedule whose b / a is nearest to `level` to clean data."""
  t = np.clip(schedule.time_of_log_snr(-2 * np.log(level)), schedule.first, schedule.last)
  return grids.from_times(schedule, [float(np.round(t) if schedule.discrete else t)])
