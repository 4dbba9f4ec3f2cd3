"""Heun's method, arXiv 2206.00364 algorithms 1 and 2, for every schedule.

The probability-flow ODE is dx = x_0 da + eps db. Its trapezoidal rule, with the prediction' at the
end x^ = a_s x_0 + b_s eps of a DDIM step, which is also a_s x_0' + b_s eps', is

  (1) x_s = x^ + (a_s - a_t) (x_0' - x_0) / 2 + (b_s - b_t) (eps' - eps) / 2
  (2)     = x^ + (a_t b_s / a_s - b_t) (eps' - eps) / 2

For a = 1 this is the source's method, for the rectified flow Heun's method in t; it is finite at
pure noise, where b / a is not. A step that ends at b_s = 0 is the Euler (DDIM) step alone, so N
steps cost 2N - 1 evaluations there.

  (3) churn: first raise sigma = b / a by gamma,
      x~ = (a~ / a) x + a~ S_noise sqrt(sigma~^2 - sigma^2) z
"""

from typing import NamedTuple

import numpy as np

from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import marginals
from gmm_diffusion.maths.schedules import Schedule
from gmm_diffusion.samplers.base import Kernel, Plan, State, require
from gmm_diffusion.types import Array, Time


class Row(NamedTuple):
  """Time at which the step starts after churning, the factors of x and z in (3), and of eps' - eps
  in (2)."""

  start: Time
  keep: Array
  std: Array
  half: Array


def heun(
  churn: float = 0.0,
  churn_min: float = 0.0,
  churn_max: float = 1e6,
  churn_noise: float = 1.0,
  schedule: Schedule | None = None,
) -> Kernel:
  """Heun's method, with noise added before a step where churn > 0.

  Args:
    churn: S_churn of the source; each step raises sigma by min(churn / N, sqrt(2) - 1), but for
      steps that would leave the schedule.
    churn_min: S_min; only steps that start at sigma = b / a from it on add noise.
    churn_max: S_max; and only those up to it.
    churn_noise: S_noise, deviation of the noise over what keeps the marginals.
    schedule: the schedule of the grid; churn needs it.

  Raises:
    UserError: on negative numbers, or on churn without a schedule.
  """
  for name, value in dict(
    churn=churn, churn_min=churn_min, churn_max=churn_max, churn_noise=churn_noise
  ).items():
    if not value >= 0:
      raise UserError(f'{name} must be >= 0, got {value:g}')
  if churn:
    require(schedule, 'heun with churn')

  def plan(grid, shape):
    del shape
    start, sigma, raised = grid.now, np.zeros_like(grid.t), np.zeros_like(grid.t)
    if churn:
      with np.errstate(divide='ignore'):
        sigma, most = (
          grid.b_t / grid.a_t,
          schedule.noise(schedule.last) / schedule.signal(schedule.last),
        )
      gamma = min(churn / len(grid.t), 2**0.5 - 1)
      raised = sigma * (1 + gamma)
      use = (sigma >= churn_min) & (sigma <= churn_max) & (raised < most)
      raised, sigma = np.where(use, raised, 0), np.where(use, sigma, 0)
      at = schedule.at(schedule.time_of_log_snr(-2 * np.log(np.where(use, raised, 1))))
      start = Time(*(np.where(use, new, old) for new, old in zip(at, grid.now)))
    std = churn_noise * start.a * np.sqrt(raised**2 - sigma**2)
    keep = np.divide(start.a, grid.a_t, out=np.ones_like(start.a), where=raised > 0)
    half = np.where(grid.b_s > 0, 0.5 * (start.a * grid.b_s / grid.a_s - start.b), 0)
    return Plan(Row(start, keep, std, half)), []

  def step(state, row, extra, shared, denoise, noise):
    del shared
    x = extra.keep * state.x + extra.std * noise.normal if churn else state.x
    first = denoise(x, extra.start)
    euler = marginals.reverse_mean(first, row.a_s, row.b_s)
    second = denoise(euler, row.next, when=row.b_s > 0)
    return State(euler + extra.half * (second.eps - first.eps)), ()

  return Kernel(plan, State, step)
