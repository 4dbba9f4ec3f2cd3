"""A sampler as a table of numbers, and any linear sampler's table.

One row for each call of the denoiser, in predictions m_j of x_0 at the states y_j it was asked at,

  (1) y_{n+1} = A_n y_n + sum_{j<=n} B_nj m_j + C_n z_n,   y_0 = x_T, y_N the sample

Every deterministic linear sampler has exactly one such table [BNS, arXiv 2403.01329, prop. 3.1]:
its states are combinations of x_T and of what the denoiser said. A number may also be one for each
band of an orthonormal transform (maths/bands.py). Unrolled, with the same rows,

  (2) y_n = X_n x_T + sum_j M_nj m_j + sum_i Z_ni z_i

What a table keeps: with the same prediction x_0 everywhere, (2) is a draw of q(y_n | x_0) where

  (3) X_n a_0 + sum_j M_nj = a_n             the mean
  (4) X_n^2 b_0^2 + sum_i Z_ni^2 = b_n^2     the variance
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gmm_diffusion.errors import UserError
from gmm_diffusion.maths.bands import Bands
from gmm_diffusion.maths.noise import StepNoise
from gmm_diffusion.samplers.base import Kernel, Plan
from gmm_diffusion.types import Array, Prediction, StepGrid, Time

SCALE = 1000.0  # of the vectors that show whether a sampler is linear


class Table(NamedTuple):
  """The rows of (1), float64, for N calls and R bands.

  Attributes:
    time: when the denoiser is asked, [N] each; may differ from the level of the state.
    a, b: the levels that the states y_0..y_N are meant to have, [N + 1].
    keep: A, [N, R].
    weights: B, [N, N, R], zero for j > n.
    std: C, [N, R].
  """

  time: Time
  a: np.ndarray
  b: np.ndarray
  keep: np.ndarray
  weights: np.ndarray
  std: np.ndarray


class Row(NamedTuple):
  """One row of (1): time of the call, A, the weights of m_n, m_{n-1}, ..., and C."""

  time: Time
  keep: Array
  weights: Array
  std: Array


class State(NamedTuple):
  """Samples x [B, ...] and the predictions before, newest first (their coefficients in bands)."""

  x: Array
  history: tuple[Array, ...]


def grid_of(table: Table) -> StepGrid:
  """The steps of a table, N rows."""
  t, after = table.time.t, np.append(table.time.t[1:], np.nan)
  return StepGrid(t, after, table.a[:-1], table.b[:-1], table.a[1:], table.b[1:])


def width_of(table: Table) -> int:
  """How many predictions a step needs at most, its own included."""
  used = [n - j for n in range(len(table.keep)) for j in range(n) if table.weights[n, j].any()]
  return 1 + max(used, default=0)


def rows(table: Table, width: int) -> Row:
  """The table as the rows of `linear`, each with the weights of its last `width` predictions."""
  steps, count = table.keep.shape
  recent = np.zeros((steps, width, count))  # of m_{n-i}
  for n in range(steps):
    for i in range(min(width, n + 1)):
      recent[n, i] = table.weights[n, n - i]
  return Row(table.time, table.keep, recent, table.std)


def linear(table: Table, bands: Bands | None = None) -> Kernel:
  """The kernel of equation (1), on the steps of `grid_of(table)`.

  Args:
    table: N rows.
    bands: what the R numbers of an entry belong to; None where R = 1.

  Raises:
    UserError: if the table has more than one band and `bands` is not theirs, or numbers that are
      not finite; from plan, for a grid of another length.
  """
  steps, count = table.keep.shape
  if count != (len(bands.hats) if bands else 1):
    raise UserError(f'the table has {count} bands, the transform {len(bands.hats) if bands else 1}')
  if not all(np.all(np.isfinite(part)) for part in jax.tree.leaves(table)):
    raise UserError('the table has numbers that are not finite')
  width = width_of(table)

  def plan(grid, shape):
    del shape
    if len(grid.t) != steps:
      raise UserError(f'the table has {steps} rows, the grid {len(grid.t)} steps')
    return Plan(rows(table, width)), []

  return form(width, bool(np.any(table.std)), bands)._replace(plan=plan)


def form(width: int, noisy: bool, bands: Bands | None = None) -> Kernel:
  """What all tables of a width have in common; without noise where it is not `noisy`. Its plan is
  Plan(rows(table, width)), which may come as an argument of what is compiled."""
  turn = bands.analyse if bands else lambda x: x
  back = bands.synthesise if bands else lambda x: x

  def init(x):
    return State(x, (jnp.zeros_like(x),) * (width - 1))

  def step(state, row, extra, shared, denoise, noise):
    del row, shared
    number = lambda value: bands.spread(value, state.x.ndim) if bands else value[0]
    known = (turn(denoise(state.x, extra.time).x0), *state.history)
    x = number(extra.keep) * turn(state.x)
    x = x + sum(number(extra.weights[i]) * m for i, m in enumerate(known))
    if noisy:
      x = x + number(extra.std) * turn(noise.normal)
    return State(back(x), known[: width - 1]), ()

  def plan(grid, shape):
    raise NotImplementedError('a form has no table; its rows come as arguments')

  return Kernel(plan, init, step)


def embed(kernel: Kernel, grid: StepGrid, shape: tuple[int, ...]) -> Table:
  """The table of a sampler, read off by asking it about unit vectors; any linear kernel.

  Every step is run on vectors of coefficients in the basis (x_T, m_0, m_1, ..., z_0, z_1, ...): the
  denoiser's n-th prediction is the unit vector of m_n, and step n's noise that of z_n.

  Args:
    kernel: the sampler.
    grid: its steps.
    shape: of the samples; the variance of some kernels depends on it.

  Returns:
    Table with one band and as many rows as the sampler makes calls.

  Raises:
    UserError: the sampler is not linear, or changes x_T before the first call.
  """
  plan, _ = kernel.plan(grid, shape)
  try:
    states, times = _probed(kernel, grid, plan, 1.0)
    scaled, _ = _probed(kernel, grid, plan, SCALE)
  except (TypeError, ValueError) as error:  # it looks at the shape of samples
    raise UserError('this sampler is not linear in its predictions, so it has no table') from error
  if scaled.shape != states.shape or not np.allclose(scaled, SCALE * states, rtol=1e-9):
    raise UserError('this sampler is not linear in its predictions, so it has no table')
  calls, most = len(times), (states.shape[1] - 1) // 2
  x_T, m, z = states[:, 0], states[:, 1 : 1 + calls], states[:, 1 + most :]
  if x_T[0] != 1 or np.abs(states[0, 1:]).max() > 0:
    raise UserError('this sampler changes x_T before its first call, so it has no table')
  time = Time(*np.array(times).T)
  a, b = np.append(time.a, grid.a_s[-1]), np.append(time.b, grid.b_s[-1])
  return rolled(time, a, b, x_T, m, z)


def _probed(kernel, grid, plan, scale) -> tuple[np.ndarray, list[tuple[float, float, float]]]:
  """The states at every call and at the end as coefficients of the basis, and times of the
  calls."""
  steps = len(grid.t)
  most = 2 * steps  # room for the calls
  size = 1 + 2 * most
  unit = lambda i: jnp.asarray(scale * (np.arange(size) == i)[None])
  asked: list[np.ndarray] = []
  times: list[tuple[float, float, float]] = []

  def denoise(x, time, when=True):
    if not bool(when):
      return Prediction(jnp.zeros_like(x), jnp.zeros_like(x))
    m = unit(1 + len(asked))
    asked.append(np.asarray(x[0]))
    times.append((float(time.t), float(time.a), float(time.b)))
    return Prediction(m, (x - time.a * m) / time.b)

  with jax.enable_x64(True), jax.default_device(_host()):
    state = kernel.init(unit(0))
    for n in range(steps):
      row, extra = jax.tree.map(lambda leaf: np.asarray(leaf)[n], (grid, plan.rows))
      noise = StepNoise(unit(1 + most + n), jnp.full(1, 0.5))
      state, _ = kernel.step(state, row, extra, plan.shared, denoise, noise)
    asked.append(np.asarray(state.x[0]))
  return np.stack(asked), times


def _host():
  """The CPU, where single operations are fastest; None where JAX was told to use none."""
  try:
    return jax.local_devices(backend='cpu')[0]
  except RuntimeError:
    return None


def rolled(
  time: Time, a: np.ndarray, b: np.ndarray, x_T: np.ndarray, m: np.ndarray, z: np.ndarray
) -> Table:
  """Equation (2) -> (1) for one band: X [N + 1], M [N + 1, N] and Z [N + 1, any number of noises].

  Raises:
    UserError: more than one noise comes in between two calls.
  """
  calls = len(time.t)
  keep = np.divide(x_T[1:], x_T[:-1], out=np.zeros(calls), where=x_T[:-1] != 0)
  weights = m[1:] - keep[:, None] * m[:-1]
  added = z[1:] - keep[:, None] * z[:-1]
  scale = np.abs(z).max() or 1.0
  if (np.abs(added) > 1e-9 * scale).sum(1).max(initial=0) > 1:
    raise UserError('this sampler adds more than one noise between two calls, so it has no table')
  std = np.abs(added).max(1, initial=0.0) * (np.abs(added).max(1, initial=0.0) > 1e-12 * scale)
  return Table(time, a, b, keep[:, None], np.tril(weights)[..., None], std[:, None])


def unrolled(table: Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """X [N + 1, R], M [N + 1, N, R] and Z [N + 1, N, R] of equation (2)."""
  steps, count = table.keep.shape
  X, M, Z = np.ones((1, count)), np.zeros((1, steps, count)), np.zeros((1, steps, count))
  for n in range(steps):
    own = np.zeros((steps, count))
    own[n] = table.std[n]
    X = np.append(X, [table.keep[n] * X[-1]], 0)
    M = np.append(M, [table.keep[n] * M[-1] + table.weights[n]], 0)
    Z = np.append(Z, [table.keep[n] * Z[-1] + own], 0)
  return X, M, Z


def consistency(table: Table) -> list[dict[str, Any]]:
  """How far every state is from (3) and (4): one dict for each of y_1..y_N, per band [R].

  'mean' is the left side of (3) minus the right, 'variance' that of (4); a state whose two are zero
  is a draw of q(y_n | x_0) wherever the denoiser knows x_0.
  """
  X, M, Z = unrolled(table)
  mean = X * table.a[0] + M.sum(1) - table.a[:, None]
  variance = X**2 * table.b[0] ** 2 + (Z**2).sum(1) - table.b[:, None] ** 2
  return [{'call': n, 'mean': mean[n], 'variance': variance[n]} for n in range(1, len(mean))]
