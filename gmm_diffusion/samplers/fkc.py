"""Feynman-Kac correctors: samples of prod_i p_i^beta_i from the denoisers of the p_i [2503.02819].

Tempering is one factor with a power beta; a product is powers (1, 1); guidance with scale g is
powers (1 - g, g) of the unconditional and the conditional model, and unlike guidance without
correction it samples what it names. A sample is a group of P particles, which see nothing of other
groups. With y = x / a, sigma = b / a, ebar = sum_i beta_i eps_i and h = sigma_t^2 - sigma_s^2:

  (1) start     x_T ~ N(0, b_T^2 / sum_i beta_i)
  (2) move      y_s = y - (h / sigma_t) ebar + tau z
  (3) weights   d log w = 1/2 (|ebar|^2 - sum_i beta_i |eps_i|^2) dsigma^2 / sigma^2
  (4) resample  within the group, where the effective sample size falls below a share of P

(3) follows from d p_i / dsigma^2 = Laplacian(p_i) / 2: what the reverse diffusion with the score of
prod_i p_i^beta_i misses, so that E[w] is the ratio of the integrals of prod_i p_i^beta_i at the end
and at the start. Two discretisations:

  (5) geometric  tau^2 = h sigma_s / sigma_t, between that of ancestral sampling and (6); a state
                 has the weight (h_before + h_after) / (4 sigma^2) of the bracket in (3), the
                 trapezoidal rule in sigma^2, with h_after = 0 in the last step
  (6) source     tau^2 = h and h_after / (2 sigma^2), as published; no weight in the last step

The rule (5) is this project's own. Of tempered Gaussian data with as many particles as one likes
the error of the variance is 4 to 20 times less than of (6). On mixtures in 50 steps either may be
nearer, and the error is up to 5 % of the variance; in 200 steps (5) has none that we could measure.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import grids, noise
from gmm_diffusion.maths.schedules import Schedule
from gmm_diffusion.samplers.base import Kernel, Plan
from gmm_diffusion.samplers.run import initial_state, run
from gmm_diffusion.types import Array, Denoiser, Prediction, StepGrid

SCHEMES = ('geometric', 'source')


class Row(NamedTuple):
  """Factors of x0bar, of ebar and of the noise in (2), times a_s; of the bracket in (3); 1 / a_t;
  whether the step is the last."""

  x0: Array
  eps: Array
  std: Array
  weight: Array
  inverse: Array
  last: Array


class State(NamedTuple):
  """Particles x [B, P, ...], log-weights [B, P], log-normaliser [B] of what was resampled."""

  x: Array
  log_weights: Array
  log_normaliser: Array


class Info(NamedTuple):
  """Effective sample size [B] before resampling, and whether that happened [B]."""

  size: Array
  resampled: Array


def factors(*denoisers: Denoiser) -> Denoiser:
  """The denoisers of all factors as one for groups: x [B, P, ...] -> Prediction of arrays
  [B, I, P, ...]; `cond` [B, ...] belongs to groups."""

  def denoise(x, time, cond):
    B, P = x.shape[:2]
    flat = x.reshape(B * P, *x.shape[2:])
    each = jax.tree.map(lambda leaf: jnp.repeat(leaf, P, 0), cond)
    found = [one(flat, time, each) for one in denoisers]
    return Prediction(
      *(
        jnp.stack([part.reshape(x.shape) for part in parts], 1)
        for parts in zip(*((one.x0, one.eps) for one in found))
      )
    )

  return denoise


def branches(denoiser: Denoiser, null_label: int) -> tuple[Denoiser, Denoiser]:
  """(unconditional, conditional) of a denoiser that takes labels, the factors of guidance."""
  return lambda x, time, cond: denoiser(x, time, jnp.full_like(cond, null_label)), denoiser


def fkc(powers: Sequence[float], resample: float = 0.5, scheme: str = 'geometric') -> Kernel:
  """The kernel, for samples of shape (P, ...) and the denoiser of `factors`.

  After the last step all particles have the same weight, and x[:, 0] is one of them, drawn.

  Args:
    powers: beta_i, their sum above 0.
    resample: share of P below which the effective sample size may not fall; 0 waits for the end.
    scheme: a name in SCHEMES.

  Raises:
    UserError: on powers, a share or a scheme that cannot be; in `plan` on a group of one, a single
      step, or a start that hides the data wholly (a_T = 0), where sigma is infinite.
  """
  beta = np.asarray(powers, np.float64)
  total = beta.sum()
  if not (beta.ndim == 1 and np.isfinite(beta).all() and total > 0):
    raise UserError(f'powers must be numbers with a sum above 0, got {tuple(powers)}')
  if not 0 <= resample <= 1:
    raise UserError(f'resample must be in [0, 1], got {resample:g}')
  if scheme not in SCHEMES:
    raise UserError(f'unknown scheme {scheme!r}; valid: {", ".join(SCHEMES)}')

  def plan(grid, shape):
    _check(grid, shape)
    sigma, following = grid.b_t / grid.a_t, grid.b_s / grid.a_s
    ratio, h = following / sigma, sigma**2 - following**2
    before = np.concatenate([[0], h[:-1]]) / sigma**2
    last = np.arange(len(sigma)) == len(sigma) - 1
    after = np.where(last, 0, h / sigma**2)
    if scheme == 'source':
      std, weight = np.where(following > 0, np.sqrt(h), 0), after / 2
    else:
      std, weight = np.sqrt(h * ratio), (before + after) / 4
    return Plan(
      Row(grid.a_s, grid.a_s * following * ratio, grid.a_s * std, weight, 1 / grid.a_t, last)
    ), []

  def init(x):
    B, P = x.shape[:2]
    return State(
      x / np.sqrt(total).astype(x.dtype), jnp.zeros((B, P), x.dtype), jnp.zeros(B, x.dtype)
    )

  def step(state, row, extra, shared, denoise, noise):
    del shared
    found, powers = denoise(state.x, row.now), jnp.asarray(beta, state.x.dtype)
    mixed = lambda y: jnp.einsum('i,bi...->b...', powers, y, precision='highest')
    x0, eps = mixed(found.x0), mixed(found.eps)
    x0 = x0 + (1 - powers.sum()) * extra.inverse * state.x
    square = lambda y, rank: jnp.sum(y**2, tuple(range(rank, y.ndim)))
    log_weights = state.log_weights + extra.weight * (square(eps, 2) - mixed(square(found.eps, 3)))
    size = jnp.exp(2 * _log_sum(log_weights) - _log_sum(2 * log_weights))
    P = log_weights.shape[1]
    again = (size < resample * P) | extra.last
    slot = jnp.floor(noise.uniform * P)
    chosen = _systematic(log_weights, noise.uniform * P - slot)
    # after the last step any particle will do; the first of them is to be one at random
    turned = _turn(chosen, jnp.where(extra.last, slot, 0))
    index = jnp.where(again[:, None], turned, jnp.arange(P)[None])
    take = lambda y: jnp.take_along_axis(y, index.reshape(index.shape + (1,) * (y.ndim - 2)), 1)
    x = extra.x0 * take(x0) + extra.eps * take(eps) + extra.std * noise.normal
    mean = _log_sum(log_weights) - math.log(P)
    normaliser = state.log_normaliser + jnp.where(again, mean, 0)
    log_weights = jnp.where(again[:, None], 0, log_weights)
    return State(x, log_weights, normaliser), Info(size, again)

  return Kernel(plan, init, step)


def _check(grid: StepGrid, shape: tuple[int, ...]) -> None:
  if shape[0] < 2:
    raise UserError(f'a group has at least 2 particles, got a sample of shape {list(shape)}')
  if len(grid.t) < 2:
    raise UserError('Feynman-Kac correctors need at least 2 steps: a single one has no weights')
  if grid.a_t[0] == 0:
    raise UserError(
      'Feynman-Kac correctors need a grid that starts where something of the data is left '
      '(a > 0); choose another grid or schedule'
    )


def _log_sum(log_weights):
  return jax.nn.logsumexp(log_weights, 1)


def _systematic(log_weights, offset):
  """Indices [B, P]: particle j is there about P w_j times, from one uniform number each group."""
  P = log_weights.shape[1]
  edges = jnp.cumsum(jax.nn.softmax(log_weights, 1), 1)
  edges = edges / edges[:, -1:]
  at = (jnp.arange(P)[None] + offset[:, None]) / P
  return jnp.minimum(jax.vmap(lambda e, a: jnp.searchsorted(e, a, side='right'))(edges, at), P - 1)


def _turn(index, by):
  """Each row of [B, P] turned left by its own number."""
  P = index.shape[1]
  places = (jnp.arange(P)[None] + by[:, None].astype(jnp.int32)) % P
  return jnp.take_along_axis(index, places, 1)


class Drawn(NamedTuple):
  """x [B, ...]; particles [B, P, ...] of the same weight; log_normaliser [B], whose exponential is
  unbiased for the ratio of integrals; sizes and resampled [N, B] of each step; calls of each
  denoiser for a sample."""

  x: Array
  particles: Array
  log_normaliser: Array
  sizes: Array
  resampled: Array
  nfe: int


def draw(
  denoisers: Sequence[Denoiser],
  powers: Sequence[float],
  schedule: Schedule,
  shape: tuple[int, ...],
  ids: Array,
  seed: int = 0,
  particles: int = 8,
  steps: int = 100,
  grid: str | StepGrid = 'trailing',
  cond: Any = None,
  resample: float = 0.5,
  scheme: str = 'geometric',
) -> Drawn:
  """Samples of prod_i p_i^powers_i, compiled for this call; see `fkc` and `samplers.draw`.

  In many dimensions weights differ by so much that one particle of a group is left, and more
  particles help little; `sizes` says so.

  Args:
    denoisers: of the p_i, such as `branches`.
    powers: of each.
    particles: P of a group; costs P calls of each denoiser in each step.

  Raises:
    UserError: as in `fkc`, or where particles or weights come out that are no numbers.
  """
  if len(denoisers) != len(powers):
    raise UserError(f'{len(denoisers)} denoisers need as many powers, got {len(powers)}')
  if not isinstance(grid, StepGrid):
    grid = grids.make(schedule, steps, grid)
  kernel, inside = fkc(powers, resample, scheme), (particles, *shape)
  plan, _ = kernel.plan(grid, inside)

  @jax.jit
  def of(keys, cond):
    at_step = lambda n: noise.at_step(keys, n, inside)
    start = initial_state(grid, keys, inside)
    return run(kernel, factors(*denoisers), grid, plan, start, at_step, cond, keep='all')._replace(
      path=None
    )

  found = of(noise.sample_keys(seed, np.asarray(ids)), cond)
  sizes, resampled = found.info
  numbers = jnp.isfinite(found.x).reshape(len(found.x), -1).all(1)
  broken = int(np.sum(~(numbers & jnp.isfinite(found.state.log_normaliser))))
  if broken:
    raise UserError(
      f'{broken} of {len(numbers)} groups have particles or weights that are not finite; see that '
      f'the denoisers answer with numbers, and take more steps or smaller powers'
    )
  calls = particles * int(found.nfe)
  return Drawn(found.x[:, 0], found.x, found.state.log_normaliser, sizes, resampled, calls)
