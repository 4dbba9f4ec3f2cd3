"""Linear multistep kernels: a DDIM step plus weighted differences of earlier predictions.

The probability-flow ODE is dx = x_0 da + eps db. Held constant over a step, the prediction gives
DDIM; a method of order k lets the prediction f (x_0 or eps) follow the polynomial through its last
k values:

  (1) x_s = a_s x_0 + b_s eps + sum_{j=1}^{k-1} w_j (f_{n-j} - f_n)
  (2) sum_{j=1}^{k-1} r_j^i w_j = m_i,  i = 1..k-1,    r_j = (u_{n-j} - u_n) / (u_s - u_n)
  (3) m_i = a_s int_0^1 h e^{-h (1 - r)} r^i dr        f = x_0, u = lambda, h = lambda_s - lambda_t

u is the variable of the polynomial, m_i the integral of r^i over the step, lambda = log(a / b).
With m_i from (3), up to factors the phi-functions of exponential integrators, (2) is exact for
polynomials in lambda. All terms are differences to f_n, so the first order is DDIM itself, also
where lambda is infinite.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import marginals
from gmm_diffusion.samplers import compensation
from gmm_diffusion.samplers.base import Kernel, Plan
from gmm_diffusion.samplers.compensation import Compensation
from gmm_diffusion.types import Array, Prediction, StepGrid

# Gauss-Legendre on [0, 1]; exact to rounding for e^{-h} r^i up to h = 30, a step over all of a
# schedule.
NODES, WEIGHTS = (0.5 * values for values in np.polynomial.legendre.leggauss(40))
NODES = NODES + 0.5
LOWER_FINAL = ('source', 'always', 'never')


class Row(NamedTuple):
  """weight of eps in the mean, deviation of the added noise, w of (1), shape [order - 1], and what
  moves the prediction before it is used (compensation.py)."""

  weight: Array
  std: Array
  differences: Array
  moved: Array


class State(NamedTuple):
  """Samples x [B, ...], the last order - 1 values of f, and those of x_0 that move the next one;
  newest first."""

  x: Array
  history: tuple[Array, ...]
  clean: tuple[Array, ...]


def check_order(order: int, most: int) -> None:
  if not 1 <= order <= most:
    raise UserError(f'order must be in 1..{most} for this sampler, got {order}')


def half_log_snr(a: Array, b: Array) -> np.ndarray:
  """lambda = log(a / b), infinite at pure noise and at clean data."""
  with np.errstate(divide='ignore'):
    return np.log(a) - np.log(b)


def rising_orders(steps: int, order: int) -> np.ndarray:
  """1, 2, ..., order, order, ...: as many values as there are, shape [steps]."""
  return np.minimum(order, np.arange(steps) + 1)


def log_snr_orders(grid: StepGrid, order: int, lower_final: str, source: bool) -> np.ndarray:
  """The order of every step of a method in lambda, shape [N].

  A step that ends at clean data is of order 1 in any case, since no polynomial reaches lambda =
  inf. It counts as the last one, so lowering then acts on the steps before it: on none with order
  2.

  Args:
    grid: N steps.
    order: the largest order.
    lower_final: whether the order falls to 1 towards the last step: 'always', 'never', or as the
      method's 'source' does.
    source: what 'source' means for this grid.

  Raises:
    UserError: on an unknown lower_final.
  """
  if lower_final not in LOWER_FINAL:
    raise UserError(f'unknown lower_final {lower_final!r}; valid: {", ".join(LOWER_FINAL)}')
  steps = len(grid.t)
  k = rising_orders(steps, order)
  if lower_final == 'always' or (lower_final == 'source' and source):
    k = np.minimum(k, steps - np.arange(steps))
  if grid.a_t[0] == 0:  # no polynomial goes through lambda = -inf
    k = np.minimum(k, np.arange(steps))
  return np.where(grid.b_s > 0, np.maximum(k, 1), 1)  # nor to lambda = inf, where x = a_s x_0


def exponential_moments(h: float, count: int) -> np.ndarray:
  """Equation (3) over a_s for i = 1..count."""
  powers = NODES ** np.arange(1, count + 1)[:, None]
  return powers @ (WEIGHTS * h * np.exp(-h * (1 - NODES)))


def solve(positions: Array, moments: Array) -> np.ndarray:
  """Equation (2): w [k - 1] for r_1..r_{k-1} and m_1..m_{k-1}."""
  return np.linalg.solve(positions ** np.arange(1, len(positions) + 1)[:, None], moments)


def weights(
  order: int, orders: Array, u: Array, u_s: Array, moments: Callable[[int, int], Array]
) -> np.ndarray:
  """w of every step, shape [N, order - 1], zero beyond the order of the step.

  Args:
    order: the largest order.
    orders: order k of every step, [N].
    u: the polynomial's variable at the beginning of every step, [N]; u_s at its end.
    moments: (step n, k) -> m_1..m_{k-1}.
  """
  w = np.zeros((len(u), order - 1))
  for n, k in enumerate(orders):
    if k > 1:
      w[n, : k - 1] = solve((u[n - k + 1 : n][::-1] - u[n]) / (u_s[n] - u[n]), moments(n, k))
  return w


def correction(w: Array, values: tuple[Array, ...], reference: Array) -> Array:
  """The sum in (1)."""
  return sum(
    (w[j] * (value - reference) for j, value in enumerate(values)), jnp.zeros_like(reference)
  )


def kernel(
  order: int,
  field: str,
  coefficients: Callable[[StepGrid], tuple[np.ndarray, np.ndarray]],
  moved: Compensation,
  noisy: bool = False,
) -> Kernel:
  """Kernel of equation (1), or with added noise of (1) with sqrt(b_s^2 - tau^2) for b_s.

  Args:
    order: the largest order.
    field: f, 'x0' or 'eps'.
    coefficients: grid -> tau [N] and w [N, order - 1].
    moved: what is done to predictions before they are used.
    noisy: whether tau is more than zero.

  Raises:
    UserError: on bad values of `moved`.
  """
  compensation.check(moved)

  def plan(grid, shape):
    del shape
    tau, w = coefficients(grid)
    if compensation.ends_ahead(grid, moved):
      w[-1] = 0  # the end is x_0 itself
    weight = marginals.noise_weight(grid, tau)
    return Plan(Row(weight, tau, w, compensation.weights(grid, moved))), []

  def init(x):
    zero = jnp.zeros_like(x)
    return State(x, (zero,) * (order - 1), (zero,) * moved.reach)

  def step(state, row, extra, shared, denoise, noise):
    del shared
    prediction = denoise(state.x, row.now)
    if moved.reach:
      x0 = compensation.apply(extra.moved, prediction.x0, state.clean)
      away = marginals.from_x0(jnp.zeros_like(x0), x0 - prediction.x0, row.now)
      prediction = Prediction(x0, prediction.eps + away.eps)  # its own eps where nothing moves
    f = getattr(prediction, field)
    x = marginals.reverse_mean(prediction, row.a_s, extra.weight) + correction(
      extra.differences, state.history, f
    )
    if noisy:
      x = x + extra.std * noise.normal
    clean = (prediction.x0, *state.clean)[: moved.reach]
    return State(x, (f, *state.history)[: order - 1], clean), ()

  return Kernel(plan, init, step)
