"""Blocks that the networks share, channels last.

Parameters are named as in the released ADM and latent-diffusion models, dots included, so that
checkpoints map name by name (checkpoints/importers).
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gmm_diffusion.errors import UserError
from gmm_diffusion.types import Array

zero_init = nn.initializers.zeros_init()


def widen(x: Array) -> Array:
  """At least float32: for normalisation, softmax and the output under half precision."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def timestep_embedding(t: Array, dim: int, freq_shift: int = 0, sin_first: bool = False) -> Array:
  """[cos, sin] of t [B] at dim // 2 frequencies 10000^(-i / (dim // 2 - freq_shift)), [B, dim],
  float32 or wider."""
  half, t = dim // 2, widen(t)
  frequencies = jnp.exp(-math.log(10000.0) * jnp.arange(half, dtype=t.dtype) / (half - freq_shift))
  angles = t[:, None] * frequencies[None]
  parts = [jnp.sin(angles), jnp.cos(angles)] if sin_first else [jnp.cos(angles), jnp.sin(angles)]
  return jnp.pad(jnp.concatenate(parts, 1), ((0, 0), (0, dim % 2)))


class GroupNorm(nn.Module):
  """Group normalisation in at least float32, in the largest number of groups up to 32 that
  divides."""

  dtype: Any
  eps: float = 1e-5

  @nn.compact
  def __call__(self, x: Array) -> Array:
    groups = math.gcd(32, x.shape[-1])
    norm = nn.GroupNorm(groups, epsilon=self.eps, name='norm')
    nn.share_scope(self, norm)  # no level of its own among the parameters
    return norm(widen(x)).astype(self.dtype)


def labels_of(cond: Array | None, classes: int) -> Array:
  """Labels that are there.

  Raises:
    UserError: they are None.
  """
  if cond is None:
    raise UserError(
      f'a network of {classes} labels was asked without any: give each image one of '
      f'0..{classes - 1} as cond'
    )
  return cond


def downsample(x: Array) -> Array:
  """2 x 2 average pooling."""
  return nn.avg_pool(x, (2, 2), (2, 2))


def upsample(x: Array) -> Array:
  """Nearest-neighbour doubling."""
  return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


class ResBlock(nn.Module):
  """Residual block with the time embedding as scale and shift, or added, or none; may change
  resolution."""

  channels: int
  resample: str = ''  # '', 'down' or 'up'
  scale_shift: bool = True
  dropout: float = 0.0
  eps: float = 1e-5
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, emb: Array | None = None, train: bool = False) -> Array:
    conv = lambda name, **kw: nn.Conv(self.channels, (3, 3), dtype=self.dtype, name=name, **kw)
    resample = {'': lambda y: y, 'down': downsample, 'up': upsample}[self.resample]
    h: Array = nn.silu(GroupNorm(self.dtype, self.eps, name='in_layers.0')(x))
    h, x = resample(h), resample(x)
    h = conv('in_layers.2')(h)
    norm = GroupNorm(self.dtype, self.eps, name='out_layers.0')
    if emb is not None:
      width = 2 * self.channels if self.scale_shift else self.channels
      emb = nn.Dense(width, dtype=self.dtype, name='emb_layers.1')(nn.silu(emb))[:, None, None, :]
    if emb is None:
      h = norm(h)
    elif self.scale_shift:
      scale, shift = jnp.split(emb, 2, -1)
      h = norm(h) * (1 + scale) + shift
    else:
      h = norm(h + emb)
    h = nn.Dropout(self.dropout, deterministic=not train)(nn.silu(h))
    h = conv('out_layers.3', kernel_init=zero_init)(h)
    if x.shape[-1] != self.channels:
      x = nn.Conv(self.channels, (1, 1), dtype=self.dtype, name='skip_connection')(x)
    return x + h


