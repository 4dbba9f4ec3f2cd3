"""Tier 1: the rows of a table in closed form, from forward calls alone.

Step n of a table is fitted to targets X of the states that it should reach, by weighted least
squares over samples i and coefficients k, each band r with its own numbers:

  (1) min sum_ik |X_ik - sum_r h_r(k) (A_r y_ik + sum_{j<=n} B_jr m_jik)|^2,  ridge to the old row
  (2) C_r^2 = mean of what (1) leaves, in the band

which is the maximum of the likelihood of X under N(A y + sum B m, C^2), in A, B and C together.
The next step is fitted at the states that the fitted steps reach. Targets:

  coupled  the state of a fine sampler from the same x_T: takes back drift
  local    the end of a fine sampler from the table's own state
  joint    x_s of the chain q(x_t | x_s) from an item of the data; the rows then have noise

Regression to a conditional mean loses variance. For the first two, `gain` multiplies each row, band
by band, so that the states have the variance of their targets.
"""

from typing import Any, NamedTuple

import numpy as np

from gmm_diffusion.maths import bands as bands_lib
from gmm_diffusion.maths import grids
from gmm_diffusion.maths.bands import Bands
from gmm_diffusion.samplers.linear import Table
from gmm_diffusion.tune.race import Candidate
from gmm_diffusion.tune.subject import Subject
from gmm_diffusion.types import Time

TEACHER: tuple[str, dict[str, Any]] = ('dpmpp', {'order': 3, 'lower_final': 'always'})


class Choice(NamedTuple):
  """What is fitted: coupled, local or joint; R; the weight of the row before; whether with gain."""

  target: str = 'coupled'
  bands: int = 1
  ridge: float = 1e-3
  gain: bool = True

  def __str__(self) -> str:
    words = f'{self.target} fit, {self.bands} band{"s" * (self.bands > 1)}, ridge {self.ridge:g}'
    return words + ', gain' * self.gain


def fine_times(subject: Subject, t: np.ndarray, each: int) -> np.ndarray:
  """Times through t with `each` steps for each of its own, even in log-SNR, the last step to the
  least noisy time among them."""
  level = subject.schedule.log_snr(np.append(t, subject.schedule.first))
  level[0] = max(level[0], -30.0)
  out = []
  for n in range(len(t)):
    inner = np.linspace(level[n], level[n + 1], each + 1)[1:-1]
    out += [t[n], *subject.schedule.time_of_log_snr(inner)]
  return np.array(out)


def _teacher(subject, table, each):
  """(fine grid, index of each of the table's states in its path)."""
  t = fine_times(subject, table.time.t, each)
  keep = np.append(True, np.diff(t) < -1e-9)
  if subject.whole_times:
    t = np.round(t)
    keep = np.append(True, np.diff(t) < 0)
  at = np.append(np.cumsum(keep)[::each] - 1, keep.sum())
  return grids.from_times(subject.schedule, t[keep]), at


def targets(subject: Subject, table: Table, x: np.ndarray, ids: np.ndarray, each: int = 12):
  """States y_1..y_N of the fine sampler from x_T, [N, n, *shape]."""
  grid, at = _teacher(subject, table, each)
  return subject.path(*TEACHER, grid, x, ids)[at[1:]]


def chain(table: Table, x0: np.ndarray, seed: int) -> np.ndarray:
  """States y_0..y_N [N + 1, n, *shape] of items of the data: a draw of q along the table's levels,
  noise added from each to the one before."""
  random = np.random.Generator(np.random.SFC64(seed))
  x, out = np.asarray(x0, np.float32), []
  for n in range(len(table.a) - 1, -1, -1):
    before = (1.0, 0.0) if n == len(table.a) - 1 else (table.a[n + 1], table.b[n + 1])
    ratio = table.a[n] / before[0]
    std = np.sqrt(max(table.b[n] ** 2 - (ratio * before[1]) ** 2, 0))
    noise = random.standard_normal(x.shape, np.float32)
    x = np.float32(ratio) * x + np.float32(std) * noise
    out.append(x)
  return np.stack(out[::-1])


