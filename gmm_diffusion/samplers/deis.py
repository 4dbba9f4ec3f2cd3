"""DEIS, arXiv 2204.13902, in the form of samplers/multistep.py with f = eps and u = t.

  (1) x_s / a_s = x_t / a_t + int eps d rho,  rho = b / a
  (2) m_i = a_s int_{rho_t}^{rho_s} r(rho)^i d rho,  r = (t(rho) - t) / (s - t)

"tAB": the polynomial is one in time, so the integral needs the schedule between the grid's times.
It is exact to rounding: Gauss-Legendre in rho between the schedule's own times, where t(rho) is
smooth also at clean data.
"""

import numpy as np

from gmm_diffusion.maths.schedules import Schedule
from gmm_diffusion.samplers import multistep
from gmm_diffusion.samplers.base import Kernel, require
from gmm_diffusion.samplers.compensation import Compensation

NODES, WEIGHTS = np.polynomial.legendre.leggauss(6)


def _moments(schedule: Schedule, t: float, s: float, count: int) -> np.ndarray:
  """Equation (2) over a_s for i = 1..count."""
  inside = schedule.training_times[(schedule.training_times < t) & (schedule.training_times > s)]
  knots = np.concatenate([[s], inside, [t]])
  rho = schedule.noise(knots) / schedule.signal(knots)
  half = np.diff(rho)[:, None] / 2
  nodes = (rho[:-1, None] + half * (1 + NODES)).ravel()
  r = (schedule.time_of_log_snr(-2 * np.log(nodes)) - t) / (s - t)
  return -(r ** np.arange(1, count + 1)[:, None]) @ (half * WEIGHTS).ravel()


def deis(
  order: int = 2,
  schedule: Schedule | None = None,
  ratios: tuple[float, ...] = (),
  compensate: int = 2,
  extrapolate: bool = True,
) -> Kernel:
  """tAB-DEIS.

  Args:
    order: 1 (DDIM, but for the last step) to 4; the source's tAB-r is order r + 1.
    schedule: the schedule of the grid.
    ratios, compensate: see compensation.Compensation.
    extrapolate: the last step to clean data follows the line through the last two predictions, see
      there; it helps where that step is large, as on the grid trailing. False as the authors do.

  Raises:
    UserError: on other orders, or without a schedule.
  """
  multistep.check_order(order, 4)
  require(schedule, 'deis')

  def coefficients(grid):
    orders = multistep.rising_orders(len(grid.t), order)
    moments = lambda n, k: grid.a_s[n] * _moments(schedule, grid.t[n], grid.s[n], k - 1)
    return np.zeros_like(grid.t), multistep.weights(order, orders, grid.t, grid.s, moments)

  moved = Compensation(tuple(ratios), compensate, extrapolate)
  return multistep.kernel(order, 'eps', coefficients, moved)
