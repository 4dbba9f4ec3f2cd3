"""BDIA-DDIM, arXiv 2307.10829: DDIM with bi-directional integration, and its exact inverse.

With D(u) = a_u x_0 + b_u eps, the DDIM step from t to any time u, and p the time before t,

  (1) x_s = D(s) + gamma (x_p - D(p))            gamma = 0, and the first step, are DDIM
  (2) x_p = D(p) + (x_s - D(s)) / gamma          the same, solved for x_p

so that two neighbouring states determine the whole chain in both directions with the same
evaluations.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import marginals
from gmm_diffusion.samplers.base import Kernel, Plan
from gmm_diffusion.samplers.run import run
from gmm_diffusion.types import Array, Denoiser, StepGrid, Time


class Row(NamedTuple):
  """Time of the evaluation, levels of the state before, and factor of the difference in (1) or
  (2)."""

  time: Time
  a: Array
  b: Array
  factor: Array


class State(NamedTuple):
  """Samples x [B, ...] and those one step before."""

  x: Array
  before: Array


def _shifted(level, first):
  return np.append(first, level[:-1])


def bdia(gamma: float = 1.0) -> Kernel:
  """Equation (1) with gamma in [0, 1]; raises UserError on others."""
  if not 0 <= gamma <= 1:
    raise UserError(f'gamma must be in [0, 1], got {gamma:g}')

  def plan(grid, shape):
    del shape
    # before the first step lies x_T itself, where x_p = D(p): a DDIM step
    return Plan(
      Row(
        grid.now,
        _shifted(grid.a_t, grid.a_t[0]),
        _shifted(grid.b_t, grid.b_t[0]),
        np.full_like(grid.t, gamma),
      )
    ), []

  def step(state, row, extra, shared, denoise, noise):
    del shared, noise
    prediction = denoise(state.x, row.now)
    ahead = marginals.reverse_mean(prediction, row.a_s, row.b_s)
    back = marginals.reverse_mean(prediction, extra.a, extra.b)
    return State(ahead + extra.factor * (state.before - back), state.x), ()

  return Kernel(plan, lambda x: State(x, x), step)


def inverse(gamma: float = 1.0) -> Kernel:
  """Equation (2) on `upward(grid)`: from data to noise. Its first step, which lacks a state before,
  is DDIM's usual inversion.

  Raises:
    UserError: if gamma is not in (0, 1].
  """
  if not 0 < gamma <= 1:
    raise UserError(f'gamma must be in (0, 1] to invert, got {gamma:g}')

  def plan(grid, shape):
    del shape
    first = np.arange(len(grid.t)) == 0
    time = Time(
      *(np.where(first, now, then) for now, then in zip(grid.now, grid.next))
    )  # no denoiser is asked at clean data
    factor = np.where(first, 0, 1 / gamma)
    return Plan(
      Row(time, _shifted(grid.a_s, grid.a_s[0]), _shifted(grid.b_s, grid.b_s[0]), factor)
    ), []

  def step(state, row, extra, shared, denoise, noise):
    del shared, noise
    prediction = marginals.from_eps(state.x, denoise(state.x, extra.time).eps, row.next)
    above = marginals.reverse_mean(prediction, row.a_t, row.b_t)
    back = marginals.reverse_mean(prediction, extra.a, extra.b)
    return State(above + extra.factor * (state.before - back), state.x), ()

  return Kernel(plan, lambda x: State(x, x), step)


def upward(grid: StepGrid) -> StepGrid:
  """The rows from the cleanest to the noisiest."""
  return StepGrid(*(level[::-1] for level in grid))


def invert(
  denoiser: Denoiser, grid: StepGrid, x: Array, gamma: float = 1.0, cond: Any = None
) -> State:
  """Data x [B, ...] -> the two noisiest states, from which `regenerate` gives x to rounding; N
  evaluations, N >= 2.

  Rounding errors grow by up to 1 / gamma a step.
  """
  kernel, grid = inverse(gamma), upward(grid)
  return run(
    kernel, denoiser, grid, kernel.plan(grid, x.shape[1:])[0], x, lambda n: None, cond
  ).state


def regenerate(
  denoiser: Denoiser, grid: StepGrid, state: State, gamma: float = 1.0, cond: Any = None
) -> Array:
  """The two noisiest states -> data; N - 1 evaluations."""
  kernel = bdia(gamma)._replace(init=lambda x: State(x, state.x))
  plan, _ = kernel.plan(grid, state.x.shape[1:])
  grid, plan = jax.tree.map(lambda row: row[1:], (grid, plan))
  return run(kernel, denoiser, grid, plan, state.before, lambda n: None, cond).x


def interpolate(
  denoiser: Denoiser,
  grid: StepGrid,
  first: Array,
  last: Array,
  shares: Array,
  gamma: float = 0.8,
  cond: Any = None,
) -> Array:
  """Images on the way from each of `first` to each of `last` [B, ...]: both are inverted, and what
  lies between their noise is generated, [W, B, ...].

  (3) z_w = sin((1 - w) angle) / sin(angle) z_0 + sin(w angle) / sin(angle) z_1   [DDIM eq. 67]

  with the angle between z_0 and z_1, on both states of the chain, so that w = 0 and w = 1 give the
  images themselves to rounding. 2 N evaluations for the noise of both, and N - 1 for each share.

  Args:
    denoiser, grid, cond: as in `invert`; cond belongs to the pairs.
    first, last: data.
    shares: w [W]; 0 is `first`, 1 is `last`.
    gamma: near 1 what lies between keeps noise that the two images do not have, and small ones let
      rounding errors grow, by 1 / gamma a step. On the digits in 40 steps the ends are exact to
      2e-5 with 0.9, 5e-5 with 0.8 and 2e-3 with 0.7, in float32.
  """
  ends = [invert(denoiser, grid, x, gamma, cond) for x in (first, last)]
  flat = [end.x.reshape(len(end.x), -1) for end in ends]
  norms = jnp.prod(jnp.stack([jnp.linalg.norm(z, axis=1) for z in flat]), 0)
  angle = jnp.arccos(jnp.clip(jnp.sum(flat[0] * flat[1], 1) / norms, -1, 1))

  def at(share):
    parts = jnp.sin((1 - share) * angle), jnp.sin(share * angle)
    near = jnp.sin(angle) < 1e-4  # one direction, or opposite ones: a straight line
    weights = [
      jnp.where(near, straight, part / jnp.where(near, 1, jnp.sin(angle)))
      for straight, part in zip((1 - share, share), parts)
    ]
    mix = lambda *leaves: sum(marginals.match(w, y) * y for w, y in zip(weights, leaves))
    return regenerate(denoiser, grid, jax.tree.map(mix, *ends), gamma, cond)

  return jax.lax.map(at, jnp.asarray(shares, first.dtype))
