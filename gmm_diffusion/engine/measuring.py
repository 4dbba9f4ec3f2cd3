"""Measurements of images for `inverse.*`: which operator, of which images, with which noise.

Sample id i belongs to image i // inverse.draws, taken in turn. The noise of a measurement is a
function of the seed and the number of its image, so that all draws of an image see the same one.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image

from gmm_diffusion import specs
from gmm_diffusion.data import base, folders
from gmm_diffusion.denoisers import inverse
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import noise
from gmm_diffusion.types import Array, Denoiser, Key

_STEP = 2**31 - 2  # of the noise, which no sampler reaches


def check(spec: specs.Spec, data: base.Data) -> None:
  """Raises UserError where inverse.* does not fit the model or the data."""
  own = spec.inverse
  if spec.autoencoder.name or not data.is_image:
    what = 'latents' if spec.autoencoder.name else 'vectors'
    raise UserError(
      f'inverse.operator {own.operator!r} measures pixels, and this model makes {what}; set it to '
      "''"
    )
  if own.noise == 0:
    raise UserError(
      'inverse.noise is 0, and a denoiser is guided by measurements with noise; raise it, such as '
      'to 0.01'
    )
  if own.method == 'exact' and spec.denoiser.name != 'empirical':
    raise UserError(
      f"inverse.method 'exact' needs denoiser.name 'empirical', got {spec.denoiser.name!r}; valid "
      f'there: {", ".join(inverse.METHODS)}'
    )
  if not len(data.test):
    raise UserError('there are no test images to measure; set inverse.images to a folder')
  operator(own, data.shape).apply(jnp.zeros((1, *data.shape)))


def with_images(spec: specs.Spec, data: base.Data) -> base.Data:
  """The data with the images of inverse.images, if there are any, in the place of the test set."""
  own = spec.inverse
  if not own.images:
    if own.measured:
      raise UserError('inverse.measured needs inverse.images, the folder of the measurements')
    return data
  smaller = own.factor if own.measured and own.operator == 'box' else 1
  images = images_like(data, own.images, 'inverse.images', smaller, own.measured)
  return data._replace(test=images, test_labels=np.zeros(len(images), np.int32))


def images_like(
  data: base.Data, path: str, key: str, factor: int = 1, as_they_are: bool = False
) -> np.ndarray:
  """The images of a folder, which a key names, cropped to the size of the data, or so many times
  smaller: uint8 [N, H, W, C]. With `as_they_are` they must have that size."""
  if not data.is_image or data.shape[0] != data.shape[1]:
    raise UserError(f'{key} needs a model of square images')
  if not os.path.isdir(os.path.expanduser(path)):
    raise UserError(f'there is no folder {path!r}; set {key} to a folder of images')
  side = data.shape[0] // factor
  own = specs.Data(
    name='folder',
    path=path,
    size=0 if as_they_are else side,
    colour='grey' if data.shape[-1] == 1 else 'rgb',
    labels='none',
  )
  found = folders.load(own)
  images = np.concatenate([np.asarray(found.train), np.asarray(found.test)])
  if images.shape[1:3] != (side, side):  # another size would change what was measured
    raise UserError(
      f'{key} has measurements of {images.shape[1]} x {images.shape[2]} pixels, and those of this '
      f'model have {side} x {side}; give images of that size'
    )
  return images


def operator(own: specs.Inverse, shape: tuple[int, ...]) -> inverse.Operator:
  """The operator that a spec names, for images of a shape."""
  return {
    'identity': inverse.identity,
    'mask': lambda: inverse.mask(known(own.hidden, shape)),
    'box': lambda: inverse.box(own.factor),
    'blur': lambda: inverse.blur(own.width),
  }[own.operator]()


def known(hidden: str, shape: tuple[int, ...]) -> np.ndarray:
  """1 where pixels are seen and 0 where they are hidden, [H, W, 1], the same in every image.

  Args:
    hidden: 'bottom' and 'right' are halves, 'middle' is half of each side, 'random' is half of all
      pixels; else the file of an image that is white where pixels are hidden.
    shape: of an image.

  Raises:
    UserError: there is no such region or file, or it hides nothing or all.
  """
  H, W, _ = shape
  out = np.ones((H, W, 1), np.int32)
  regions = {
    'bottom': (slice(H // 2, H), slice(None)),
    'right': (slice(None), slice(W // 2, W)),
    'middle': (slice(H // 4, H - H // 4), slice(W // 4, W - W // 4)),
  }
  if hidden == 'random':
    out.reshape(-1)[np.random.RandomState(0).permutation(H * W)[: H * W // 2]] = 0
  elif hidden in regions:
    out[regions[hidden]] = 0
  else:
    out[_white(hidden, H, W)] = 0
  if out.all() or not out.any():
    raise UserError(f'inverse.hidden {hidden!r} hides {"nothing" if out.all() else "all pixels"}')
  return out


def _white(path, H, W):
  path = os.path.expanduser(path)
  if not os.path.isfile(path):
    raise UserError(
      f'unknown inverse.hidden {path!r}; valid: middle, bottom, right, random, or the file of an '
      f'image that is white where pixels are hidden'
    )
  try:
    with Image.open(path) as file:
      mask = np.asarray(file.convert('L').resize((W, H), Image.Resampling.NEAREST))
  except folders.DAMAGED as error:
    raise UserError(f'cannot read {path} ({type(error).__name__}); give another image') from error
  return mask > 127


def facts(spec: specs.Spec, data: base.Data) -> list[Any]:
  """What restored samples depend on besides what others do, but for the images."""
  own, masked = spec.inverse, spec.inverse.operator == 'mask'
  return [dataclasses.asdict(own), known(own.hidden, data.shape).tolist() if masked else []]


def originals(spec: specs.Spec, data: base.Data, ids: np.ndarray) -> np.ndarray:
  """The images behind samples, or with inverse.measured what is known of them: uint8 [N, H, W,
  C]."""
  return data.test[numbers(spec, data, ids)]


def numbers(spec: specs.Spec, data: base.Data, ids: np.ndarray) -> np.ndarray:
  """Which image is behind each sample."""
  return np.asarray(ids, np.int64) // spec.inverse.draws % len(data.test)


def measured(own: specs.Inverse, x: Array, keys: Key) -> Array:
  """y = A x + sigma n of images [B, H, W, C] in [-1, 1], with n of the keys [B]; pure."""
  y = operator(own, x.shape[1:]).apply(x)
  drawn = noise.at_step(keys, _STEP, y.shape[1:], y.dtype).normal
  if own.operator == 'mask':  # nothing is seen there, not even noise
    drawn = drawn * jnp.asarray(known(own.hidden, x.shape[1:]), y.dtype)[None]
  return y + own.noise * drawn


def measure(spec: specs.Spec, data: base.Data, ids: np.ndarray) -> np.ndarray:
  """`measured` of the images behind samples, or what was measured of them: float32 [N, ...]."""
  own, x = spec.inverse, base.to_model(originals(spec, data, ids))
  if own.measured:
    return x * known(own.hidden, data.shape) if own.operator == 'mask' else x
  keys = noise.sample_keys(spec.seed, numbers(spec, data, ids))
  return np.asarray(measured(own, jnp.asarray(x), keys))


def as_image(y: Array, shape: tuple[int, ...]) -> Array:
  """A measurement [N, ...] in the shape of an image: large pixels where it has fewer."""
  factor = shape[0] // y.shape[1]
  return y.repeat(factor, 1).repeat(factor, 2)


def shown(y: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """The same as uint8, to look at."""
  return np.asarray(as_image(base.to_image(y), shape))


def guided(
  spec: specs.Spec, data: base.Data, bind: Callable[[Any], Denoiser]
) -> Callable[[Any], Denoiser]:
  """weights -> Denoiser that takes (labels, y) in the place of labels."""
  own = spec.inverse
  apart = operator(own, data.shape)

  def of(arrays):
    def denoise(x, time, cond):
      labels, y = cond
      if own.method == 'exact':
        return inverse.empirical(arrays, apart, y, own.noise)(x, time, labels)
      return inverse.posterior(bind(arrays), apart, y, own.noise, own.method)(x, time, labels)

    return denoise

  return of
