"""DiT, the diffusion transformer with adaLN-Zero blocks [DiT section 3], channels last."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from gmm_diffusion.errors import UserError
from gmm_diffusion.nets.blocks import attend, labels_of, timestep_embedding, widen, zero_init
from gmm_diffusion.types import Array


def position_table(side: int, dim: int) -> np.ndarray:
  """Fixed sine-cosine embedding [side^2, dim] float32, the column coordinate in the first half."""
  omega = 10000.0 ** -(np.arange(dim // 4) / (dim / 4))
  angles = np.arange(side)[:, None] * omega
  axis = np.concatenate([np.sin(angles), np.cos(angles)], 1)
  table = np.concatenate([np.tile(axis, (side, 1)), np.repeat(axis, side, 0)], 1)
  return table.astype(np.float32)


class Modulation(nn.Module):
  """`parts` vectors [B, 1, dim] from the condition."""

  parts: int
  dim: int
  dtype: Any

  @nn.compact
  def __call__(self, emb: Array) -> Sequence[Array]:
    out = nn.Dense(self.parts * self.dim, dtype=self.dtype, kernel_init=zero_init, name='1')(
      nn.silu(emb)
    )
    return jnp.split(out[:, None], self.parts, -1)


def _modulate(x, shift, scale, eps=1e-6):
  norm = nn.LayerNorm(eps, use_bias=False, use_scale=False)
  return norm(widen(x)).astype(x.dtype) * (1 + scale) + shift


class Block(nn.Module):
  """Self-attention and MLP, each with shift, scale and gate from the condition."""

  dim: int
  heads: int
  eps: float
  dtype: Any

  @nn.compact
  def __call__(self, x: Array, emb: Array) -> Array:
    dense = lambda name, width: nn.Dense(width, dtype=self.dtype, name=name)
    shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = Modulation(
      6, self.dim, self.dtype, name='adaLN_modulation'
    )(emb)
    h = attend(
      dense('attn.qkv', 3 * self.dim)(_modulate(x, shift, scale)), self.heads, legacy=False
    )
    x = x + gate * dense('attn.proj', self.dim)(h)
    h = nn.gelu(dense('mlp.fc1', 4 * self.dim)(_modulate(x, shift_mlp, scale_mlp, self.eps)))
    return x + gate_mlp * dense('mlp.fc2', self.dim)(h)


class DiT(nn.Module):
  """(x [B, H, H, C], t [B], labels [B]) -> [B, H, H, out_channels].

  Attributes:
    out_channels: C, or 2 C with a learned variance (which comes last).
    channels: width of the tokens.
    blocks: number of transformer blocks.
    heads: number of attention heads.
    patch: side of the square patches that are tokens.
    classes: number of labels, including one for "no class".
    freq_shift: form of the time embedding; 0 as the released model was trained, 1 as diffusers
      computes it.
    eps: of the normalisation before the MLP; 1e-6 as the released model was trained, 1e-5 as
      diffusers computes it.
    remat: blocks are computed again for the gradient, in place of keeping what is inside them.
    dtype: of the computation; parameters are float32, and so is the output.
  """

  out_channels: int
  channels: int = 1152
  blocks: int = 28
  heads: int = 16
  patch: int = 2
  classes: int = 1001
  freq_shift: int = 0
  eps: float = 1e-6
  dtype: Any = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(self, x: Array, t: Array, cond: Array, train: bool = False) -> Array:
    del train  # nothing here differs in training
    B, H, W, _ = x.shape
    if H != W or H % self.patch or self.channels % (4 * self.heads):
      raise UserError(
        f'DiT needs square samples whose side the patch divides, and channels that 4 x heads '
        f'divides; got {H} x {W}, patch {self.patch}, channels {self.channels}, heads {self.heads}'
      )
    dense = lambda name: nn.Dense(self.channels, dtype=self.dtype, name=name)
    emb = timestep_embedding(t, 256, self.freq_shift).astype(self.dtype)
    emb = dense('t_embedder.mlp.2')(nn.silu(dense('t_embedder.mlp.0')(emb)))
    emb = emb + nn.Embed(
      self.classes, self.channels, dtype=self.dtype, name='y_embedder.embedding_table'
    )(labels_of(cond, self.classes))

    p, side = self.patch, H // self.patch
    h = nn.Conv(
      self.channels, (p, p), p, padding='VALID', dtype=self.dtype, name='x_embedder.proj'
    )(x.astype(self.dtype))
    h = h.reshape(B, side * side, self.channels) + position_table(side, self.channels)[None].astype(
      self.dtype
    )
    block = nn.remat(Block) if self.remat else Block
    for i in range(self.blocks):
      h = block(self.channels, self.heads, self.eps, self.dtype, name=f'blocks.{i}')(h, emb)
    shift, scale = Modulation(2, self.channels, self.dtype, name='final_layer.adaLN_modulation')(
      emb
    )
    h = widen(_modulate(h, shift, scale))
    h = nn.Dense(p * p * self.out_channels, kernel_init=zero_init, name='final_layer.linear')(h)
    h = h.reshape(B, side, side, p, p, self.out_channels)
    return jnp.moveaxis(h, 3, 2).reshape(B, H, W, self.out_channels)
