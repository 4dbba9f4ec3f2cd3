"""Denoising MCMC [2209.14593]: chains over noisy samples y and their noise level sigma, whose
states are denoised by few steps each. Samples of one chain depend on each other.

On p(y, sigma) = p_sigma(y) p(sigma), with y = x_0 + sigma eps and p(sigma) uniform over K levels:

  (1) y += step / 2 score(y, sigma) + sqrt(step) z,   score = (x_0(y, sigma) - y) / sigma^2
  (2) sigma ~ p(sigma | y)
  (3) after `skip` such moves the state is denoised from its own sigma by Heun's method, on levels
      that are linear in sigma^(1 / rho)

The published chain takes one step size for all levels, the likeliest sigma in (2), and in (3) the
state with the smallest sigma of those that were visited. It does not sample the model: where
step >= 4 (v + sigma^2), for data of variance v, (1) is unstable, and both choices of sigma prefer
what is nearly clean. Ours is step = c (v + sigma^2), a drawn sigma, and the last state; a chain of
(1) at one level then has the variance (v + sigma^2) / (1 - c / 4) on Gaussian data. Both are for
few dimensions: (2) takes what (1) adds for noise, the more surely the more dimensions there are, so
that on 64 of them the levels drift to the highest (docs/beyond_sampling.md).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import marginals, mixtures, noise
from gmm_diffusion.types import Array, Denoiser, Prediction, Time

CHOICES = ('last', 'smallest')
LEVELS = ('drawn', 'likeliest')


class Drawn(NamedTuple):
  """Of M draws of C chains: x [M, C, ...], and sigma [M, C] from which each was denoised; calls of
  the denoiser for each draw."""

  x: Array
  sigma: Array
  nfe: int


def of_each(denoiser: Denoiser) -> Denoiser:
  """A denoiser of one time for the whole batch, such as exact.mixture, for times of shape [B]."""

  def denoise(x, time, cond):
    del cond
    found = jax.vmap(lambda x, *time: denoiser(x[None], Time(*time), None)[:2])(x, *time)
    return Prediction(*(part[:, 0] for part in found))

  return denoise


def level_log_prob(
  means: Array, variances: Array | float, sigmas: Array, log_priors: Array | None = None
) -> Callable[[Array], Array]:
  """log p_sigma(y) of a mixture at all levels, which is log p(sigma | y) but for a constant: y
  [C, ...] -> [C, K]. log_priors must be normalised; uniform if None."""
  flat = jnp.reshape(means, (len(means), -1))

  def log_prob(y):
    queries = y.reshape(len(y), -1)
    v, levels = jnp.asarray(variances, y.dtype), jnp.asarray(sigmas, y.dtype)
    of = lambda sigma: mixtures.log_prob(
      queries, mixtures.units(flat.astype(y.dtype), 1 / (v + sigma**2), log_priors)
    )
    return jax.lax.map(of, levels).T

  return log_prob


def descend(
  denoiser: Denoiser,
  y: Array,
  sigma: Array,
  steps: int,
  least: Array | float = 0.01,
  rho: float = 7.0,
) -> Array:
  """Heun's method from each sample's own level to clean data; 2 steps - 3 calls.

  Args:
    denoiser: of a variance-exploding model, with times of shape [B].
    y: samples [B, ...].
    sigma: their levels [B], not below `least`.
    steps: levels of the grid, the clean one included, at least 3.
    least: the lowest level but for the clean one, from where one Euler step ends at it.
    rho: the levels are linear in sigma^(1 / rho).
  """
  if steps < 3:
    raise UserError(f'steps must be at least 3, got {steps}')
  share = jnp.asarray(np.arange(steps - 1) / (steps - 2), y.dtype)[:, None]
  top = sigma[None] ** (1 / rho)
  levels = (top + share * (least ** (1 / rho) - top)) ** rho
  at = lambda x, level: denoiser(x, Time(level, jnp.ones_like(level), level), None)

  def step(x, pair):
    now, following = pair
    eps = at(x, now).eps
    width = marginals.match(following - now, x)
    return x + width * (eps + at(x + width * eps, following).eps) / 2, None

  x, _ = jax.lax.scan(step, y, (levels[:-1], levels[1:]))
  return at(x, levels[-1]).x0


def chains(
  denoiser: Denoiser,
  log_prob: Callable[[Array], Array],
  sigmas: Array,
  start: Array,
  ids: Array,
  draws: int,
  skip: int = 10,
  steps: int = 5,
  step: float = 0.5,
  variance: float | None = 0.0,
  level: str = 'drawn',
  choice: str = 'last',
  seed: int = 0,
) -> Drawn:
  """Draws of chains; a pure function, compile it as one.

  Args:
    denoiser: of a variance-exploding model (a = 1), with times of shape [B].
    log_prob: y [C, ...] -> log p(sigma | y) [C, K], up to a constant.
    sigmas: the levels [K]; p(sigma) is uniform over them, and the lowest is that from which
      `descend` ends at clean data.
    start: y [C, ...] at the highest level.
    ids: of the chains [C], on which their noise depends.
    draws: M of each chain.
    skip: moves between two draws.
    steps: of `descend`.
    step: c; with variance None, the step itself.
    variance: v, that of the narrowest mode of the data; None takes one step for all levels, as
      published.
    level: 'drawn' from p(sigma | y), or 'likeliest' as published.
    choice: the state that is denoised: the 'last' of `skip`, or that of the 'smallest' sigma, as
      published.

  Raises:
    UserError: on a name that is not known, or a c of 4 and more, where (1) is unstable.
  """
  for what, value, valid in (('level', level, LEVELS), ('choice', choice, CHOICES)):
    if value not in valid:
      raise UserError(f'unknown {what} {value!r}; valid: {", ".join(valid)}')
  if not (step > 0 and (variance is None or step < 4)):
    raise UserError(f'step must be in (0, 4), where the chain is stable, got {step:g}')
  keys, table = noise.sample_keys(seed, ids), jnp.asarray(sigmas, start.dtype)

  def move(state, n):
    y, index = state
    sigma = table[index]
    drawn = noise.at_step(keys, n, y.shape[1:], y.dtype)
    found = denoiser(y, Time(sigma, jnp.ones_like(sigma), sigma), None)
    size = jnp.full_like(sigma, step) if variance is None else step * (variance + sigma**2)
    score = -found.eps / marginals.match(sigma, y)
    y = y + marginals.match(size / 2, y) * score
    y = y + marginals.match(jnp.sqrt(size), y) * drawn.normal
    logits = log_prob(y)
    if level == 'likeliest':
      index = jnp.argmax(logits, 1)
    else:
      index = jax.vmap(lambda u, row: noise.categorical(u[None], jax.nn.softmax(row))[0])(
        drawn.uniform, logits
      )
    index = index.astype(jnp.int32)
    return (y, index), (y, index)

  def one(state, m):
    state, (visited, index) = jax.lax.scan(move, state, m * skip + jnp.arange(skip))
    y, at = state
    if choice == 'smallest':
      first = jnp.argmin(table[index], 0)
      pick = lambda path: path[first, jnp.arange(len(first))]
      y, at = pick(visited), pick(index)
    sigma = table[at]
    return state, (descend(denoiser, y, sigma, steps, jnp.min(table)), sigma)

  begin = start, jnp.full(len(start), jnp.argmax(table), jnp.int32)
  _, (x, sigma) = jax.lax.scan(one, begin, jnp.arange(draws))
  return Drawn(x, sigma, skip + 2 * steps - 3)
