"""Encoders of the segmenter: an image becomes features at strides 1, 4 and 8, once for all
clicks."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from gmm_diffusion.nets.blocks import ResBlock, upsample
from gmm_diffusion.nets.efficientnet import STAGES, STEM, EfficientNetLite, Stage
from gmm_diffusion.types import Array

DETAIL = 16  # channels at stride 1


class Pyramid(NamedTuple):
  """detail [B, H, W, DETAIL], fine [B, H/4, W/4, C], coarse [B, H/8, W/8, C']."""

  detail: Array
  fine: Array
  coarse: Array


class Encoder(Protocol):
  """(image [B, H, W, 3] in [-1, 1], drawn [B, H, W, 2] or None) -> Pyramid; H and W are multiples
  of 16, and `drawn` are clicks as two more channels."""

  def __call__(self, image: Array, drawn: Array | None = None) -> Pyramid: ...


def _conv(width: int, size: int = 3, stride: int = 1) -> nn.Conv:
  return nn.Conv(width, (size, size), stride)


class _TopDown(nn.Module):
  """Features from the coarsest level to the finest, each joined with the one before."""

  widths: tuple[int, ...]

  @nn.compact
  def __call__(self, h: Array, skips: Sequence[Array]) -> list[Array]:
    """h: the coarsest; skips: the others, coarse to fine -> the joined ones, coarse to fine."""
    out = []
    for width, skip in zip(self.widths, skips):
      up = upsample(h)[:, : skip.shape[1], : skip.shape[2]]
      h = ResBlock(width)(jnp.concatenate([up, skip], -1))
      out.append(h)
    return out


class Scratch(nn.Module):
  """A small U-Net that knows nothing but what it is trained on. Attributes: channels at stride 4;
  residual blocks per level."""

  channels: int
  blocks: int

  @nn.compact
  def __call__(self, image: Array, drawn: Array | None = None) -> Pyramid:
    C, x = self.channels, image if drawn is None else jnp.concatenate([image, drawn], -1)
    half = nn.silu(_conv(C // 2, 3, 2)(x))
    h: Array = nn.silu(_conv(C, 3, 2)(half))
    levels = []
    for width, resample in ((C, ''), (3 * C // 2, 'down'), (2 * C, 'down'), (2 * C, 'down')):
      if len(levels) == 3:  # stride 32 may not divide
        odd = h.shape[1] % 2, h.shape[2] % 2
        h = jnp.pad(h, ((0, 0), (0, odd[0]), (0, odd[1]), (0, 0)), mode='edge')
      for n in range(self.blocks):
        h = ResBlock(width, '' if n else resample)(h)
      levels.append(h)
    joined = _TopDown((2 * C, 3 * C // 2, C))(levels[3], levels[2::-1])
    detail = nn.silu(_conv(DETAIL)(x) + upsample(_conv(DETAIL, 1)(half)))
    return Pyramid(detail, joined[2], joined[1])


class Pretrained(nn.Module):
  """EfficientNet-Lite on the image at twice its size, so that its strides 2 to 32 are 1 to 16 here.

  Its features down to stride 2 (4 of its own) stay as they were trained on ImageNet. Attributes:
  stages of the released network; channels at stride 4.
  """

  stages: tuple[Stage, ...]
  channels: int

  @nn.compact
  def __call__(self, image: Array, drawn: Array | None = None) -> Pyramid:
    B, H, W, _ = image.shape
    large = jax.image.resize(image, (B, 2 * H, 2 * W, 3), 'bilinear')
    # what is drawn joins the stem of the network, which has this size
    extra = None if drawn is None else _conv(STEM)(drawn)
    net = EfficientNetLite(self.stages, drawn is None, name='pretrained')
    one, two, four, eight, sixteen = net(large, extra)
    C = self.channels
    eight, four = _TopDown((2 * C, C))(
      _conv(2 * C, 1)(sixteen), [_conv(2 * C, 1)(eight), _conv(C, 1)(four)]
    )
    detail = nn.silu(_conv(DETAIL)(one) + upsample(_conv(DETAIL, 1)(two)))
    return Pyramid(detail, four, eight)


ENCODERS: dict[str, Callable[[int, int], Encoder]] = {  # of channels and blocks
  'scratch': lambda channels, blocks: Scratch(channels, blocks),
  **{
    name: lambda channels, blocks, stages=stages: Pretrained(stages, channels)
    for name, stages in STAGES.items()
  },
}
