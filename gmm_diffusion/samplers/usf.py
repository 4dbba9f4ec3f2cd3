"""USF, arXiv 2312.07243: a multistep solver with choices of its own in every step, as a table.

With f the prediction of x_0 or of eps and lambda = log(a / b), h = lambda_s - lambda_t,

  (1) x_s = P + sum_{i=1}^{k-1} r_i m_i h^i / i! D_i
  (2) sum_{i=1}^{k-1} (lambda_{n-j} - lambda_n)^i / i! D_i = f_{n-j} - f_n,   j = 1..k-1

where P is the DDIM step in the form of f from the corrected x_n, m_i the moments (3) of
multistep.py (for eps with b_s and -h in place of a_s and h), and D_i the derivatives. D_1 may come
from fewer points than the others, and r_1 relaxes it; other r_i are 1. The corrector is (1) again
from the same x_n, with the prediction at x_s as one more point in (2), also for D_1, and no
relaxation; it costs no evaluation. All of it is linear in the predictions, so a schedule of choices
is a table for samplers/linear.py, and needs no kernel of its own.

Left out: the first step without a call, which has no place in a table, and the form of
DPM-Solver-v3, which needs statistics of the model.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gmm_diffusion.errors import UserError
from gmm_diffusion.samplers import linear, multistep
from gmm_diffusion.types import StepGrid


class Choice(NamedTuple):
  """What one step does.

  Attributes:
    order: k, 1 (DDIM) to 4, at most 1 + the number of steps before.
    field: f, 'x0' or 'eps'.
    points: how many earlier predictions make D_1, 1..k - 1; 0 is all.
    relax: r_1 is 1 + relax h; or one of RELAXATIONS by name.
    correct: whether the state that it reaches is corrected.
  """

  order: int = 1
  field: str = 'x0'
  points: int = 0
  relax: float | str = 0.0
  correct: bool = False


# r_1 by z, which is h for eps and -h for x0: what those solvers do instead of solving for D_1.
RELAXATIONS = {
  'dpmsolver-2': lambda z: z * np.expm1(z) / 2 / (np.expm1(z) - z),
  'unipc-bh1': lambda z: z * z / 2 / (np.expm1(z) - z),
}


def _check(grid: StepGrid, choices: Sequence[Choice]) -> None:
  steps = len(grid.t)
  if len(choices) != steps:
    raise UserError(f'there must be a choice for each of {steps} steps, got {len(choices)}')
  for n, one in enumerate(choices):
    most = 1 if grid.b_s[n] == 0 else min(4, n + 1 - int(grid.a_t[0] == 0))
    if not 1 <= one.order <= max(most, 1):
      raise UserError(f'order of step {n} must be in 1..{max(most, 1)}, got {one.order}')
    if one.field not in ('x0', 'eps'):
      raise UserError(f'unknown field {one.field!r} of step {n}; valid: x0, eps')
    if not 0 <= one.points < one.order:
      raise UserError(f'points of step {n} must be in 0..{one.order - 1}, got {one.points}')
    if isinstance(one.relax, str) and one.relax not in RELAXATIONS:
      raise UserError(f'unknown relax {one.relax!r} of step {n}; valid: {", ".join(RELAXATIONS)}')
    if one.correct and (n == steps - 1 or grid.a_t[n] == 0):
      raise UserError(f'step {n} cannot be corrected: no call follows, or it starts at pure noise')


def _weights(
  field: str, gaps: np.ndarray, points: int, h: float, level: float, relax: float | str
) -> np.ndarray:
  """What each difference f_j - f_n of (2) gets in (1), [P].

  Args:
    field: f.
    gaps: lambda_j - lambda_n, [P].
    points: how many of them make D_1.
    h, level: lambda_s - lambda_n, and a_s or b_s, as f is.
    relax: as in Choice.
  """
  powers = np.arange(1, len(gaps) + 1)
  factorials = np.cumprod(powers)
  derivatives = np.linalg.inv(gaps ** powers[:, None] / factorials[:, None]).T  # [i, j]
  own = gaps[:points] ** powers[:points, None] / factorials[:points, None]
  derivatives[0] = np.pad(np.linalg.inv(own)[:, 0], (0, len(gaps) - points))
  signed = h if field == 'eps' else -h
  moments = level * multistep.exponential_moments(-signed, len(gaps)) * h**powers / factorials
  moments[0] *= RELAXATIONS[relax](signed) if isinstance(relax, str) else 1 + relax * h
  return moments @ derivatives


def table(grid: StepGrid, choices: Sequence[Choice]) -> linear.Table:
  """The table of a schedule of choices; raises UserError on one that its step cannot do."""
  _check(grid, choices)
  steps = len(grid.t)
  unit = np.eye(steps + 1)  # everything is a combination of x_T, m_0, m_1, ...
  asked = [unit[0]]
  f: dict[str, list[np.ndarray]] = {'x0': [], 'eps': []}
  plain = unit[0]
  for n, one in enumerate(choices):
    a, b, a_s, b_s = grid.a_t[n], grid.b_t[n], grid.a_s[n], grid.b_s[n]
    f['x0'].append(unit[1 + n])
    f['eps'].append((asked[n] - a * unit[1 + n]) / b)
    x = asked[n]
    if n and choices[n - 1].correct:
      x = plain + _more(choices[n - 1], f, grid, n - 1, corrector=True)
    if one.field == 'x0':
      plain = b_s / b * x + (a_s - a * b_s / b) * f['x0'][n]
    else:
      plain = a_s / a * x + (b_s - b * a_s / a) * f['eps'][n]
    asked.append(plain + _more(one, f, grid, n, corrector=False))
  states = np.array(asked)
  levels = np.append(grid.a_t, grid.a_s[-1]), np.append(grid.b_t, grid.b_s[-1])
  none = np.zeros((steps + 1, 1))
  return linear.rolled(grid.now, *levels, states[:, 0], states[:, 1:], none)


def _more(
  one: Choice, f: dict[str, list[np.ndarray]], grid: StepGrid, n: int, corrector: bool
) -> np.ndarray | float:
  """The sum of (1) for step n; of the corrector with the prediction at its end."""
  j = np.append([n + 1] * corrector, np.arange(n - 1, n - one.order, -1)).astype(int)
  if not len(j):
    return 0.0
  lambdas = multistep.half_log_snr(grid.a_t, grid.b_t)
  level = float((grid.a_s if one.field == 'x0' else grid.b_s)[n])
  h = float(multistep.half_log_snr(grid.a_s[n], grid.b_s[n]) - lambdas[n])
  points = one.points + corrector if one.points else len(j)
  relax = 0.0 if corrector else one.relax
  w = _weights(one.field, lambdas[j] - lambdas[n], points, h, level, relax)
  known = f[one.field]
  return sum(weight * (known[i] - known[n]) for weight, i in zip(w, j))
