"""Predictions moved along the trajectory before a multistep sampler uses them.

A polynomial through the prediction f_n and the K before it replaces f_n by

  (1) g_n = sum_{i=0}^{K} l_i h_i,   h_0 = f_n,  h_i = g_{n-i}

with Lagrange's l_i, which add up to one. g_n then takes the place of f_n in the step and in the
history. There are two uses:

  (2) a ratio for every step    l_i in t, at t_{n-1} + rho_n (t_n - t_{n-1})     [DC-Solver]
  (3) the step to clean data    l_i in u = a / sqrt(a^2 + b^2), at u = 1

(2) is arXiv 2409.03755: rho_n = 1 changes nothing, more looks ahead of t_n. (3) is for samplers in
lambda = log(a / b), which hold f_n fixed over the step to clean data, since no polynomial reaches
lambda = inf. Along the probability flow of Gaussian data of variance v, x_0 is affine in
a / sqrt(a^2 + b^2 / v); so (3) with K = 1 is exact for v = 1, to which data are usually scaled. It
is smooth in b^2 at clean data, as x_0 is for any data with a smooth density.
"""

from typing import NamedTuple

import numpy as np

from gmm_diffusion.errors import UserError
from gmm_diffusion.types import Array, StepGrid


class Compensation(NamedTuple):
  """What moves the predictions.

  Attributes:
    ratios: rho of (2), one for each step, 1 in the first `compensate` ones; () is 1 everywhere.
    compensate: K of (2), 1 or 2.
    extrapolate: K of (3), 0 (the prediction is held) to 2.
  """

  ratios: tuple[float, ...] = ()
  compensate: int = 2
  extrapolate: int = 0

  @property
  def reach(self) -> int:
    """How many earlier g a step needs; 0 where nothing is moved."""
    return max(self.compensate if self.ratios else 0, self.extrapolate)


def check(moved: Compensation) -> None:
  """Raises UserError on values that fit no grid."""
  if moved.compensate not in (1, 2):
    raise UserError(f'compensate must be 1 or 2, got {moved.compensate}')
  if moved.extrapolate not in (0, 1, 2):
    raise UserError(f'extrapolate must be 0, 1 or 2, got {moved.extrapolate}')
  for n, ratio in enumerate(moved.ratios):
    if not np.isfinite(ratio):
      raise UserError(f'ratios must be finite, got {ratio} for step {n}')
    if n < moved.compensate and ratio != 1:
      raise UserError(
        f'the first {moved.compensate} ratios must be 1, since compensate={moved.compensate} needs '
        f'as many earlier predictions; got {ratio:g} for step {n}'
      )
  if moved.extrapolate and moved.ratios and moved.ratios[-1] != 1:
    raise UserError(
      f'extrapolate sets what the last ratio does, so that one must be 1, got {moved.ratios[-1]:g}'
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
  if grid.b_s[-1] == 0:
    u = (grid.a_t / np.hypot(grid.a_t, grid.b_t))[-1 - moved.extrapolate :][::-1]
    if moved.extrapolate:
      out[-1, : len(u)] = lagrange(u, 1.0)
  return out


def apply(row: Array, f: Array, history: tuple[Array, ...]) -> Array:
  """Equation (1) for one step: row [reach + 1], f and earlier g [B, ...], newest first."""
  return row[0] * f + sum((weight * g for weight, g in zip(row[1:], history)), 0 * f)
