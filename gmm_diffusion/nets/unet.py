"""The U-Net of ADM [ADM section 3, appendix], DDPM, latent diffusion and Stable Diffusion, and
ADM's classifier.

They differ in options only. Blocks are named and numbered as in the released ADM model.
"""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from gmm_diffusion.errors import UserError
from gmm_diffusion.nets.blocks import (
  AttentionBlock,
  GroupNorm,
  ResBlock,
  SpatialTransformer,
  attend,
  labels_of,
  timestep_embedding,
  upsample,
  widen,
  zero_init,
)
from gmm_diffusion.nets.em_attention import EMAttentionBlock
from gmm_diffusion.nets.soft_attention import SoftAttentionBlock
from gmm_diffusion.types import Array


class Encoder(nn.Module):
  """What the U-Net and the classifier share: time embedding, downward path and middle block.

  Attributes:
    out_channels: of the whole network.
    channels: width of the first level.
    multipliers: width of each level over `channels`; each level but the last halves H and W.
    blocks: residual blocks per level.
    attention: resolutions (in pixels of a side) with self-attention.
    head_channels: channels per attention head; 0 uses `heads` heads.
    heads: number of heads where head_channels is 0.
    classes: number of labels, including one for "no class" if there is one. 0 takes no labels.
    context_dim: width of the context for cross-attention; 0 has plain self-attention instead. With
      classes, the context is one token per label; without, the condition is the context itself.
    transformer_depth: transformer blocks in each spatial transformer (with a context): one number,
      or one for each level; the middle has the last.
    scale_shift: time embedding as scale and shift, or added.
    resblock_updown: residual blocks or plain (convolution) layers change the resolution.
    pad_end: strided convolutions pad at the end only (DDPM), or on both sides.
    attention_kind: 'dot' (dot-product); 'em' for self-attention with key adaptation
      (nets/em_attention.py); 'soft' for linear time (nets/soft_attention.py).
    attention_ratio, attention_normalise: of 'soft', see SoftAttentionBlock.
    legacy_attention: order of the packed q, k, v (ADM 128, 256, 512 and LDM: legacy; ADM 64: new).
    eps: of the group normalisations.
    freq_shift, sin_first: form of the time embedding (ADM, LDM: 0, False; DDPM: 1, True).
    dropout: rate inside residual blocks while training.
    remat: blocks are computed again for the gradient, in place of keeping what is inside them.
    dtype: of the computation; parameters are float32, and so is the output.
  """

  out_channels: int
  channels: int = 128
  multipliers: tuple[float, ...] = (1, 2, 2, 2)
  blocks: int = 2
  attention: tuple[int, ...] = (16, 8)
  head_channels: int = 64
  heads: int = 1
  classes: int = 0
  context_dim: int = 0
  scale_shift: bool = True
  resblock_updown: bool = True
  pad_end: bool = False
  legacy_attention: bool = True
  eps: float = 1e-5
  freq_shift: int = 0
  sin_first: bool = False
  dropout: float = 0.0
  dtype: Any = jnp.float32
  attention_kind: str = 'dot'
  attention_ratio: int = 2
  attention_normalise: str = 'rows'
  transformer_depth: tuple[int, ...] = (1,)
  remat: bool = False

  def _block(self, kind, *static):
    """A class of blocks; static: the numbers of arguments that are no arrays."""
    return nn.remat(kind, static_argnums=static) if self.remat else kind

  def _res(self, channels, name, resample=''):
    return self._block(ResBlock, 3)(
      channels, resample, self.scale_shift, self.dropout, self.eps, self.dtype, name=name
    )

  def _heads(self, channels):
    heads = channels // self.head_channels if self.head_channels else self.heads
    if heads < 1 or channels % heads:
      raise UserError(
        f'attention on {channels} channels needs a head width that divides them; '
        f'got head_channels {self.head_channels}, heads {self.heads}'
      )
    return heads

  def _depth(self, level):
    """Transformer blocks of a level; the middle is level -1."""
    if len(self.transformer_depth) not in (1, len(self.multipliers)):
      raise UserError(
        f'transformer_depth {self.transformer_depth} must be one number, or one for each of the '
        f'{len(self.multipliers)} levels'
      )
    return self.transformer_depth[level if len(self.transformer_depth) > 1 else 0]

  def _attention(self, h, context, level, name):
    heads = self._heads(h.shape[-1])
    if self.context_dim:
      return self._block(SpatialTransformer)(heads, self.dtype, self._depth(level), name=name)(
        h, context
      )
    if self.attention_kind == 'em':
      return self._block(EMAttentionBlock)(heads, self.eps, self.dtype, name=name)(h)
    if self.attention_kind == 'soft':
      # the middle block has attention at a side that nobody chose
      ratio = math.gcd(self.attention_ratio, *h.shape[1:3]) if level < 0 else self.attention_ratio
      options = ratio, self.attention_normalise, self.eps, self.dtype
      return self._block(SoftAttentionBlock)(heads, *options, name=name)(h)
    return self._block(AttentionBlock)(
      heads, self.legacy_attention, self.eps, self.dtype, name=name
    )(h)

  def _down(self, h, emb, train, name):
    if self.resblock_updown:
      return self._res(h.shape[-1], f'{name}.0', 'down')(h, emb, train)
    padding = ((0, 1), (0, 1)) if self.pad_end else 1  # not "SAME"
    return nn.Conv(h.shape[-1], (3, 3), 2, padding=padding, dtype=self.dtype, name=f'{name}.0.op')(
      h
    )

  def _width(self, multiplier):
    return int(self.channels * multiplier)

  def _condition(self, t, cond):
    """Time embedding [B, 4 C], and the context of the cross-attention or None."""
    width = 4 * self.channels
    dense = lambda name: nn.Dense(width, dtype=self.dtype, name=name)
    emb = timestep_embedding(t, self.channels, self.freq_shift, self.sin_first).astype(self.dtype)
    emb = dense('time_embed.2')(nn.silu(dense('time_embed.0')(emb)))
    if self.context_dim and self.classes:
      return emb, nn.Embed(self.classes, self.context_dim, dtype=self.dtype, name='context_emb')(
        labels_of(cond, self.classes)
      )[:, None]
    if self.context_dim:
      return emb, jnp.asarray(cond, self.dtype)
    if self.classes:
      labels = labels_of(cond, self.classes)
      emb = emb + nn.Embed(self.classes, width, dtype=self.dtype, name='label_emb')(labels)
    return emb, None

  def _encode(self, x, emb, context, train):
    """(middle block's output, skips)."""
    h = nn.Conv(
      self._width(self.multipliers[0]), (3, 3), dtype=self.dtype, name='input_blocks.0.0'
    )(x.astype(self.dtype))
    skips, index = [h], 1
    for level, multiplier in enumerate(self.multipliers):
      for _ in range(self.blocks):
        h = self._res(self._width(multiplier), f'input_blocks.{index}.0')(h, emb, train)
        if h.shape[1] in self.attention:
          h = self._attention(h, context, level, f'input_blocks.{index}.1')
        skips.append(h)
        index += 1
      if level < len(self.multipliers) - 1:
        h = self._down(h, emb, train, f'input_blocks.{index}')
        skips.append(h)
        index += 1
    h = self._res(h.shape[-1], 'middle_block.0')(h, emb, train)
    h = self._attention(h, context, -1, 'middle_block.1')
    return self._res(h.shape[-1], 'middle_block.2')(h, emb, train), skips


