"""Degraded images: measurements by `inverse`, in the shape of the image, or those of a folder."""

import dataclasses
import os
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from gmm_diffusion import specs
from gmm_diffusion.data import base, folders
from gmm_diffusion.engine import measuring
from gmm_diffusion.errors import UserError
from gmm_diffusion.types import Array, Key


class Pairs(NamedTuple):
  """Degraded images beside those of the data, uint8 [N, H, W, C]."""

  train: Any
  test: Any


def check(spec: specs.Spec, data: base.Data) -> None:
  """Raises UserError unless the spec says what is restored, of images."""
  if not data.is_image or not len(data.train):
    raise UserError(
      f'data {spec.data.name!r} has no images to restore; valid: digits, folder, npz, tfds'
    )
  if bool(spec.inverse.operator) == bool(spec.restoration.pairs):
    raise UserError(
      'task restoration needs either inverse.operator (identity, mask, box or blur), or the folder '
      'restoration.pairs of degraded images, and not both'
    )
  if spec.inverse.operator:
    measuring.operator(spec.inverse, data.shape).apply(jnp.zeros((1, *data.shape)))


def load(spec: specs.Spec, data: base.Data) -> Pairs | None:
  """The images of restoration.pairs, if there are any.

  Raises:
    UserError: they are not those of data.path by name, or have another shape.
  """
  path = spec.restoration.pairs
  if not path:
    return None
  if spec.data.name != 'folder' or spec.data.skip_unreadable:
    raise UserError(
      "restoration.pairs needs data.name 'folder' without data.skip_unreadable, so that each image "
      'has its pair'
    )
  names = [
    [os.path.splitext(name)[0] for name in folders.names(os.path.expanduser(root))]
    for root in (spec.data.path, path)
  ]
  if names[0] != names[1]:
    odd = sorted(set(names[0]) ^ set(names[1])) or ['the order of their names']
    raise UserError(
      f'the images of restoration.pairs {path} and data.path {spec.data.path} differ in '
      f'{odd[0]!r}; give each pair the same name, but for its ending'
    )
  found = folders.load(dataclasses.replace(spec.data, path=path, labels='none'))
  pairs = Pairs(found.train, found.test)
  if pairs.train.shape != data.train.shape or pairs.test.shape != data.test.shape:
    raise UserError(
      f'the images of restoration.pairs are {_size(pairs.train)}, those of data.path '
      f'{_size(data.train)}; set data.size and data.colour'
    )
  return pairs


def _size(images):
  return f'{len(images)} of {" x ".join(map(str, images.shape[1:]))}'


def degraded(own: specs.Inverse, x: Array, keys: Key) -> Array:
  """Images [B, H, W, C] as `inverse` measures them, in their own shape and range; pure."""
  return measuring.as_image(measuring.measured(own, x, keys), x.shape[1:])


def of_training(spec: specs.Spec, pairs: Pairs | None):
  """(images as the batch has them, keys) -> (x_0, x_in)."""
  if pairs is not None:
    return lambda x, keys: tuple(jnp.split(x, 2, -1))
  return lambda x, keys: (x, degraded(spec.inverse, x, keys))


def of_test(spec: specs.Spec, data: base.Data, pairs: Pairs | None, count: int) -> np.ndarray:
  """x_in of the first test images, float32 [count, H, W, C]. Noise belongs to the image."""
  if pairs is not None:
    return base.to_model(pairs.test[:count])
  one = dataclasses.replace(spec, inverse=dataclasses.replace(spec.inverse, draws=1))
  return np.asarray(measuring.as_image(measuring.measure(one, data, np.arange(count)), data.shape))


def shown(spec: specs.Spec, data: base.Data, images: np.ndarray) -> np.ndarray:
  """x_in float32 [N, H, W, C] of degraded images uint8; those of 'box' may have their own, smaller
  size."""
  H, W, C = data.shape
  factor = spec.inverse.factor if spec.inverse.operator == 'box' else 1
  valid = (H, W, C), (H // factor, W // factor, C)
  if images.dtype != np.uint8 or images.shape[1:] not in valid:
    raise UserError(
      f'images must be uint8 [N, {H}, {W}, {C}]'
      + (f', or [N, {valid[1][0]}, {valid[1][1]}, {C}]' if factor > 1 else '')
      + f', got {images.dtype} {list(images.shape)}'
    )
  return np.asarray(measuring.as_image(base.to_model(images), data.shape))


def own_images(spec: specs.Spec, data: base.Data) -> tuple[np.ndarray, list[str]]:
  """(x_in float32 [N, H, W, C], names) of restoration.images."""
  path, own = os.path.expanduser(spec.restoration.images), spec.inverse
  factor = own.factor if own.operator == 'box' else 1
  images = measuring.images_like(data, path, 'restoration.images', factor)
  names = folders.names(path)
  stems = [os.path.splitext(name)[0] for name in names]
  for number, stem in enumerate(stems):
    if stem in stems[:number]:
      raise UserError(f'two images of {path} are called {stem!r}; rename one of them')
  return shown(spec, data, images), names
