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


def heun(churn: float = 0.0, schedule: Schedule | None = None) -> Kernel:
  """Heun's method; churn > 0 adds noise to every step but those that would leave the schedule, and
  needs the schedule."""
  return churned(churn, 0.0, np.inf, 1.0, schedule)


def churned(
  churn: float, low: float, high: float, inflate: float, schedule: Schedule | None
) -> Kernel:
  """Algorithm 2 with S_churn, S_min, S_max, S_noise; raises UserError on a negative churn."""
  if churn < 0:
    raise UserError(f'churn must be >= 0, got {churn:g}')
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
      use = (sigma >= low) & (sigma <= high) & (raised < most)
      raised, sigma = np.where(use, raised, 0), np.where(use, sigma, 0)
      at = schedule.at(schedule.time_of_log_snr(-2 * np.log(np.where(use, raised, 1))))
      start = Time(*(np.where(use, new, old) for new, old in zip(at, grid.now)))
    std = inflate * start.a * np.sqrt(raised**2 - sigma**2)
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
