"""Noise as a function of (seed, sample id, step).

Sample 4711 gets the same noise whatever the batch size, the device count, the host
count, and whichever other samples are drawn.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gmm_diffusion.types import Array, Key


class StepNoise(NamedTuple):
  """The randomness of one step: normal [B, ...] ~ N(0, I), uniform [B] in [0, 1).

  A kernel uses what it needs; what it leaves is removed by the compiler.
  """

  normal: Array
  uniform: Array


def sample_keys(seed: Array | int, ids: Array) -> Key:
  """One key per sample: ids are integers of shape [B]."""
  return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.asarray(ids, jnp.uint32))


def initial(keys: Key, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
  """Unit normal noise [B, *shape] from which sampling starts."""
  return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 0), shape, dtype))(keys)


def at_step(keys: Key, step: Array | int, shape: tuple[int, ...], dtype=jnp.float32) -> StepNoise:
  """The noise of step 0, 1, ... of a trajectory, for samples of the given shape."""

  def one(key):
    normal, uniform = jax.random.split(jax.random.fold_in(key, step + 1))
    return StepNoise(
      jax.random.normal(normal, shape, dtype), jax.random.uniform(uniform, (), dtype)
    )

  return jax.vmap(one)(keys)


def categorical(uniform: Array, priors: Array) -> Array:
  """Indices [B] with probabilities priors [K], by inverting the distribution function."""
  edges = jnp.cumsum(priors)
  index = jnp.searchsorted(edges, uniform * edges[-1], side='right')
  return jnp.minimum(index, len(priors) - 1)
