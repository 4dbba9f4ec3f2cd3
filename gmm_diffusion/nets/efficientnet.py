"""EfficientNet-Lite [Tan & Le 2019; the Lite variants have ReLU6 and no squeeze-and-excitation] as
an encoder: without its head, and with batch normalisation folded into the convolutions.

Parameters are named as in the PyTorch port (checkpoints/importers/efficientnet.py).
"""

import functools
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from gmm_diffusion.types import Array


class Stage(NamedTuple):
  """Blocks that follow each other: the first has the stride, and widens each channel `expand` times
  inside."""

  repeats: int
  size: int
  stride: int
  expand: int
  channels: int


STEM = 32
LITE0 = (
  Stage(1, 3, 1, 1, 16),
  Stage(2, 3, 2, 6, 24),
  Stage(2, 5, 2, 6, 40),
  Stage(3, 3, 2, 6, 80),
  Stage(3, 5, 1, 6, 112),
  Stage(4, 5, 2, 6, 192),
  Stage(1, 3, 1, 6, 320),
)


def scaled(width: float, depth: float) -> tuple[Stage, ...]:
  """Stages with more channels, in multiples of 8, and more repeats; those of the first and the last
  one stay, as in the Lite variants [Tan & Le 2019, section 3.3, for factors near 1]."""
  out = [
    stage._replace(
      repeats=math.ceil(depth * stage.repeats), channels=int(width * stage.channels + 4) // 8 * 8
    )
    for stage in LITE0
  ]
  out[0], out[-1] = (out[i]._replace(repeats=LITE0[i].repeats) for i in (0, -1))
  return tuple(out)


STAGES = {'efficientnet_lite0': LITE0, 'efficientnet_lite2': scaled(1.1, 1.2)}
FROZEN = 4  # the stride down to which `frozen` keeps the features as they are


def same(side: int, size: int, stride: int) -> tuple[int, int]:
  """Zeros before and after a side, so that ceil(side / stride) outputs fit."""
  total = max((-(-side // stride) - 1) * stride + size - side, 0)
  return total // 2, total - total // 2


def _taps(x: Array, size: int, stride: int) -> list[Array]:
  """What each entry of a kernel is multiplied with: size^2 views [B, h, w, C] of x padded."""
  _, H, W, _ = x.shape
  rows, columns = same(H, size, stride), same(W, size, stride)
  x = jnp.pad(x, ((0, 0), rows, columns, (0, 0)))
  h, w = -(-H // stride), -(-W // stride)
  cut = lambda at, n: slice(at, at + (n - 1) * stride + 1, stride)
  return [x[:, cut(i, h), cut(j, w)] for i in range(size) for j in range(size)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise(x: Array, kernel: Array, stride: int) -> Array:
  """A convolution of each channel on its own, in size^2 products of whole images: much faster on a
  CPU than a grouped convolution.

  Args:
    x: [B, H, W, C].
    kernel: [size, size, C].
    stride: of rows and columns; zeros are added around x as `same` says.

  Returns:
    [B, ceil(H / stride), ceil(W / stride), C].
  """
  size, _, C = kernel.shape
  taps = zip(_taps(x, size, stride), kernel.reshape(-1, 1, 1, 1, C))
  return functools.reduce(jnp.add, (tap * weight for tap, weight in taps))


def _depthwise_forward(x, kernel, stride):
  return depthwise(x, kernel, stride), (x, kernel)


def _depthwise_backward(stride, saved, gradient):
  x, kernel = saved
  size, (H, W) = len(kernel), x.shape[1:3]
  taps = _taps(x, size, stride)
  of_kernel = jnp.stack([jnp.sum(tap * gradient, (0, 1, 2)) for tap in taps]).reshape(kernel.shape)
  # with zeros between its entries, the gradient meets the kernel turned round
  zero, rim, none = jnp.zeros((), x.dtype), (size - 1, size - 1, stride - 1), (0, 0, 0)
  wide = jax.lax.pad(gradient, zero, (none, rim, rim, none))
  height, width = wide.shape[1] - size + 1, wide.shape[2] - size + 1
  of_x = functools.reduce(
    jnp.add,
    (
      wide[:, size - 1 - i :][:, :height, size - 1 - j :][:, :, :width]
      * kernel[i, j][None, None, None]
      for i in range(size)
      for j in range(size)
    ),
  )
  top, left = same(H, size, stride)[0], same(W, size, stride)[0]
  return of_x[:, top : top + H, left : left + W], of_kernel


depthwise.defvjp(_depthwise_forward, _depthwise_backward)


class _Depthwise(nn.Module):
  """`depthwise` and a bias."""

  size: int
  stride: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    C = x.shape[-1]
    init = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal', in_axis=(0, 1), out_axis=())
    kernel = self.param('kernel', init, (self.size, self.size, C))
    bias = self.param('bias', nn.initializers.zeros, (C,))
    return depthwise(x, kernel, self.stride) + bias[None, None, None]


class Block(nn.Module):
  """Inverted bottleneck: widen, convolve each channel, project; x is added where the shape
  stays."""

  size: int
  stride: int
  expand: int
  channels: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    h = x
    if self.expand > 1:
      h = nn.relu6(nn.Conv(self.expand * x.shape[-1], (1, 1), name='_expand_conv')(h))
    h = nn.relu6(_Depthwise(self.size, self.stride, name='_depthwise_conv')(h))
    h = nn.Conv(self.channels, (1, 1), name='_project_conv')(h)
    return x + h if h.shape == x.shape else h


class EfficientNetLite(nn.Module):
  """Features of an image. Attributes: stages, those of a released network; frozen, whether no
  gradient reaches what makes the features of strides up to FROZEN."""

  stages: tuple[Stage, ...] = LITE0
  frozen: bool = False

  @nn.compact
  def __call__(self, image: Array, extra: Array | None = None) -> list[Array]:
    """Features at strides 2, 4, 8, 16 and 32.

    Args:
      image: [B, H, W, 3] in [-1, 1], sides multiples of 32.
      extra: [B, H/2, W/2, STEM], added to what the stem sees in the image.

    Returns:
      [B, H/s, W/s, C], with 16, 24, 40, 112 and 320 channels for Lite0.
    """
    x = (127.5 * image + 0.5) / 128  # the network was trained on (value - 127) / 128
    pad = [same(side, 3, 2) for side in image.shape[1:3]]
    x = nn.Conv(STEM, (3, 3), 2, padding=pad, name='_conv_stem')(x)
    x = nn.relu6(x if extra is None else x + extra)
    out: list[Array] = []
    number, stride = 0, 2
    for stage in self.stages:
      if stage.stride > 1:
        x = jax.lax.stop_gradient(x) if self.frozen and stride <= FROZEN else x
        out.append(x)
        stride *= 2
      for n in range(stage.repeats):
        step = stage.stride if n == 0 else 1
        name = f'_blocks.{number}'
        x = Block(stage.size, step, stage.expand, stage.channels, name=name)(x)
        number += 1
    return [*out, x]