def fit(
  subject: Subject,
  start: Candidate,
  choice: Choice,
  ids: np.ndarray,
  seed: int,
  known: np.ndarray,
  items: np.ndarray,
  labels: np.ndarray,
) -> tuple[Candidate, np.ndarray]:
  """A table with all earlier predictions, fitted step by step, and the last states [n, *shape]:
  for other targets than 'joint' those are its samples with this noise.

  Args:
    subject: the denoiser.
    start: whose times and rows are the start, with one band.
    choice: see Choice.
    ids, seed: of the noise, [n].
    known: for 'coupled', what `targets` says of the same noise; else not used.
    items, labels: for 'joint', clean data [n, *shape] and what the denoiser is given with them,
      [n]; else not used.
  """
  bands = bands_lib.make(subject.shape, choice.bands)
  table = widened(start.table, choice.bands)
  steps, noisy = len(table.keep), choice.target == 'joint'
  path = chain(table, items, seed) if noisy else known
  y = path[0] if noisy else subject.start(table.b[0], seed, ids)
  labels = labels if noisy else subject.labels(ids)
  keep, weights, std = table.keep.copy(), table.weights.copy(), np.zeros_like(table.std)
  history: list[np.ndarray] = []  # coefficients of m_n, ..., m_0
  turn = lambda x: np.asarray(bands.analyse(x), np.float64).reshape(
    len(x), *bands.hats.shape[1:], -1
  )
  for n in range(steps):
    time = Time(*(part[n] for part in table.time))
    history.insert(0, turn(subject.predict(y, time, labels)))
    goal = path[n + 1] if noisy else path[n]
    if choice.target == 'local':
      goal = _ahead(subject, table, y, n, ids)
    known_parts = [turn(y), *history]
    before = np.stack([keep[n], *weights[n, n::-1]])
    rows, left, gain = _regression(known_parts, turn(goal), bands, before, choice.ridge)
    if choice.gain and not noisy:
      rows = rows * gain
    keep[n], weights[n, n::-1] = rows[0], rows[1:]
    if noisy:
      std[n] = left * (n < steps - 1)
      y = path[n + 1]
    else:
      field = np.tensordot(rows, bands.hats, 1)[:, None, ..., None]
      fitted = sum(number * part for number, part in zip(field, known_parts, strict=True))
      y = np.asarray(bands.synthesise(fitted.reshape(y.shape).astype(np.float32)))
  made = table._replace(keep=keep, weights=weights, std=std)
  return Candidate('', (), f'{choice} from {start}', made, choice.bands), y


def widened(table: Table, count: int) -> Table:
  """A table of one band as one of `count` equal bands."""
  repeat = lambda part: np.repeat(part, count, axis=-1)
  return table._replace(
    keep=repeat(table.keep), weights=repeat(table.weights), std=repeat(table.std)
  )


def _ahead(subject, table, y, n, ids, each=12):
  """The end of a fine sampler over step n from the table's own state."""
  grid, at = _teacher(subject, table, each)
  part = type(grid)(*(field[at[n] : at[n + 1]] for field in grid))
  return subject.path(*TEACHER, part, y, ids)[-1]


def _regression(
  parts: list[np.ndarray], goal: np.ndarray, bands: Bands, before: np.ndarray, ridge: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(1) and (2): numbers [P, R], C [R], and the gain [R] that restores the variance.

  Args:
    parts: P arrays of coefficients [n, *sides, channels].
    goal: the same of X.
    before: the row before, [P, R].
    ridge: its weight, relative to the squares of each part.
  """
  count, K = len(bands.hats), int(np.prod(bands.hats.shape[1:]))
  hats = bands.hats.reshape(count, K)
  flat = lambda x: np.moveaxis(x.reshape(len(x), K, -1), 1, 0).reshape(K, -1)  # [K, n channels]
  u = np.stack([flat(part) for part in parts], 1)  # [K, P, n channels]
  X = flat(goal)
  gram, cross = u @ np.swapaxes(u, 1, 2), u @ X[..., None]
  P = len(parts)
  G = np.einsum('rk,sk,kpq->prqs', hats, hats, gram, optimize=True).reshape(P * count, P * count)
  g = np.einsum('rk,kp->pr', hats, cross[..., 0]).reshape(P * count)
  scale = ridge * np.diag(G) + 1e-12 * np.trace(G)
  found = np.linalg.solve(G + np.diag(scale), g + scale * before.reshape(-1)).reshape(P, count)
  fitted = np.einsum('pk,kpi->ki', found @ hats, u)
  share = hats / hats.sum(1, keepdims=True)
  spread = lambda x: share @ np.mean((x - x.mean(1, keepdims=True)) ** 2, 1)
  left = np.sqrt(share @ np.mean((X - fitted) ** 2, 1))
  return found, left, np.sqrt(spread(X) / np.maximum(spread(fitted), 1e-30))
