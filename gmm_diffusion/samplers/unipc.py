"""UniPC, arXiv 2302.04867, in the form of samplers/multistep.py with f = x_0 and u = lambda.

  (1) predictor  x_s   = d_n + sum_{j=1}^{p-1} w_j (f_{n-j} - f_n)
  (2) corrector  x_n^c = d_{n-1} + c_0 (f_n - f_{n-1}) + sum_{j=1}^{p-1} c_j (f_{n-1-j} - f_{n-1})

where d_n is the DDIM step from the corrected x_n^c with f_n, and f_n the prediction at the
predicted x_n: the corrector costs no evaluation, and the last step has none. Weights solve (2) of
multistep.py with the exact moments (3); r = 1 for f_n in the corrector. So B(h) of the paper acts
only where the authors put rho = 1/2 instead of solving, which is m_1 = a_s B / 2: in the predictor
of order 2 and the corrector of order 1. B = h is "bh1", B = 1 - e^{-h} is "bh2". Both stay finite:
no polynomial reaches an infinite lambda.

With ratios this is DC-Solver, arXiv 2409.03755: g_n of compensation.py takes the place of f_n, but
for the first difference of (2), which has f_n itself.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import marginals
from gmm_diffusion.samplers import compensation, multistep
from gmm_diffusion.samplers.base import Kernel, Plan
from gmm_diffusion.samplers.compensation import Compensation
from gmm_diffusion.types import Array

B = {'bh1': lambda h: h, 'bh2': lambda h: -np.expm1(-h)}


class Row(NamedTuple):
  """w of (1), shape [order - 1], c of (2) for the state before this step, shape [order], and what
  moves f before it is used (compensation.py)."""

  predictor: Array
  corrector: Array
  moved: Array


class State(NamedTuple):
  """Predicted samples x [B, ...], d of the step that led here, and the last f, newest first."""

  x: Array
  plain: Array
  history: tuple[Array, ...]


def unipc(
  order: int = 2,
  bh: str = 'bh2',
  lower_final: str = 'always',
  ratios: tuple[float, ...] = (),
  compensate: int = 2,
  extrapolate: bool = True,
) -> Kernel:
  """UniPC-p, multistep, data prediction; of order p + 1 thanks to the corrector.

  Args:
    order: p = 1, 2 or 3.
    bh: 'bh1' or 'bh2'.
    lower_final: 'always' (as the 'source') or 'never'; see multistep.log_snr_orders.
    ratios, compensate: see compensation.Compensation.
    extrapolate: the last step to clean data follows the line through the last two predictions, see
      there; it helps where that step is large, as on the grid trailing. False as the authors do.

  Raises:
    UserError: on other values.
  """
  multistep.check_order(order, 3)
  moved = Compensation(tuple(ratios), compensate, extrapolate)
  compensation.check(moved)
  kept = max(order, moved.reach)
  if bh not in B:
    raise UserError(f'unknown bh {bh!r}; valid: {", ".join(B)}')

  def plan(grid, shape):
    del shape
    begin = multistep.half_log_snr(grid.a_t, grid.b_t)
    end = multistep.half_log_snr(grid.a_s, grid.b_s)
    orders = multistep.log_snr_orders(grid, order, lower_final, source=True)

    def moments(n, count, simple):
      h = end[n] - begin[n]
      return grid.a_s[n] * (
        B[bh](h) * np.array([0.5]) if simple else multistep.exponential_moments(h, count)
      )

    predictor = multistep.weights(order, orders, begin, end, lambda n, k: moments(n, k - 1, k == 2))
    corrector = np.zeros((len(orders), order))
    for n, k in enumerate(orders[:-1]):
      if np.isfinite(end[n] - begin[n]):
        r = (begin[n - k + 1 : n][::-1] - begin[n]) / (end[n] - begin[n])
        corrector[n + 1, :k] = multistep.solve(np.append(1.0, r), moments(n, k, k == 1))
    return Plan(Row(predictor, corrector, compensation.weights(grid, moved))), []

  def init(x):
    return State(x, x, (jnp.zeros_like(x),) * kept)

  def step(state, row, extra, shared, denoise, noise):
    del shared, noise
    f = denoise(state.x, row.now).x0
    corrected = state.plain + multistep.correction(
      extra.corrector, (f, *state.history[1:order]), state.history[0]
    )
    if moved.reach:
      f = compensation.apply(extra.moved, f, state.history)
    plain = marginals.reverse_mean(marginals.from_x0(corrected, f, row.now), row.a_s, row.b_s)
    x = plain + multistep.correction(extra.predictor, state.history[: order - 1], f)
    return State(x, plain, (f, *state.history)[:kept]), ()

  return Kernel(plan, init, step)
