"""DPM-Solver++ multistep, arXiv 2211.01095: samplers/multistep.py with f = x_0 and u = lambda.

  (1) order 2   m_1 = gain / 2                                   "2M", algorithm 2; its SDE form
  (2) order 3   m_1 as (3) of multistep.py, half of its m_2      "3M", the authors' code
  (3) gain = a_s - a_t sqrt(b_s^2 - tau^2) / b_t, which is a_s (1 - e^{-h}) for the ODE (tau = 0)
      and a_s (1 - e^{-2h}) for the SDE, whose tau is the DDPM posterior deviation

"published" is what the authors run. Half of m_2 makes their 3M a method of order 2, on the Gaussian
with a third of 2M's error; "exact" integrates the polynomial and has order 3.
"""

import numpy as np

from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import marginals
from gmm_diffusion.samplers import multistep
from gmm_diffusion.samplers.base import Kernel
from gmm_diffusion.samplers.compensation import Compensation
from gmm_diffusion.types import StepGrid

SOLVERS = ('published', 'exact')


def _weights(
  grid: StepGrid, tau: np.ndarray, order: int, solver: str, lower_final: str
) -> np.ndarray:
  begin = multistep.half_log_snr(grid.a_t, grid.b_t)
  end = multistep.half_log_snr(grid.a_s, grid.b_s)
  gain = grid.a_s - grid.a_t * marginals.noise_weight(grid, tau) / grid.b_t

  def moments(n, k):
    if solver == 'published' and k == 2:
      return gain[n] * np.array([0.5])
    scale = [1, 0.5] if solver == 'published' else [1, 1]
    return grid.a_s[n] * multistep.exponential_moments(end[n] - begin[n], k - 1) * scale[: k - 1]

  # the authors lower the last orders only for fewer than 10 steps
  orders = multistep.log_snr_orders(grid, order, lower_final, source=len(grid.t) < 10)
  return multistep.weights(order, orders, begin, end, moments)


def dpmpp(
  order: int = 2,
  solver: str = 'published',
  lower_final: str = 'always',
  ratios: tuple[float, ...] = (),
  compensate: int = 2,
  extrapolate: bool = True,
) -> Kernel:
  """DPM-Solver++(kM) for the ODE.

  Args:
    order: 1 (DDIM, but for the last step), 2 or 3.
    solver: 'published' or 'exact'.
    lower_final: 'always', 'never' or 'source' (below 10 steps only, where 3M with large last steps
      can go wrong: on the grids leading and uniform at 10 steps it loses to DDIM); see
      multistep.log_snr_orders.
    ratios, compensate: see compensation.Compensation.
    extrapolate: the last step to clean data follows the line through the last two predictions, see
      there; it helps where that step is large, as on the grid trailing. False as the authors do.

  Raises:
    UserError: on other values.
  """
  multistep.check_order(order, 3)
  if solver not in SOLVERS:
    raise UserError(f'unknown solver {solver!r}; valid: {", ".join(SOLVERS)}')

  def coefficients(grid):
    tau = np.zeros_like(grid.t)
    return tau, _weights(grid, tau, order, solver, lower_final)

  moved = Compensation(tuple(ratios), compensate, extrapolate)
  return multistep.kernel(order, 'x0', coefficients, moved)


def dpmpp_sde(
  order: int = 2,
  lower_final: str = 'always',
  ratios: tuple[float, ...] = (),
  compensate: int = 2,
  extrapolate: bool = True,
) -> Kernel:
  """SDE-DPM-Solver++; order 1 (ancestral sampling, DDIM with eta = 1, but for the last step) or 2
  ("SDE 2M"), the other options as in `dpmpp`.
  """
  multistep.check_order(order, 2)

  def coefficients(grid):
    tau = marginals.posterior_std(grid, 1.0)
    return tau, _weights(grid, tau, order, 'published', lower_final)

  moved = Compensation(tuple(ratios), compensate, extrapolate)
  return multistep.kernel(order, 'x0', coefficients, moved, noisy=True)
