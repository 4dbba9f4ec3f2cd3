"""Bands of an orthonormal transform of one sample: the cosine transform along its first axes.

  (1) v = U x, U orthonormal (DCT-II): along height and width of images, along vectors
  (2) h_1(k) + ... + h_R(k) = 1: hat functions in log |k|, where |k|^2 = (i / H)^2 + (j / W)^2

An operator with one number c_r for each band multiplies v(k) by sum_r c_r h_r(k).
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from gmm_diffusion.errors import UserError
from gmm_diffusion.types import Array


class Bands(NamedTuple):
  """axes: the orthonormal matrix of each transformed axis. hats: h of (2), [R, *transformed]."""

  axes: tuple[np.ndarray, ...]
  hats: np.ndarray

  def analyse(self, x: Array) -> Array:
    """U x of a batch [B, ...]."""
    for axis, matrix in enumerate(self.axes, 1):
      x = jnp.moveaxis(jnp.tensordot(x, jnp.asarray(matrix, x.dtype), (axis, 1)), -1, axis)
    return x

  def synthesise(self, v: Array) -> Array:
    """U^T v of a batch [B, ...]."""
    for axis, matrix in enumerate(self.axes, 1):
      v = jnp.moveaxis(jnp.tensordot(v, jnp.asarray(matrix, v.dtype), (axis, 0)), -1, axis)
    return v

  def spread(self, values: Array, rank: int) -> Array:
    """One number for each band, [R] -> one for each coefficient, with the rank of a batch."""
    field = jnp.tensordot(values, jnp.asarray(self.hats, values.dtype), 1)
    return field.reshape((1, *field.shape) + (1,) * (rank - 1 - field.ndim))


def cosine(n: int) -> np.ndarray:
  """The orthonormal DCT-II of n numbers, [n, n], float64."""
  k, x = np.arange(n)[:, None], np.arange(n)[None]
  out = np.sqrt(2 / n) * np.cos(np.pi * k * (2 * x + 1) / (2 * n))
  out[0] /= np.sqrt(2)
  return out


def frequency(sides: tuple[int, ...]) -> np.ndarray:
  """|k| of (2) for every coefficient, [*sides]; 0 is the mean."""
  parts = np.meshgrid(*(np.arange(n) / n for n in sides), indexing='ij')
  return np.sqrt(sum(part**2 for part in parts))


def make(shape: tuple[int, ...], count: int) -> Bands:
  """`count` bands of samples [H, W, C] or [D], even in log |k|; the mean belongs to the first.

  Raises:
    UserError: on less than one band, or more than there are frequencies.
  """
  sides = shape[:-1] or shape
  k = frequency(sides)
  distinct = len(np.unique(k))
  if not 1 <= count <= distinct:
    raise UserError(f'bands must be in 1..{distinct} for samples of shape {shape}, got {count}')
  axes = tuple(cosine(n) for n in sides)
  if count == 1:
    return Bands(axes, np.ones((1, *sides)))
  position = np.log(np.maximum(k, k[k > 0].min()))
  position = (count - 1) * (position - position.min()) / (position.max() - position.min())
  centres = np.arange(count).reshape((count,) + (1,) * len(sides))
  return Bands(axes, np.maximum(0, 1 - np.abs(position - centres)))
