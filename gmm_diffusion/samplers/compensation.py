"""Predictions moved along the trajectory before a multistep sampler uses them.

A polynomial through the prediction f_n of x_0 and the K before it replaces f_n by

  (1) g_n = sum_{i=0}^{K} l_i h_i,   h_0 = f_n,  h_i = g_{n-i}

with Lagrange's l_i, which add up to one; eps goes with it, so that x_t = a_t g_n + b_t eps. g_n
then takes the place of f_n in the step and in the history. There are two uses:

  (2) a ratio for every step    l_i in t, at t_{n-1} + rho_n (t_n - t_{n-1})     [DC-Solver]
  (3) the step to clean data    K = 1, l_i in u = a / sqrt(a^2 + b^2 / v), at u = 1

(2) is arXiv 2409.03755: rho_n = 1 changes nothing, more looks ahead of t_n. (3) is the ratio
1 + (1 - u_n) / (u_n - u_{n-1}) of the last step, where (2) leaves it at 1. The authors of samplers
in lambda = log(a / b) hold f_n fixed there, since no polynomial reaches lambda = inf. Along the
probability flow of Gaussian data of variance v, x_0 is affine in u, so that (3) is exact; and for
data with a smooth density x_0 is smooth in b^2 at clean data, as u is. v is that of EDM for images
in [-1, 1]. The ratio is cut at 1 + FURTHEST. Without that, (3) would go dozens of times as far as
f_n and f_{n-1} are apart where u_n is still small, or where steps are many and even in lambda, and
take all noise of f_n - f_{n-1} along.
"""

from typing import NamedTuple

import numpy as np

from gmm_diffusion.errors import UserError
from gmm_diffusion.types import Array, StepGrid

DEVIATION = 0.5  # root of v
FURTHEST = 3.0  # a choice, above that of `trailing` with 3 steps, 2.5


class Compensation(NamedTuple):
  """What moves the predictions.

  Attributes:
    ratios: rho of (2), one for each step, 1 in the first `compensate` ones; () is 1 everywhere.
    compensate: K of (2), 1 or 2.
    extrapolate: whether the step to clean data does (3). A last ratio other than 1 has its place.
  """

  ratios: tuple[float, ...] = ()
  compensate: int = 2
  extrapolate: bool = True

  @property
  def reach(self) -> int:
    """How many earlier g a step needs; 0 where nothing is moved."""
    return max(self.compensate if self.ratios else 0, int(self.extrapolate))


def check(moved: Compensation) -> None:
  """Raises UserError on values that fit no grid."""
  if moved.compensate not in (1, 2):
    raise UserError(f'compensate must be 1 or 2, got {moved.compensate}')
  for n, ratio in enumerate(moved.ratios):
    if not np.isfinite(ratio):
      raise UserError(f'ratios must be finite, got {ratio} for step {n}')
    if n < moved.compensate and ratio != 1:
      raise UserError(
        f'the first {moved.compensate} ratios must be 1, since compensate={moved.compensate} needs '
        f'as many earlier predictions; got {ratio:g} for step {n}'
      )


def lagrange(points: Array, at: float) -> np.ndarray:
  """Values at one place of the polynomials that are 1 at one point and 0 at the others, [K + 1]."""
  gaps = points[:, None] - points + np.eye(len(points))
  return (np.where(np.eye(len(points)), 1.0, at - points) / gaps).prod(1)


def weights(grid: StepGrid, moved: Compensation) -> np.ndarray:
  """l of every step, newest first, [N, reach + 1]; raises UserError unless there are N ratios."""
  steps = len(grid.t)
  if moved.ratios and len(moved.ratios) != steps:
    raise UserError(f'there must be a ratio for each of {steps} steps, got {len(moved.ratios)}')
  out = np.zeros((steps, moved.reach + 1))
  out[:, 0] = 1
  for n, ratio in enumerate(moved.ratios):
    if ratio != 1:
      points = grid.t[n - moved.compensate : n + 1][::-1]
      at = float(points[1] + ratio * (points[0] - points[1]))
      out[n, : moved.compensate + 1] = lagrange(points, at)
  if ends_ahead(grid, moved) and steps > 1:
    u = grid.a_t[-2:] / np.hypot(grid.a_t, grid.b_t / DEVIATION)[-2:]
    ahead = min((1 - u[1]) / (u[1] - u[0]), FURTHEST)
    out[-1, :2] = 1 + ahead, -ahead
  return out


def ends_ahead(grid: StepGrid, moved: Compensation) -> bool:
  """Whether the last step is (3)."""
  chosen = bool(moved.ratios) and moved.ratios[-1] != 1
  return moved.extrapolate and not chosen and bool(grid.b_s[-1] == 0)


def apply(row: Array, x0: Array, history: tuple[Array, ...]) -> Array:
  """Equation (1) for one step: row [reach + 1], f and earlier g [B, ...], newest first."""
  return row[0] * x0 + sum((weight * g for weight, g in zip(row[1:], history)), 0 * x0)
