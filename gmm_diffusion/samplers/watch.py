"""Hallucinations: samples between the modes of the data, by how much x_0 still moves [2406.09358].

  (1) H = mean over elements of the variance of x_0(x_t, t), over calls with b_t / a_t in a window

A sample that settles on a mode has a steady x_0 once the noise is as small as the mode is wide; one
that is left between modes has not. So the window is a range of noise levels, not of calls: the
source's last 10 of 1,000 calls are other levels on another schedule, and on some they see nothing.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from gmm_diffusion.errors import UserError
from gmm_diffusion.samplers.base import Kernel, Plan
from gmm_diffusion.types import Array

WINDOW = (0.01, 0.1)  # b / a: about twice the width of images' modes, in [-1, 1]
_LEAST = 3  # calls in the window


class State(NamedTuple):
  """Samples x [B, ...]; the kernel's own state; of x_0 in the window the number of calls, the mean
  and the sum of squares about it (Welford)."""

  x: Array
  own: Any
  calls: Array
  mean: Array
  squares: Array


def watched(kernel: Kernel, window: tuple[float, float] = WINDOW) -> Kernel:
  """The same kernel with a record of x_0 in the window; no call is added.

  Where a step calls the denoiser several times, the first call counts.

  Args:
    kernel: any.
    window: (low, high) in b_t / a_t.

  Raises:
    UserError: in `plan`, if fewer than 3 steps of the grid start in the window.
  """
  low, high = window

  def plan(grid, shape):
    made, report = kernel.plan(grid, shape)
    inside = (low * grid.a_t <= grid.b_t) & (grid.b_t <= high * grid.a_t)
    if inside.sum() < _LEAST:
      raise UserError(
        f'{inside.sum()} of {len(inside)} steps start at b / a in [{low:g}, {high:g}], and at '
        f'least {_LEAST} are needed; take more steps, another grid, or a wider window'
      )
    return Plan((made.rows, inside.astype(np.float64)), made.shared), report

  def init(x):
    zero = jnp.zeros_like(x)
    return State(x, kernel.init(x), jnp.zeros((), x.dtype), zero, zero)

  def step(state, row, extra, shared, denoise, noise):
    seen, (own, inside) = [], extra

    def noted(*arguments, **options):
      found = denoise(*arguments, **options)
      seen.append(found.x0)
      return found

    after, info = kernel.step(state.own, row, own, shared, noted, noise)
    calls = state.calls + inside
    change = inside * (seen[0] - state.mean)
    mean = state.mean + change / jnp.maximum(calls, 1)
    squares = state.squares + change * (seen[0] - mean)
    return State(after.x, after, calls, mean, squares), info

  return Kernel(plan, init, step)


def spread(state: State) -> Array:
  """Equation (1) [B], of the last state of a watched kernel (Result.state)."""
  return jnp.mean(state.squares / state.calls, tuple(range(1, state.squares.ndim)))
