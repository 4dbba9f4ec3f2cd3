"""The Inception v3 behind FID: TensorFlow's graph of 2015-12-05, channels last.

It differs from later Inception v3 networks: 1008 classes, batch normalisation with epsilon 1e-3,
average pools that leave out the padding, and a max pool in the last block. Parameters are named as
in the public PyTorch weights, so that they map name by name (metrics/inception.py).
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gmm_diffusion.types import Array

SIDE = 299  # of the images that the network was trained on


class Outputs(NamedTuple):
  """What the metrics read; all non-negative but the logits.

  Attributes:
    pool3: [N, 2048], for FID, KID, precision and recall.
    logits: [N, 1008] without the bias, for the Inception score.
    spatial: [N, 2023], for sFID: 7 channels of TensorFlow's mixed_6/conv at 17 x 17 places, in
      order H, W, C.
    means64, means192, means768: [N, 64], [N, 192], [N, 768]; means over space after the first and
      the second max pool and after Mixed_6e.
  """

  pool3: Array
  logits: Array
  spatial: Array
  means64: Array
  means192: Array
  means768: Array


class BatchNorm(nn.Module):
  """Normalisation by stored moments, which are parameters here."""

  @nn.compact
  def __call__(self, x: Array) -> Array:
    moment = lambda name, init: self.param(name, init, (x.shape[-1],), x.dtype)
    weight, bias = (
      moment('weight', nn.initializers.ones_init()),
      moment('bias', nn.initializers.zeros_init()),
    )
    mean, variance = (
      moment('running_mean', nn.initializers.zeros_init()),
      moment('running_var', nn.initializers.ones_init()),
    )
    scale = weight / jnp.sqrt(variance + 1e-3)
    return x * scale.reshape(1, 1, 1, -1) + (bias - mean * scale).reshape(1, 1, 1, -1)


class Conv(nn.Module):
  """Convolution, batch normalisation, ReLU. Without a stride the size stays."""

  channels: int
  size: tuple[int, int] = (1, 1)
  stride: int = 1
  padding: str = 'SAME'

  @nn.compact
  def __call__(self, x: Array) -> Array:
    # full float32 everywhere: accelerators would round factors to fewer bits, and the distances are
    # small differences
    x = nn.Conv(
      self.channels,
      self.size,
      self.stride,
      self.padding,
      use_bias=False,
      precision='highest',
      name='conv',
    )(x)
    return nn.relu(BatchNorm(name='bn')(x))


class Unbiased(nn.Module):
  """A dense layer that leaves out its bias, which it has."""

  features: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    kernel = self.param(
      'kernel', nn.initializers.lecun_normal(), (x.shape[-1], self.features), x.dtype
    )
    self.param('bias', nn.initializers.zeros_init(), (self.features,), x.dtype)
    return jnp.dot(x, kernel, precision='highest')


def _average_pool(x):
  return nn.avg_pool(x, (3, 3), (1, 1), 'SAME', count_include_pad=False)


def _max_pool(x):
  return nn.max_pool(x, (3, 3), (1, 1), 'SAME')


def _halve(x):
  return nn.max_pool(x, (3, 3), (2, 2))


def _chain(x, name, *layers, first=1):
  """Convolutions called name_1, name_2, ...; each layer is (channels, size), and what else Conv
  takes."""
  for number, layer in enumerate(layers, first):
    x = Conv(*layer, name=f'{name}_{number}')(x)
  return x


class BlockA(nn.Module):
  """35 x 35; `pool` channels come from the pooled branch."""

  pool: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    return jnp.concatenate(
      [
        Conv(64, name='branch1x1')(x),
        _chain(x, 'branch5x5', (48,), (64, (5, 5))),
        _chain(x, 'branch3x3dbl', (64,), (96, (3, 3)), (96, (3, 3))),
        Conv(self.pool, name='branch_pool')(_average_pool(x)),
      ],
      -1,
    )


class BlockB(nn.Module):
  """35 x 35 to 17 x 17."""

  @nn.compact
  def __call__(self, x: Array) -> Array:
    return jnp.concatenate(
      [
        Conv(384, (3, 3), 2, 'VALID', name='branch3x3')(x),
        _chain(x, 'branch3x3dbl', (64,), (96, (3, 3)), (96, (3, 3), 2, 'VALID')),
        _halve(x),
      ],
      -1,
    )


class BlockC(nn.Module):
  """17 x 17 with 7 x 7 filters in two steps, `inner` channels wide; returns (output, first
  branch)."""

  inner: int

  @nn.compact
  def __call__(self, x: Array) -> tuple[Array, Array]:
    row, column, C = (1, 7), (7, 1), self.inner
    first = Conv(192, name='branch1x1')(x)
    return jnp.concatenate(
      [
        first,
        _chain(x, 'branch7x7', (C,), (C, row), (192, column)),
        _chain(x, 'branch7x7dbl', (C,), (C, column), (C, row), (C, column), (192, row)),
        Conv(192, name='branch_pool')(_average_pool(x)),
      ],
      -1,
    ), first


class BlockD(nn.Module):
  """17 x 17 to 8 x 8."""

  @nn.compact
  def __call__(self, x: Array) -> Array:
    return jnp.concatenate(
      [
        _chain(x, 'branch3x3', (192,), (320, (3, 3), 2, 'VALID')),
        _chain(x, 'branch7x7x3', (192,), (192, (1, 7)), (192, (7, 1)), (192, (3, 3), 2, 'VALID')),
        _halve(x),
      ],
      -1,
    )


class BlockE(nn.Module):
  """8 x 8; the last one pools by the maximum, a slip in the original that its weights know."""

  last: bool

  @nn.compact
  def __call__(self, x: Array) -> Array:
    fork = lambda y, name: [
      Conv(384, (1, 3), name=name + 'a')(y),
      Conv(384, (3, 1), name=name + 'b')(y),
    ]
    return jnp.concatenate(
      [
        Conv(320, name='branch1x1')(x),
        *fork(_chain(x, 'branch3x3', (384,)), 'branch3x3_2'),
        *fork(_chain(x, 'branch3x3dbl', (448,), (384, (3, 3))), 'branch3x3dbl_3'),
        Conv(192, name='branch_pool')((_max_pool if self.last else _average_pool)(x)),
      ],
      -1,
    )


class Inception(nn.Module):
  """Images [N, 299, 299, 3] in [-1, 1) -> Outputs."""

  @nn.compact
  def __call__(self, x: Array) -> Outputs:
    x = Conv(32, (3, 3), 2, 'VALID', name='Conv2d_1a_3x3')(x)
    x = Conv(32, (3, 3), 1, 'VALID', name='Conv2d_2a_3x3')(x)
    x = first = _halve(Conv(64, (3, 3), name='Conv2d_2b_3x3')(x))
    x = Conv(80, name='Conv2d_3b_1x1')(x)
    x = second = _halve(Conv(192, (3, 3), 1, 'VALID', name='Conv2d_4a_3x3')(x))
    for name, pool in (('5b', 32), ('5c', 64), ('5d', 64)):
      x = BlockA(pool, name='Mixed_' + name)(x)
    x = BlockB(name='Mixed_6a')(x)
    branches = {}
    for name, inner in (('6b', 128), ('6c', 160), ('6d', 160), ('6e', 192)):
      x, branches[name] = BlockC(inner, name='Mixed_' + name)(x)
    spatial = branches['6d'][..., :7]  # TensorFlow counts all blocks from 0, so this is its mixed_6
    last = x
    x = BlockD(name='Mixed_7a')(x)
    x = BlockE(False, name='Mixed_7b')(x)
    pool3 = BlockE(True, name='Mixed_7c')(x).mean((1, 2))
    mean = lambda y: y.mean((1, 2))
    return Outputs(
      pool3,
      Unbiased(1008, name='fc')(pool3),
      spatial.reshape(len(x), -1),
      mean(first),
      mean(second),
      mean(last),
    )


def resize(images: Array, side: int = SIDE) -> Array:
  """Bilinear resize of [N, H, W, C] as in TensorFlow 1: pixel i comes from i H / side, without half
  pixels or antialiasing."""
  for axis in (1, 2):
    size = images.shape[axis]
    low, rest = np.divmod(np.arange(side) * size, side)
    shape = [1, 1, 1, 1]
    shape[axis] = side
    part = (rest / side).astype(images.dtype).reshape(shape)
    below = jnp.take(images, low, axis)
    images = below + (jnp.take(images, np.minimum(low + 1, size - 1), axis) - below) * part
  return images


def preprocess(images: Array, dtype: jax.typing.DTypeLike = jnp.float32) -> Array:
  """Images [N, H, W, 3] of 0..255 -> the network's input."""
  return (resize(images.astype(dtype)) - 128) / 128
