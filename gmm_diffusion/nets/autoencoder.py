"""First stages of latent diffusion: VQ and KL autoencoders [LDM section 3.1], channels last."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gmm_diffusion.nets.blocks import AttentionBlock, GroupNorm, ResBlock, upsample, widen
from gmm_diffusion.types import Array

EPS = 1e-6


class Coder(nn.Module):
  """The common part of encoder and decoder."""

  out_channels: int
  channels: int
  multipliers: tuple[float, ...]
  blocks: int
  attention: tuple[int, ...]
  dtype: Any

  def _conv(self, width, name, **kw):
    return nn.Conv(width, (3, 3), dtype=self.dtype, name=name, **kw)

  def _res(self, h, width, name):
    return ResBlock(int(width), eps=EPS, dtype=self.dtype, name=name)(h)

  def _attention(self, h, name):
    return AttentionBlock(1, eps=EPS, dtype=self.dtype, name=name)(h)

  def _middle(self, h):
    h = self._res(h, h.shape[-1], 'mid.block_1')
    h = self._attention(h, 'mid.attn_1')
    return self._res(h, h.shape[-1], 'mid.block_2')

  def _out(self, h):
    h = nn.silu(GroupNorm(self.dtype, EPS, name='norm_out')(h))
    return nn.Conv(self.out_channels, (3, 3), name='conv_out')(widen(h))


class Encoder(Coder):
  """[B, H, W, C] -> [B, H / f, W / f, out_channels], f = 2^(levels - 1)."""

  @nn.compact
  def __call__(self, x: Array) -> Array:
    h = self._conv(self.channels, 'conv_in')(x.astype(self.dtype))
    for level, multiplier in enumerate(self.multipliers):
      for block in range(self.blocks):
        h = self._res(h, self.channels * multiplier, f'down.{level}.block.{block}')
        if h.shape[1] in self.attention:
          h = self._attention(h, f'down.{level}.attn.{block}')
      if level < len(self.multipliers) - 1:
        h = self._conv(
          h.shape[-1], f'down.{level}.downsample.conv', strides=2, padding=((0, 1), (0, 1))
        )(h)
    return self._out(self._middle(h))


class Decoder(Coder):
  """[B, h, w, c] -> [B, h f, w f, out_channels]."""

  @nn.compact
  def __call__(self, z: Array) -> Array:
    h = self._conv(int(self.channels * self.multipliers[-1]), 'conv_in')(z.astype(self.dtype))
    h = self._middle(h)
    for level, multiplier in reversed(list(enumerate(self.multipliers))):
      for block in range(self.blocks + 1):
        h = self._res(h, self.channels * multiplier, f'up.{level}.block.{block}')
        if h.shape[1] in self.attention:
          h = self._attention(h, f'up.{level}.attn.{block}')
      if level:
        h = self._conv(h.shape[-1], f'up.{level}.upsample.conv')(upsample(h))
    return self._out(h)


class Autoencoder(nn.Module):
  """Images [B, H, W, image_channels] in [-1, 1] <-> latents [B, H / f, W / f, latent_channels], f =
  2^(levels - 1).

  Attributes:
    latent_channels: of the latents, and of the codes.
    codes: size of the codebook; 0 is a KL autoencoder without one.
    channels, multipliers, blocks, attention: as in the U-Net; no head width, there is one head.
    image_channels: of the images.
    dtype: of the computation; parameters are float32, and so are the outputs.
    z_channels: between encoder and quant_conv, and between post_quant_conv and decoder; 0 is
      latent_channels.
  """

  latent_channels: int
  codes: int = 0
  channels: int = 128
  multipliers: tuple[float, ...] = (1, 2, 4)
  blocks: int = 2
  attention: tuple[int, ...] = ()
  image_channels: int = 3
  dtype: Any = jnp.float32
  z_channels: int = 0

  def setup(self):
    size = (self.channels, self.multipliers, self.blocks, self.attention, self.dtype)
    inner, moments = self.z_channels or self.latent_channels, 1 if self.codes else 2
    self.encoder = Encoder(moments * inner, *size)
    self.decoder = Decoder(self.image_channels, *size)
    self.quant_conv = nn.Dense(moments * self.latent_channels)
    self.post_quant_conv = nn.Dense(inner)
    if self.codes:
      self.codebook = nn.Embed(self.codes, self.latent_channels, name='quantize.embedding')

  def __call__(self, x: Array) -> Array:
    return self.decode(self.encode(x))

  def moments(self, x: Array) -> Array:
    """Mean and log-variance (clamped to [-30, 20]) on the channels [..., 2 latent_channels], KL
    only."""
    mean, log_variance = jnp.split(self.quant_conv(self.encoder(x)), 2, -1)
    return jnp.concatenate([mean, jnp.clip(log_variance, -30, 20)], -1)

  def encode(self, x: Array) -> Array:
    """Latents: before quantisation (VQ), or the mean (KL)."""
    return (
      self.quant_conv(self.encoder(x))
      if self.codes
      else self.moments(x)[..., : self.latent_channels]
    )

  def indices(self, z: Array) -> Array:
    """The nearest code of each latent vector, int32 [B, h, w]."""
    codebook = self.codebook.embedding
    z = widen(z)
    # the expansion of |z - c|^2 without |z|^2; a fast but coarse product would choose other codes
    products = jnp.einsum(
      'bhwc,kc->bhwk', z, codebook.astype(z.dtype), precision=jax.lax.Precision.HIGHEST
    )
    return jnp.argmin(
      jnp.sum(codebook.astype(z.dtype) ** 2, 1)[None, None, None] - 2 * products, -1
    )

  def decode(self, z: Array) -> Array:
    """Images from latents, quantised first where there is a codebook."""
    return self.decode_raw(self.codebook(self.indices(z)) if self.codes else z)

  def decode_raw(self, z: Array) -> Array:
    """Images from latents as they are."""
    return self.decoder(self.post_quant_conv(z))