class UNet(Encoder):
  """(x [B, H, W, C], t [B], cond) -> [B, H, W, out_channels]; a learned variance comes last in
  them.

  cond: labels [B], a context [B, M, context_dim], or None, as the attributes of Encoder say.
  """

  def _up(self, h, emb, train, name):
    if self.resblock_updown:
      return self._res(h.shape[-1], name, 'up')(h, emb, train)
    return nn.Conv(h.shape[-1], (3, 3), dtype=self.dtype, name=f'{name}.conv')(upsample(h))

  @nn.compact
  def __call__(self, x: Array, t: Array, cond: Array | None = None, train: bool = False) -> Array:
    emb, context = self._condition(t, cond)
    h, skips = self._encode(x, emb, context, train)
    index = 0
    for level, multiplier in reversed(list(enumerate(self.multipliers))):
      for block in range(self.blocks + 1):
        part = 0
        h = jnp.concatenate([h, skips.pop()], -1)
        h = self._res(self._width(multiplier), f'output_blocks.{index}.{part}')(h, emb, train)
        if h.shape[1] in self.attention:
          part += 1
          h = self._attention(h, context, level, f'output_blocks.{index}.{part}')
        if level and block == self.blocks:
          h = self._up(h, emb, train, f'output_blocks.{index}.{part + 1}')
        index += 1
    h = nn.silu(GroupNorm(self.dtype, self.eps, name='out.0')(h))
    return nn.Conv(self.out_channels, (3, 3), kernel_init=zero_init, name='out.2')(widen(h))


class AttentionPool(nn.Module):
  """[B, H, W, C] -> [B, out_channels]: what a token of spatial means gathers by attention."""

  out_channels: int
  heads: int
  dtype: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    B, H, W, C = x.shape
    tokens = x.reshape(B, H * W, C)
    tokens = jnp.concatenate([tokens.mean(1, keepdims=True), tokens], 1)
    position = self.param('positional_embedding', nn.initializers.normal(C**-0.5), (C, H * W + 1))
    tokens = tokens + position.T[None].astype(self.dtype)
    out = attend(
      nn.Dense(3 * C, dtype=self.dtype, name='qkv_proj')(tokens), self.heads, legacy=False
    )[:, 0]
    return nn.Dense(self.out_channels, name='c_proj')(widen(out))


class Classifier(Encoder):
  """ADM's classifier of noisy images: (x [B, H, W, C], t [B]) -> logits [B, out_channels]."""

  @nn.compact
  def __call__(self, x: Array, t: Array) -> Array:
    emb, context = self._condition(t, None)
    h, _ = self._encode(x, emb, context, False)
    h = nn.silu(GroupNorm(self.dtype, self.eps, name='out.0')(h))
    return AttentionPool(self.out_channels, self._heads(h.shape[-1]), self.dtype, name='out.2')(h)
