"""Tokens that fit a measurement y = A x + noise of their values, without training
[APS, 2510.02291].

In each call the logits of the predictor are moved by gradient steps on |y - A q|_1, where q is the
expected value of a token, rounded to a level [straight through]. Then values are drawn, the tokens
whose values are likeliest are kept, and the others are masked again. It is a heuristic: the kernel
that its bound is derived from is not normalised, and nothing makes it sample the posterior.

What is hidden completely needs none of this: reveal.sample with `known` is exact.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from gmm_diffusion.discrete import counts, reveal
from gmm_diffusion.discrete.process import Predictor
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import noise
from gmm_diffusion.types import Array

_SMOOTH = 0.01  # of the absolute value


def values(x: Array, levels: int) -> Array:
  """Tokens as values in [-1, 1]."""
  return 2 * x / (levels - 1) - 1


def anchored(
  predictor: Predictor,
  levels: int,
  tokens: int,
  measure: Callable[[Array], Array],
  y: Array,
  ids: Array,
  seed: int = 0,
  steps: int = 16,
  inner: int = 100,
  rate: float = 0.3,
) -> Array:
  """Tokens int32 [B, L] that fit a measurement; pure.

  Args:
    predictor: of tokens with this number of levels.
    levels: V.
    tokens: L.
    measure: A, of values in [-1, 1], [B, L] -> [B, ...].
    y: the measurement, [B, ...].
    ids: numbers of the samples, [B].
    seed: of the draws.
    steps: calls of the predictor.
    inner: gradient steps (Adam) on the logits of each call; 0 ignores the measurement.
    rate: of these.

  Raises:
    UserError: the measurement has another shape than A gives.
  """
  wanted = jax.eval_shape(measure, jnp.zeros((len(ids), tokens))).shape
  if jnp.shape(y) != wanted:
    raise UserError(f'a measurement must have the shape {list(wanted)}, got {list(jnp.shape(y))}')
  keys = noise.sample_keys(seed, ids)
  optimiser = optax.adam(rate)
  x = jnp.full((len(ids), tokens), levels, jnp.int32)
  kept = 0

  def misfit(logits, x):
    mean = jax.nn.softmax(logits) @ jnp.arange(levels, dtype=logits.dtype)
    mean = jnp.where(x == levels, mean, x)
    rounded = mean + jax.lax.stop_gradient(jnp.round(mean) - mean)
    # smooth where it is fitted, so that no rounding decides on a sign
    return jnp.sum(jnp.sqrt((y - measure(values(rounded, levels))) ** 2 + _SMOOTH**2))

  def moved(logits, x):
    def one(_, state):
      logits, inside = state
      updates, inside = optimiser.update(jax.grad(misfit)(logits, x), inside)
      return optax.apply_updates(logits, updates), inside

    return jax.lax.fori_loop(0, inner, one, (logits, optimiser.init(logits)))[0]

  for n, count in enumerate(counts.uniform(tokens, steps)):
    kept += int(count)
    probabilities = jax.nn.softmax(moved(predictor(x, None), x))
    w = jax.vmap(lambda key, n=n: jax.random.uniform(jax.random.fold_in(key, n), (tokens,)))(keys)
    drawn = jnp.where(x == levels, reveal.inverse(probabilities, w), x)
    likely = jnp.take_along_axis(probabilities, drawn[..., None], -1)[..., 0]
    likely = jnp.where(x == levels, likely, 2.0)  # anchors stay
    rank = jnp.argsort(jnp.argsort(-likely, -1), -1)
    x = jnp.where(rank < kept, drawn, levels).astype(jnp.int32)
  return x
