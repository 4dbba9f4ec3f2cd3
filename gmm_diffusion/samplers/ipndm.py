"""iPNDM, arXiv 2202.09778 without its Runge-Kutta start: Adams-Bashforth on eps in rho = b / a.

  (1) x_s / a_s = x_t / a_t + (rho_s - rho_t) sum_{j=0}^{k-1} c_j eps_{n-j}

The coefficients c are those of equal steps, whatever the grid; the first steps take lower orders.
Because they add up to one, this is the form of samplers/multistep.py with f = eps and
w_j = a_s (rho_s - rho_t) c_j. Order 2 is DualFast, arXiv 2506.13058, with c = 1/2.
"""

import numpy as np

from gmm_diffusion.samplers import multistep
from gmm_diffusion.samplers.base import Kernel
from gmm_diffusion.samplers.compensation import Compensation

# c_1, c_2, ... of Adams-Bashforth of order 1, 2, ...; c_0 is what makes the sum one.
ADAMS_BASHFORTH = ((), (-1 / 2,), (-16 / 12, 5 / 12), (-59 / 24, 37 / 24, -9 / 24))


def ipndm(
  order: int = 4,
  ratios: tuple[float, ...] = (),
  compensate: int = 2,
  extrapolate: bool = True,
) -> Kernel:
  """iPNDM.

  Args:
    order: 1 (DDIM, but for the last step) to 4.
    ratios, compensate: see compensation.Compensation.
    extrapolate: the last step to clean data follows the line through the last two predictions, see
      there; it helps where that step is large, as on the grid trailing. False as the authors do.

  Raises:
    UserError: on other values.
  """
  multistep.check_order(order, 4)

  def coefficients(grid):
    w = np.zeros((len(grid.t), order - 1))
    for n, k in enumerate(multistep.rising_orders(len(grid.t), order)):
      if k > 1:
        change = grid.b_s[n] - grid.a_s[n] * grid.b_t[n] / grid.a_t[n]
        w[n, : k - 1] = change * np.array(ADAMS_BASHFORTH[k - 1])
    return np.zeros_like(grid.t), w

  moved = Compensation(tuple(ratios), compensate, extrapolate)
  return multistep.kernel(order, 'eps', coefficients, moved)
