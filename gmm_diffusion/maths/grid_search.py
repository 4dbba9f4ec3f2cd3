"""Grids that are searched for: by a bound on the error of a solver, or on measured errors.

A multistep solver of order k integrates x / b = int e^lambda x_0 d lambda, lambda = log(a / b),
with Lagrange's polynomial through its last k predictions. Where the prediction at lambda_j is off
by e_j, the step n is off by the root of

  (1) sum_j (e_j int_{lambda_n}^{lambda_{n+1}} e^lambda l_nj(lambda) d lambda)^2

and `bounded` makes the sum over all steps least [DMN, arXiv 2402.17376]. e_j is sigma_j = b / a, an
error of eps that is the same at every time. The order is 3, and less in the first two and the last
two steps. The source sums what a prediction does over all steps from the fourth on; that has
several minima, and nearly the same times.

`gits` chooses among M times by dynamic programming [GITS, arXiv 2405.11326]:

  (2) V_1(i) = c_{i, M-1},   V_k(i) = min_j c_ij + gamma V_{k-1}(j)
"""

import numpy as np

from gmm_diffusion.errors import UserError

ORDER = 3
KNOTS = 8  # numbers that are searched; more steps lie on a polyline through them
MOST = 50  # steps; for more of them every grid is good, and the search slow
NODES, WEIGHTS = (0.5 * values for values in np.polynomial.legendre.leggauss(12))
NODES = NODES + 0.5


def bound(lambdas: np.ndarray) -> float:
  """The sum over all steps of the root of (1); lambdas rising, [N + 1], finite."""
  steps = len(lambdas) - 1
  n = np.arange(steps)
  orders = np.minimum(np.minimum(n + 1, ORDER), steps - n)
  at = lambdas[:-1, None] + np.diff(lambdas)[:, None] * NODES
  mass = np.exp(at) * WEIGHTS * np.diff(lambdas)[:, None]
  before = [lambdas[np.maximum(n - j, 0)][:, None] for j in range(ORDER)]
  total = np.zeros(steps)
  for j in range(ORDER):
    basis = np.ones_like(at)
    for i in range(ORDER):
      if i != j:
        used = (n >= max(i, j)) & (orders > i)
        with np.errstate(divide='ignore', invalid='ignore'):  # steps without width are no minimum
          ratio = (at - before[i]) / (before[j] - before[i])
        basis *= np.where(used[:, None], ratio, 1.0)
    total += np.where(orders > j, np.exp(-before[j][:, 0]) * (basis * mass).sum(1), 0) ** 2
  return float(np.sqrt(total).sum())


def bounded(begin: float, end: float, steps: int) -> np.ndarray:
  """The lambdas of the least bound from `begin` to `end` > begin, rising, [steps + 1].

  Raises:
    UserError: for more than 50 steps.
  """
  if steps > MOST:
    raise UserError(f'a grid is searched for at most {MOST} steps, got {steps}')

  def through(logs):
    places = np.linspace(0, 1, steps), np.linspace(0, 1, len(logs))
    widths = np.exp(logs if len(logs) == steps else np.interp(*places, logs))
    return begin + (end - begin) * np.append(0, np.cumsum(widths) / widths.sum())

  logs = np.zeros(min(steps, KNOTS))
  best, size = bound(through(logs)), 0.5
  while size > 1e-3:  # one number at a time, in steps that get smaller: there is one minimum
    before = best
    for i in range(len(logs)):
      for change in (size, -size):
        other = logs.copy()
        other[i] += change
        value = bound(through(other))
        if value < best:
          logs, best = other, value
          break
    if best == before:
      size /= 2
  return through(logs)


def gits(costs: np.ndarray, steps: int, coefficient: float = 1.15) -> np.ndarray:
  """The path of least cost from the first of M times to the last, by equation (2).

  Args:
    costs: c [M, M]; c_ij, for i < j, is the error of one step from time i to time j.
    steps: how many, 1..M - 1.
    coefficient: gamma: above 1, errors count more the later they are made.

  Returns:
    Indices of the times, rising from 0 to M - 1, [steps + 1].

  Raises:
    UserError: on another shape, costs that are not finite, or a bad number of steps.
  """
  costs = np.asarray(costs, np.float64)
  count = len(costs)
  if costs.shape != (count, count) or not np.all(np.isfinite(costs[np.triu_indices(count, 1)])):
    raise UserError(f'costs must be a square of finite numbers, got shape {costs.shape}')
  if not 1 <= steps < count:
    raise UserError(f'steps must be in 1..{count - 1} for {count} times, got {steps}')
  forward = np.where(np.triu(np.ones((count, count), bool), 1), costs, np.inf)
  value, choices = forward[:, -1], []
  for _ in range(steps - 1):
    total = forward + coefficient * value
    choices.append(total.argmin(1))
    value = total.min(1)
  path = [0]
  for choice in reversed(choices):
    path.append(int(choice[path[-1]]))
  return np.array([*path, count - 1])
