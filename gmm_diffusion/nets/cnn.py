"""The plain residual CNN of [ELS], and the same with a final self-attention layer [OC].

3 x 3 convolutions, no normalisation, no change of resolution: an output pixel sees
2 (blocks + 2) + 1 pixels of a side, and with circular padding a moved input has a moved output. The
final layer is one of

  none      a pointwise network, as wide as the others have parameters
  softmax   self-attention over all pixels, w = softmax(q k / sqrt(C))
  top1      each pixel attends to its best pixel; while training the gradient is that of softmax
            (straight through)
  gumbel    w = softmax((q k / sqrt(C) + g) / T) with Gumbel noise g while training, T falling; then
            as top1
  identity  each pixel attends to itself

and all five have the same number of parameters (identity does not use those of its queries and
keys). Attention has no positions: what it adds is agreement by content.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gmm_diffusion.errors import UserError
from gmm_diffusion.nets.blocks import labels_of, timestep_embedding, widen, zero_init
from gmm_diffusion.types import Array

FINALS = ('none', 'softmax', 'top1', 'gumbel', 'identity')
PADDINGS = {'zero': 'SAME', 'circular': 'CIRCULAR'}


def receptive_field(blocks: int) -> int:
  """Side of the square that an output pixel sees without attention."""
  return 2 * (blocks + 2) + 1


def hard(weights: Array, straight_through: bool) -> Array:
  """One at the largest of the last axis, with the gradient of `weights` or with none."""
  best = jax.nn.one_hot(jnp.argmax(weights, -1), weights.shape[-1], dtype=weights.dtype)
  return weights + jax.lax.stop_gradient(best - weights) if straight_through else best


class Final(nn.Module):
  """[B, H, W, C] -> [B, H, W, C], with 4 C^2 + 3 C parameters for each kind; progress in [0, 1]
  sets the temperature of gumbel."""

  kind: str
  temperature: tuple[float, float]
  dtype: Any

  @nn.compact
  def __call__(self, x: Array, train: bool, progress: Array | float) -> Array:
    B, H, W, C = x.shape
    dense = lambda name, width=C, **more: nn.Dense(width, dtype=self.dtype, name=name, **more)
    if self.kind == 'none':
      return x + dense('out')(nn.silu(dense('in', 2 * C)(nn.silu(x))))
    tokens = x.reshape(B, H * W, C)
    q, k, v = dense('query')(tokens), dense('key', use_bias=False)(tokens), dense('value')(tokens)
    if self.kind == 'identity':
      mixed = v
    else:
      logits = widen(jnp.einsum('bqc,bkc->bqk', q, k)) / jnp.sqrt(C)
      if self.kind == 'gumbel' and train:
        noise = jax.random.gumbel(self.make_rng('dropout'), logits.shape, logits.dtype)
        start, end = self.temperature
        weights: Array = nn.softmax((logits + noise) / (start * (end / start) ** progress))
      else:
        weights = nn.softmax(logits)
        weights = weights if self.kind == 'softmax' else hard(weights, train)
      mixed = jnp.einsum('bqk,bkc->bqc', weights.astype(v.dtype), v)
    return x + dense('out')(mixed).reshape(x.shape)


class CNN(nn.Module):
  """(x [B, H, W, C], t [B], cond) -> [B, H, W, out_channels].

  Attributes:
    out_channels: C, or 2 C with a learned variance.
    channels: width.
    blocks: residual convolutions; the receptive field is 2 (blocks + 2) + 1.
    padding: 'zero' or 'circular'.
    final: the last layer, a name in FINALS.
    temperature: of gumbel, at the start and at the end of the training.
    classes: number of labels; 0 takes none.
    dtype: of the computation; parameters are float32, and so is the output.
  """

  out_channels: int
  channels: int = 64
  blocks: int = 6
  padding: str = 'zero'
  final: str = 'none'
  temperature: tuple[float, float] = (2.0, 0.1)
  classes: int = 0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Array,
    t: Array,
    cond: Array | None = None,
    train: bool = False,
    progress: Array | float = 1.0,
  ) -> Array:
    if self.final not in FINALS:
      raise UserError(f'unknown net.final {self.final!r}; valid: {", ".join(FINALS)}')
    if self.padding not in PADDINGS:
      raise UserError(f'unknown net.padding {self.padding!r}; valid: {", ".join(PADDINGS)}')
    conv = lambda name, width=self.channels, dtype=self.dtype, **more: nn.Conv(
      width, (3, 3), padding=PADDINGS[self.padding], dtype=dtype, name=name, **more
    )
    dense = lambda name, **more: nn.Dense(self.channels, dtype=self.dtype, name=name, **more)
    emb = nn.silu(dense('time_embed')(timestep_embedding(t, self.channels).astype(self.dtype)))
    if self.classes:
      labels = labels_of(cond, self.classes)
      emb = emb + nn.Embed(self.classes, self.channels, dtype=self.dtype, name='label_emb')(labels)
    h = conv('up')(x.astype(self.dtype))
    for i in range(self.blocks):
      inner = conv(f'conv{i}')(nn.silu(h + dense(f'time{i}')(emb)[:, None, None]))
      h = h + dense(f'mix{i}')(nn.silu(inner))
    h = Final(self.final, self.temperature, self.dtype, name='final')(h, train, progress)
    h = h + dense('time_out')(emb)[:, None, None]
    return conv('down', self.out_channels, None, kernel_init=zero_init)(widen(nn.silu(h)))
