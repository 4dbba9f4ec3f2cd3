"""The ADM U-Net [ADM section 3, appendix], channels last.

Blocks are numbered as in the released PyTorch model (input_blocks_3_0 is its
"input_blocks.3.0"), so that its checkpoints map name by name.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gmm_diffusion.aliases import Array, UserError

zero_init = nn.initializers.zeros_init()


def widen(x: Array) -> Array:
  """At least float32: for normalisation, softmax and the output under half precision."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def timestep_embedding(t: Array, dim: int, max_period: float = 10000.0) -> Array:
  """[cos, sin] of t [B] at dim // 2 geometric frequencies, [B, dim] in float32 or wider."""
  half, t = dim // 2, widen(t)
  frequencies = jnp.exp(-math.log(max_period) * jnp.arange(half, dtype=t.dtype) / half)
  angles = t[:, None] * frequencies[None]
  return jnp.pad(jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], 1), ((0, 0), (0, dim % 2)))


class GroupNorm(nn.Module):
  """Group normalisation in at least float32, eps 1e-5, groups of the largest number up to 32 that divides."""

  dtype: Any

  @nn.compact
  def __call__(self, x: Array) -> Array:
    groups = math.gcd(32, x.shape[-1])
    return nn.GroupNorm(groups, epsilon=1e-5, name='norm')(widen(x)).astype(self.dtype)


def downsample(x: Array) -> Array:
  """2 x 2 average pooling."""
  return nn.avg_pool(x, (2, 2), (2, 2))


def upsample(x: Array) -> Array:
  """Nearest-neighbour doubling."""
  return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


class ResBlock(nn.Module):
  """Residual block with the time embedding as scale and shift, or added; may change resolution."""

  channels: int
  resample: str = ''  # '', 'down' or 'up'
  scale_shift: bool = True
  dropout: float = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, emb: Array, train: bool) -> Array:
    conv = lambda name, **kw: nn.Conv(self.channels, (3, 3), dtype=self.dtype, name=name, **kw)
    resample = {'': lambda y: y, 'down': downsample, 'up': upsample}[self.resample]
    h = nn.silu(GroupNorm(self.dtype, name='in_layers_0')(x))
    h, x = resample(h), resample(x)
    h = conv('in_layers_2')(h)
    width = 2 * self.channels if self.scale_shift else self.channels
    emb = nn.Dense(width, dtype=self.dtype, name='emb_layers_1')(nn.silu(emb))[:, None, None, :]
    norm = GroupNorm(self.dtype, name='out_layers_0')
    if self.scale_shift:
      scale, shift = jnp.split(emb, 2, -1)
      h = norm(h) * (1 + scale) + shift
    else:
      h = norm(h + emb)
    h = nn.Dropout(self.dropout, deterministic=not train)(nn.silu(h))
    h = conv('out_layers_3', kernel_init=zero_init)(h)
    if x.shape[-1] != self.channels:
      x = nn.Conv(self.channels, (1, 1), dtype=self.dtype, name='skip_connection')(x)
    return x + h


def attend(qkv: Array, heads: int, legacy: bool) -> Array:
  """Dot-product attention of packed q, k, v [B, N, 3 C] -> [B, N, C].

  Legacy order splits heads first and then q, k, v inside each; the new order splits q, k, v first.
  q and k are each scaled by C_head^(-1/4), which is safer in half precision; softmax is at least float32.
  """
  B, N, width = qkv.shape
  C = width // (3 * heads)
  if legacy:
    q, k, v = jnp.moveaxis(qkv.reshape(B, N, heads, 3, C), 3, 0)
  else:
    q, k, v = jnp.moveaxis(qkv.reshape(B, N, 3, heads, C), 2, 0)
  scale = C**-0.25
  logits = jnp.einsum('bnhc,bmhc->bhnm', q * scale, k * scale)
  weights = jax.nn.softmax(widen(logits), -1).astype(v.dtype)
  return jnp.einsum('bhnm,bmhc->bnhc', weights, v).reshape(B, N, -1)


class AttentionBlock(nn.Module):
  """Residual self-attention over all positions."""

  heads: int
  legacy: bool = True
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    B, H, W, C = x.shape
    h = GroupNorm(self.dtype, name='norm')(x).reshape(B, H * W, C)
    h = attend(nn.Dense(3 * C, dtype=self.dtype, name='qkv')(h), self.heads, self.legacy)
    h = nn.Dense(C, dtype=self.dtype, kernel_init=zero_init, name='proj_out')(h)
    return x + h.reshape(x.shape)