def dot_product(q: Array, k: Array, v: Array) -> Array:
  """Attention of queries [B, N, H, C] over keys and values [B, M, H, C] -> [B, N, H C].

  q and k are each scaled by C^(-1/4), which is safer in half precision; softmax is at least
  float32.
  """
  scale = q.shape[-1] ** -0.25
  logits = jnp.einsum('bnhc,bmhc->bhnm', q * scale, k * scale)
  weights = jax.nn.softmax(widen(logits), -1).astype(v.dtype)
  out = jnp.einsum('bhnm,bmhc->bnhc', weights, v)
  return out.reshape(out.shape[:2] + (-1,))


def attend(qkv: Array, heads: int, legacy: bool) -> Array:
  """Dot-product attention of packed q, k, v [B, N, 3 C] -> [B, N, C].

  Legacy order splits heads first and then q, k, v inside each; the new order splits q, k, v first.
  """
  B, N, width = qkv.shape
  C = width // (3 * heads)
  if legacy:
    q, k, v = jnp.moveaxis(qkv.reshape(B, N, heads, 3, C), 3, 0)
  else:
    q, k, v = jnp.moveaxis(qkv.reshape(B, N, 3, heads, C), 2, 0)
  return dot_product(q, k, v)


class AttentionBlock(nn.Module):
  """Residual self-attention over all positions."""

  heads: int
  legacy: bool = True
  eps: float = 1e-5
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    B, H, W, C = x.shape
    h = GroupNorm(self.dtype, self.eps, name='norm')(x).reshape(B, H * W, C)
    h = attend(nn.Dense(3 * C, dtype=self.dtype, name='qkv')(h), self.heads, self.legacy)
    h = nn.Dense(C, dtype=self.dtype, kernel_init=zero_init, name='proj_out')(h)
    return x + h.reshape(x.shape)


class CrossAttention(nn.Module):
  """Multi-head attention of x [B, N, C] over context [B, M, C'], or over itself."""

  heads: int
  dtype: Any

  @nn.compact
  def __call__(self, x: Array, context: Array | None = None) -> Array:
    B, _, C = x.shape
    context = x if context is None else context
    dense = lambda name, y: nn.Dense(C, use_bias=False, dtype=self.dtype, name=name)(y).reshape(
      B, y.shape[1], self.heads, -1
    )
    out = dot_product(dense('to_q', x), dense('to_k', context), dense('to_v', context))
    return nn.Dense(C, dtype=self.dtype, name='to_out.0')(out)


class SpatialTransformer(nn.Module):
  """Transformer blocks over all positions, between two projections [LDM section 3.3].

  (x [B, H, W, C], context [B, M, C']) -> [B, H, W, C]. Each of the `depth` blocks has
  self-attention, cross-attention to the context and a gated MLP.
  """

  heads: int
  dtype: Any = jnp.float32
  depth: int = 1

  def _dense(self, name, width, **kw):
    return nn.Dense(width, dtype=self.dtype, name=name, **kw)

  def _block(self, h, context, name):
    C = h.shape[-1]
    norm = lambda part, y: nn.LayerNorm(1e-5, name=name + part)(widen(y)).astype(self.dtype)
    attention = lambda part: CrossAttention(self.heads, self.dtype, name=name + part)
    h = h + attention('attn1')(norm('norm1', h))
    h = h + attention('attn2')(norm('norm2', h), context)
    hidden = self._dense(name + 'ff.net.0.proj', 8 * C)(norm('norm3', h))
    value, gate = jnp.split(hidden, 2, -1)
    return h + self._dense(name + 'ff.net.2', C)(value * nn.gelu(gate, approximate=False))

  @nn.compact
  def __call__(self, x: Array, context: Array) -> Array:
    B, H, W, C = x.shape
    h = GroupNorm(self.dtype, 1e-6, name='norm')(x).reshape(B, H * W, C)
    h = self._dense('proj_in', C)(h)
    for i in range(self.depth):
      h = self._block(h, context, f'transformer_blocks.{i}.')
    return x + self._dense('proj_out', C, kernel_init=zero_init)(h).reshape(x.shape)
