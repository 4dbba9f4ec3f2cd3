"""Interactive segmentation by probabilistic attention. The network and its training are this
project's own.

An encoder embeds the image once: tokens at stride 4, and memory units at stride 8 whose keys are
mean embeddings (with positions as two more entries, so that EM moves units in the image as well)
and whose values come from the image alone. Clicks are tokens whose value is known, the embedding of
"object" or "background", and they are units with that value. Per click, key adaptation [PA section
3; maths/em.py eq. 4] moves all units and value propagation [eq. 5] changes the values of the
image's; then every token reads the units [eq. 3], and a small head turns what it read into a mask.
With clicks='channels' the network is the baseline: plain dot-product attention, and clicks drawn
into the input of the encoder.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from gmm_diffusion.maths import em
from gmm_diffusion.nets.blocks import ResBlock, upsample
from gmm_diffusion.nets.em_attention import Precisions
from gmm_diffusion.types import Array

STRIDE = 16  # sides of an image are multiples of this
ARMS = {
  'none': (False, False),
  'keys': (True, False),
  'values': (False, True),
  'both': (True, True),
}
REACH = 32.0  # pixels to one unit of position
RADIUS = 4.0  # of a click that is drawn


class Clicks(NamedTuple):
  """pixels [B, S, 2], row and column; labels [B, S]: 1 object, 0 background, -1 unused slot."""

  pixels: Array
  labels: Array


class Features(NamedTuple):
  """What an image is encoded to: half [B, H/2, W/2, C/2], fine [B, H/4, W/4, C], embeddings of
  tokens [B, H/4, W/4, heads, C'], values of units [B, H/8, W/8, heads, V]."""

  half: Array
  fine: Array
  tokens: Array
  values: Array


class Attended(NamedTuple):
  """What attention works on, with a leading axis of items and an axis of heads before the last:
  tokens [h, w, C] and their means [h/2, w/2, C], values of units [h/2, w/2, V], the tokens under
  the clicks [S, C] and the values that these are known to have [S, V]."""

  tokens: Array
  pooled: Array
  values: Array
  clicked: Array
  known: Array


class Clicked(NamedTuple):
  """pixels float32 [S, 2]; used [S]: whether the slot holds a click."""

  pixels: Array
  used: Array


class Numbers(NamedTuple):
  """The learned numbers of each head [heads]: precisions of keys and values, trust in both, the
  log-prior of a click's unit, how far a unit of position reaches, trust in a click's key."""

  alpha: Array
  beta: Array
  trust: em.Trust
  prior: Array
  reach: Array
  trust_clicks: Array


def _grid(shape: tuple[int, int], stride: int) -> Array:
  """Centres of cells in pixels [h, w, 2]."""
  return jnp.stack(
    jnp.meshgrid(*((jnp.arange(n) + 0.5) * stride for n in shape), indexing='ij'), -1
  )


def draw(clicks: Clicks, shape: tuple[int, int]) -> Array:
  """Two channels [B, H, W, 2]: discs around the clicks of each label."""
  distance = jnp.sum(
    (_grid(shape, 1)[None, None] - (clicks.pixels[:, :, None, None] + 0.5)) ** 2, -1
  )
  disc = jnp.maximum(0, 1 - distance / RADIUS**2)
  return jnp.stack(
    [
      jnp.max(jnp.where((clicks.labels == label)[:, :, None, None], disc, 0), 1) for label in (0, 1)
    ],
    -1,
  )


class Segmenter(nn.Module):
  """Attributes: channels at stride 4; residual blocks per level; heads of head_channels entries;
  iterations of EM; clicks 'tokens' or 'channels'."""

  channels: int = 32
  blocks: int = 2
  heads: int = 2
  head_channels: int = 16
  key_steps: int = 2
  value_steps: int = 2
  clicks: str = 'tokens'

  def setup(self):
    C = self.channels
    conv = lambda width, size=3, stride=1: nn.Conv(width, (size, size), stride)
    self.stem, self.second = conv(C // 2, 3, 2), conv(C, 3, 2)
    level = lambda width, resample: [
      ResBlock(width, resample if n == 0 else '') for n in range(self.blocks)
    ]
    self.level4, self.level8 = level(C, ''), level(3 * C // 2, 'down')
    self.level16, self.level32 = level(2 * C, 'down'), level(2 * C, 'down')
    self.up16, self.up8, self.up4 = ResBlock(2 * C), ResBlock(3 * C // 2), ResBlock(C)
    self.embed, self.norm = nn.Dense(self.heads * self.head_channels), nn.LayerNorm()
    self.to_values = nn.Dense(self.heads * self.head_channels)
    self.labels = self.param(
      'labels', nn.initializers.normal(1.0), (2, self.heads, self.head_channels)
    )
    self.prior = self.param('click_prior', nn.initializers.constant(4.0), (self.heads,))
    self.trust_clicks = self.param('log_trust_clicks', nn.initializers.constant(3.0), (self.heads,))
    self.reach = self.param('reach', nn.initializers.constant(2.0), (self.heads,))
    self.precisions = Precisions(self.heads, 0.5, 0.3, 2.0, 0.05)
    self.mix, self.refine, self.out = conv(C), conv(C // 2), conv(1)

  def __call__(self, image: Array, clicks: Clicks, on: tuple[Any, Any] = (True, True)) -> Array:
    return self.update(self.encode(image, clicks), clicks, on)

  def encode(self, image: Array, clicks: Clicks | None = None) -> Features:
    """image [B, H, W, 3] in [-1, 1]; clicks are needed for clicks='channels' alone."""
    B, H, W, _ = image.shape
    if self.clicks == 'channels' and clicks is not None:
      image = jnp.concatenate([image, draw(clicks, (H, W))], -1)
    half = nn.silu(self.stem(image))
    h = nn.silu(self.second(half))
    levels = []
    for blocks in (self.level4, self.level8, self.level16):
      for block in blocks:
        h = block(h)
      levels.append(h)
    odd = h.shape[1] % 2, h.shape[2] % 2  # stride 32 may not divide
    h = jnp.pad(h, ((0, 0), (0, odd[0]), (0, odd[1]), (0, 0)), mode='edge')
    for block in self.level32:
      h = block(h)
    for block, skip in zip((self.up16, self.up8, self.up4), reversed(levels)):
      h = block(jnp.concatenate([upsample(h)[:, : skip.shape[1], : skip.shape[2]], skip], -1))
      if skip.shape[1] * 8 == H:
        coarse = h
    heads = lambda x: x.reshape(x.shape[:3] + (self.heads, self.head_channels))
    return Features(half, h, heads(self.norm(self.embed(h))), heads(self.to_values(coarse)))

  def update(self, features: Features, clicks: Clicks, on: tuple[Any, Any] = (True, True)) -> Array:
    """Logits [B, H, W] of the object; `on`: scalars, or [B], that switch key adaptation and value
    propagation."""
    B, h, w, _ = features.fine.shape
    read = (
      self._read(features, clicks, on) if self.clicks == 'tokens' else self._dot_product(features)
    )
    x = jnp.concatenate([features.fine, read.reshape(B, h, w, -1)], -1)
    x = nn.silu(self.mix(x))
    x = nn.silu(self.refine(jnp.concatenate([upsample(x), features.half], -1)))
    x = self.out(x)[..., 0]
    return jax.image.resize(x, (B, 2 * x.shape[1], 2 * x.shape[2]), 'bilinear')

  def _read(self, features, clicks, on):
    """Values that the tokens read, [B, h, w, heads, V]."""
    B, h, w, H, C = features.tokens.shape
    cell = jnp.clip(clicks.pixels // 4, 0, jnp.array([[[h - 1, w - 1]]]))
    known = self.labels[jnp.maximum(clicks.labels, 0)]  # [B, S, H, V]
    attended = Attended(
      features.tokens,
      _pooled(features.tokens),
      features.values,
      jax.vmap(lambda tokens, at: tokens[at[:, 0], at[:, 1]])(features.tokens, cell),
      known,
    )
    clicked = Clicked(clicks.pixels.astype(jnp.float32), clicks.labels >= 0)
    alpha, beta, trust = self.precisions()
    numbers = Numbers(alpha, beta, trust, self.prior, self.reach, jnp.exp(self.trust_clicks))
    on = tuple(jnp.broadcast_to(jnp.asarray(flag), (B,)) for flag in on)
    per_head = jax.vmap(self._read_head, (Attended(2, 2, 2, 1, 1), None, None, 0), 1)
    read = jax.vmap(per_head, (0, 0, 0, None))(attended, clicked, on, numbers)
    return jax.vmap(_hold)(read.reshape(B, h, w, H, C), cell, known, clicked.used)

  def _read_head(self, attended, clicked, on, numbers):
    """Values that the tokens of one head of one item read, [h w, V]."""
    h, w, C = attended.tokens.shape
    alpha, beta, trust, prior, reach, trust_clicks = numbers
    place = lambda x, at: jnp.concatenate([x, at * (reach / REACH)], 1)
    flat = lambda x: x.reshape(-1, x.shape[-1])
    queries = place(flat(attended.tokens), flat(_grid((h, w), 4)))
    clicks = place(attended.clicked, clicked.pixels + 0.5)
    keys = place(flat(attended.pooled), flat(_grid((h // 2, w // 2), 8)))
    J, S, held = len(keys), len(clicks), clicked.used.astype(keys.dtype)
    # clicks are tokens and units: their keys adapt, their values are known
    units = em.memory(
      jnp.concatenate([keys, clicks]),
      jnp.concatenate([flat(attended.values), attended.known]),
      alpha,
      beta,
      jnp.concatenate([jnp.zeros(J), jnp.where(clicked.used, prior, -jnp.inf)]),
    )
    everyone = em.Tokens(
      jnp.concatenate([clicks, queries]),
      jnp.concatenate([attended.known, jnp.zeros((len(queries), C))]),
      jnp.concatenate([held, jnp.zeros(len(queries))]),
      present=jnp.concatenate([held, jnp.ones(len(queries))]),
    )
    theta = jnp.concatenate([jnp.full((J, 1), trust.keys), jnp.full((S, 1), trust_clicks)])
    units = em.infer(units, everyone, trust=em.Trust(theta), key_steps=self.key_steps, on=on).memory
    # a click would answer to its own unit and tell the others nothing: it teaches the units of the
    # image
    image = em.infer(
      jax.tree.map(lambda x: x[:J], units),
      em.Tokens(clicks, attended.known, held),
      trust=trust,
      value_steps=self.value_steps,
      on=on,
    ).memory
    units = units._replace(values=jnp.concatenate([image.values, attended.known]))
    return em.value_map(units, em.pairs(units, em.Tokens(queries)))

  def _dot_product(self, features):
    C = features.tokens.shape[-1]

    def head(tokens, pooled, values):
      units = em.memory(pooled.reshape(-1, C), values.reshape(-1, C))
      return em.value_map(units, em.pairs(units, em.Tokens(tokens.reshape(-1, C))))

    per_head = jax.vmap(head, 2, 1)
    return jax.vmap(per_head)(features.tokens, _pooled(features.tokens), features.values)


def _pooled(tokens):
  """Means of 2 x 2 tokens [B, h, w, heads, C]."""
  B, h, w, H, C = tokens.shape
  return tokens.reshape(B, h // 2, 2, w // 2, 2, H, C).mean((2, 4))


def _hold(read, at, known, used):
  """Values [h, w, heads, V] with those that are known at the tokens `at` [S, 2] under clicks."""
  # of several clicks on a token the last one holds
  again = jnp.triu(jnp.all(at[:, None] == at[None], -1) & used[None], 1).any(1)
  row = jnp.where(used & ~again, at[:, 0], len(read))  # a row that is not there is dropped
  return read.at[row, at[:, 1]].set(known, mode='drop')