class UNet(nn.Module):
  """ADM U-Net: (x [B, H, W, C], t [B], labels [B] or None) -> [B, H, W, out_channels].

  Attributes:
    out_channels: C, or 2 C with a learned variance (which comes last).
    channels: width of the first level.
    multipliers: width of each level over `channels`; each level but the last halves H and W.
    blocks: residual blocks per level.
    attention: resolutions (in pixels of a side) with self-attention.
    head_channels: channels per attention head; 0 uses `heads` heads.
    heads: number of heads where head_channels is 0.
    classes: number of labels, including one for "no class" if there is one. 0 takes no labels.
    scale_shift: time embedding as scale and shift, or added.
    resblock_updown: residual blocks or plain (convolution) layers change the resolution.
    legacy_attention: order of the packed q, k, v (ADM 128, 256, 512: legacy; 64: new).
    dropout: rate inside residual blocks while training.
    dtype: of the computation; parameters are float32, and so is the output.
  """

  out_channels: int
  channels: int = 128
  multipliers: tuple[int, ...] = (1, 2, 2, 2)
  blocks: int = 2
  attention: tuple[int, ...] = (16, 8)
  head_channels: int = 64
  heads: int = 1
  classes: int = 0
  scale_shift: bool = True
  resblock_updown: bool = True
  legacy_attention: bool = True
  dropout: float = 0.0
  dtype: Any = jnp.float32

  def _res(self, channels, name, resample=''):
    return ResBlock(channels, resample, self.scale_shift, self.dropout, self.dtype, name=name)

  def _attention(self, channels, name):
    heads = channels // self.head_channels if self.head_channels else self.heads
    if heads < 1 or channels % heads:
      raise UserError(f'attention on {channels} channels needs a head width that divides them; '
                      f'got head_channels {self.head_channels}, heads {self.heads}')
    return AttentionBlock(heads, self.legacy_attention, self.dtype, name=name)

  def _down(self, h, emb, train, name):
    if self.resblock_updown:
      return self._res(h.shape[-1], f'{name}_0', 'down')(h, emb, train)
    # torch's padding of one on each side, not "SAME"
    return nn.Conv(h.shape[-1], (3, 3), 2, padding=1, dtype=self.dtype, name=f'{name}_0_op')(h)

  def _up(self, h, emb, train, name):
    if self.resblock_updown:
      return self._res(h.shape[-1], name, 'up')(h, emb, train)
    return nn.Conv(h.shape[-1], (3, 3), dtype=self.dtype, name=f'{name}_conv')(upsample(h))

  @nn.compact
  def __call__(self, x: Array, t: Array, labels: Array | None = None, train: bool = False) -> Array:
    width = 4 * self.channels
    dense = lambda name: nn.Dense(width, dtype=self.dtype, name=name)
    emb = timestep_embedding(t, self.channels).astype(self.dtype)
    emb = dense('time_embed_2')(nn.silu(dense('time_embed_0')(emb)))
    if self.classes:
      emb = emb + nn.Embed(self.classes, width, dtype=self.dtype, name='label_emb')(labels)

    h = nn.Conv(self.channels * self.multipliers[0], (3, 3), dtype=self.dtype, name='input_blocks_0_0')(x.astype(self.dtype))
    skips, index = [h], 1
    for level, multiplier in enumerate(self.multipliers):
      channels = self.channels * multiplier
      for _ in range(self.blocks):
        h = self._res(channels, f'input_blocks_{index}_0')(h, emb, train)
        if h.shape[1] in self.attention:
          h = self._attention(channels, f'input_blocks_{index}_1')(h)
        skips.append(h)
        index += 1
      if level < len(self.multipliers) - 1:
        h = self._down(h, emb, train, f'input_blocks_{index}')
        skips.append(h)
        index += 1

    h = self._res(h.shape[-1], 'middle_block_0')(h, emb, train)
    h = self._attention(h.shape[-1], 'middle_block_1')(h)
    h = self._res(h.shape[-1], 'middle_block_2')(h, emb, train)

    index = 0
    for level, multiplier in reversed(list(enumerate(self.multipliers))):
      channels = self.channels * multiplier
      for block in range(self.blocks + 1):
        part = 0
        h = jnp.concatenate([h, skips.pop()], -1)
        h = self._res(channels, f'output_blocks_{index}_{part}')(h, emb, train)
        if h.shape[1] in self.attention:
          part += 1
          h = self._attention(channels, f'output_blocks_{index}_{part}')(h)
        if level and block == self.blocks:
          h = self._up(h, emb, train, f'output_blocks_{index}_{part + 1}')
        index += 1

    h = nn.silu(GroupNorm(self.dtype, name='out_0')(h))
    return nn.Conv(self.out_channels, (3, 3), kernel_init=zero_init, name='out_2')(widen(h))
