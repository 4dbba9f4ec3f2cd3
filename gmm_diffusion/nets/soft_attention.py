"""Attention in linear time for large images (maths/nystrom.py), as a block of the U-Net."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import nystrom
from gmm_diffusion.nets.blocks import GroupNorm, zero_init
from gmm_diffusion.types import Array


def windows(x: Array, ratio: int) -> Array:
  """Means of ratio x ratio windows of images [B, H, W, ...]: [B, H W / ratio^2, ...].

  Raises:
    UserError: the windows do not fit.
  """
  B, H, W, *rest = x.shape
  if ratio < 1 or H % ratio or W % ratio:
    raise UserError(
      f'net.attention_ratio {ratio} does not divide the {H} x {W} tokens of an attention layer; '
      f'take a divisor of each side in net.attention'
    )
  means = x.reshape(B, H // ratio, ratio, W // ratio, ratio, *rest).mean((2, 4))
  return means.reshape(B, H * W // ratio**2, *rest)


class SoftAttentionBlock(nn.Module):
  """Residual self-attention over all positions, as blocks.AttentionBlock; queries are the keys.

  Attributes:
    heads: of the attention.
    ratio: side of the windows whose means are the landmarks.
    normalise: a name in nystrom.NORMALISE.
    eps: of the normalisation.
    dtype: of the computation; kernels and their inverse are at least float32.
  """

  heads: int
  ratio: int = 2
  normalise: str = 'rows'
  eps: float = 1e-5
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    B, H, W, C = x.shape
    width = C // self.heads
    h = GroupNorm(self.dtype, self.eps, name='norm')(x)
    both = nn.Dense(2 * C, dtype=self.dtype, name='qv')(h).reshape(B, H, W, 2 * self.heads, width)
    heads_first = lambda y: jnp.moveaxis(y, 2, 1)
    q, v = jnp.split(heads_first(both.reshape(B, H * W, 2 * self.heads, width)), 2, 1)
    landmarks = heads_first(windows(both[..., : self.heads, :], self.ratio))
    out = nystrom.attend(q, v, landmarks, width**-0.5, self.normalise)
    out = heads_first(out).reshape(B, H, W, C)
    return x + nn.Dense(C, dtype=self.dtype, kernel_init=zero_init, name='proj_out')(out)
