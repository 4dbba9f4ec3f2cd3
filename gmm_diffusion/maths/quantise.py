"""Rounding to a grid of few bits, and its step, after PTQ4DM [2211.15736].

  (1) Q(x; s) = s clip(round(x / s), low, high)        zero is on the grid
      signed n bits: low = -2^(n-1), high = 2^(n-1) - 1; without negative values: 0 and 2^n - 1
  (2) s = argmin over i = 1..100 of mean |x - Q(x; s_i)|^2.4,  s_i = (i / 100) max|x| / R
      R = 2^(n-1) - 1/2, or 2^n - 1 without negative values

The published code shifts the signed grid by a zero point that lies at exactly one half, so that
rounding errors decide, for each step that is tried, whether the lowest value is -2^(n-1) or
-2^(n-1) + 1; (1) has the first.
"""

import jax
import jax.numpy as jnp

from gmm_diffusion.types import Array

CANDIDATES = 100
POWER = 2.4


def limits(bits: int, signed: bool) -> tuple[int, int]:
  """low and high of (1)."""
  return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def codes(x: Array, step: Array, low: Array | int, high: Array | int) -> Array:
  """The whole numbers of (1), in the dtype of x."""
  return jnp.clip(jnp.round(x / step), low, high)


def rounded(x: Array, step: Array, low: Array | int, high: Array | int) -> Array:
  """Equation (1); step broadcasts against x, and is not 0."""
  return step * codes(x, step, low, high)


def candidates(largest: Array, bits: int, signed: bool) -> Array:
  """The steps s_i of (2), [100, *shape of largest]; above 0 also where all x are 0."""
  largest = jnp.asarray(largest)
  whole = 2 ** (bits - 1) - 0.5 if signed else 2**bits - 1
  share = jnp.arange(1, CANDIDATES + 1, dtype=largest.dtype) / CANDIDATES
  steps = share.reshape((-1,) + (1,) * largest.ndim) * (largest / whole)[None]
  return jnp.maximum(steps, jnp.finfo(largest.dtype).tiny * 2.0**24)


def errors(
  x: Array, steps: Array, low: Array | int, high: Array | int, axes: tuple[int, ...]
) -> Array:
  """mean |x - Q(x; s)|^2.4 over axes of x, for each s in steps [S, ...]."""

  def one(step):
    return jnp.mean(jnp.abs(x - rounded(x, step, low, high)) ** POWER, axes)

  return jax.lax.map(one, steps)


def step_of_channels(x: Array, bits: int) -> Array:
  """Equation (2) for each index of the last axis of x [..., C], a signed grid: [C]."""
  axes = tuple(range(x.ndim - 1))
  steps = candidates(jnp.max(jnp.abs(x), axes), bits, True)
  within = steps.reshape((len(steps),) + (1,) * (x.ndim - 1) + (-1,))
  best = jnp.argmin(errors(x, within, *limits(bits, True), axes), 0)
  return jnp.take_along_axis(steps, best[None], 0)[0]
