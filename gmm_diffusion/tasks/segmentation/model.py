"""Interactive segmentation by probabilistic attention. The network and its training are this
project's own.

An encoder (encoders.py) embeds the image once: tokens at stride 4, and memory units at stride 8 (16
in images beyond 320 x 240) whose keys are mean embeddings (with positions as two more entries, so
that EM moves units in the image as well) and whose values come from the image alone. Clicks are
tokens whose value is known, the embedding of "object" or "background", and they are units with that
value. Per click, key adaptation [PA section 3; maths/em.py eq. 4] moves all units and value
propagation [eq. 5] changes the values of the image's; then every token reads the units [eq. 3],
residual blocks join what neighbours read, and a second EM over colour and place (pixels.py) brings
it to the pixels, which decide at full resolution. With clicks='channels' the network is the
baseline: plain dot-product attention, and clicks drawn into the input of the encoder. With
clicks='values' it is the setting of PA: a click is no unit, holds no token and is drawn nowhere; it
changes the values of the image's units by propagation, and nothing else.
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import em
from gmm_diffusion.nets.blocks import ResBlock
from gmm_diffusion.nets.em_attention import Precisions
from gmm_diffusion.tasks.segmentation.encoders import DETAIL, ENCODERS
from gmm_diffusion.tasks.segmentation.pixels import join
from gmm_diffusion.types import Array

STRIDE = 16  # sides of an image are multiples of this
ARMS = {
  'none': (False, False),
  'keys': (True, False),
  'values': (False, True),
  'both': (True, True),
}
CLICKS = 'tokens', 'channels', 'values'  # how they enter
REACH = 32.0  # pixels to one unit of position
MOST = 1200  # units of an image; a larger one has fewer per pixel, or reading would take too long
RADIUS = {1: 4, 4: 16}  # of a click that is drawn at a stride, in pixels of the image


class Clicks(NamedTuple):
  """pixels [B, S, 2], row and column; labels [B, S]: 1 object, 0 background, -1 unused slot."""

  pixels: Array
  labels: Array


class Features(NamedTuple):
  """What an image is encoded to: the image [B, H, W, 3] itself, detail [B, H, W, DETAIL], fine [B,
  H/4, W/4, C], embeddings of tokens [B, H/4, W/4, heads, C'], values of units [B, H/8, W/8, heads,
  V]."""

  image: Array
  detail: Array
  fine: Array
  tokens: Array
  values: Array


class Attended(NamedTuple):
  """What attention works on, with a leading axis of items and an axis of heads before the last:
  tokens [h, w, C] and their means [h/n, w/n, C], values of units [h/n, w/n, V], n 2 or 4, the
  tokens under the clicks [S, C] and the values that these are known to have [S, V]."""

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


def draw(clicks: Clicks, shape: tuple[int, int], stride: int) -> Array:
  """Two channels [B, H / stride, W / stride, 2] of an image of `shape` [H, W]: discs around the
  clicks of each label."""
  radius = RADIUS[stride]
  reach = jnp.arange(-(radius // stride), radius // stride + 1)
  offsets = jnp.stack(jnp.meshgrid(reach, reach, indexing='ij'), -1).reshape(-1, 2)
  at = (clicks.pixels // stride)[:, :, None] + offsets[
    None, None
  ]  # cells around the clicks [B, S, n, 2]
  distance = jnp.sum(((at + 0.5) * stride - (clicks.pixels[:, :, None] + 0.5)) ** 2, -1)
  disc = jnp.maximum(0, 1 - distance / radius**2)
  # a row that is not there is dropped; a negative one would count from the end
  row = jnp.where((clicks.labels[..., None] >= 0) & (at[..., 0] >= 0), at[..., 0], shape[0])
  row = jnp.where(at[..., 1] >= 0, row, shape[0])
  item = jnp.arange(len(row))[:, None, None]
  out = jnp.zeros((len(row), shape[0] // stride, shape[1] // stride, 2), disc.dtype)
  return out.at[item, row, at[..., 1], clicks.labels[..., None]].max(disc, mode='drop')


class Segmenter(nn.Module):
  """Attributes: encoder, a name in encoders.ENCODERS; channels at stride 4; residual blocks per
  level of the encoder and after the read; heads of head_channels entries; iterations of EM; pixels:
  whether they read tokens by colour and place (pixels.py), or by place alone; clicks 'tokens',
  'values' or 'channels'."""

  encoder: str = 'scratch'
  channels: int = 32
  blocks: int = 2
  heads: int = 2
  head_channels: int = 16
  key_steps: int = 2
  value_steps: int = 2
  pixels: bool = True
  clicks: str = 'tokens'

  def setup(self):
    if self.clicks not in CLICKS:
      raise UserError(f'unknown clicks {self.clicks!r}; valid: {", ".join(CLICKS)}')
    C, constant = self.channels, nn.initializers.constant
    conv = lambda width, size=3: nn.Conv(width, (size, size))
    self.encoding = ENCODERS[self.encoder](C, self.blocks)
    self.embed, self.norm = nn.Dense(self.heads * self.head_channels), nn.LayerNorm()
    self.to_values = nn.Dense(self.heads * self.head_channels)
    self.labels = self.param(
      'labels', nn.initializers.normal(1.0), (2, self.heads, self.head_channels)
    )
    self.prior = self.param('click_prior', constant(4.0), (self.heads,))
    self.trust_clicks = self.param('log_trust_clicks', constant(3.0), (self.heads,))
    self.reach = self.param('reach', constant(2.0), (self.heads,))
    self.precisions = Precisions(self.heads, 0.5, 0.3, 2.0, 0.05)
    self.mix = conv(C)
    self.after = [ResBlock(C) for _ in range(self.blocks)]
    self.to_pixels = nn.Dense(DETAIL)
    if self.pixels:
      # 0.15 of colour in [-1, 1] and 3 pixels have the same weight; 16 pixels are a token
      self.log_colour = self.param('log_colour', constant(math.log(0.15**-2)), ())
      self.log_place = self.param('log_place', constant(math.log(3.0**-2)), ())
      self.log_trust = self.param('log_trust_pixels', constant(math.log(16.0)), ())
    self.refine, self.out = conv(DETAIL), conv(1)

  def __call__(self, image: Array, clicks: Clicks, on: tuple[Any, Any] = (True, True)) -> Array:
    return self.update(self.encode(image, clicks), clicks, on)

  def encode(self, image: Array, clicks: Clicks | None = None) -> Features:
    """image [B, H, W, 3] in [-1, 1]; clicks are needed for clicks='channels' alone."""
    drawn = None
    if self.clicks == 'channels' and clicks is not None:
      _, H, W, _ = image.shape
      drawn = draw(clicks, (H, W), 1)
    detail, fine, coarse = self.encoding(image, drawn)
    heads = lambda x: x.reshape(x.shape[:3] + (self.heads, self.head_channels))
    tokens = heads(self.norm(self.embed(fine)))
    return Features(image, detail, fine, tokens, heads(self.to_values(coarse)))

  def update(self, features: Features, clicks: Clicks, on: tuple[Any, Any] = (True, True)) -> Array:
    """Logits [B, H, W] of the object; `on`: scalars, or [B], that switch key adaptation and value
    propagation."""
    B, h, w, _ = features.fine.shape
    if self.clicks == 'channels':
      read = self._dot_product(features)
    else:
      read = self._read(features, clicks, on)
    draws = self.clicks == 'tokens'
    drawn = lambda stride: [draw(clicks, (4 * h, 4 * w), stride)] if draws else []
    x = jnp.concatenate([features.fine, read.reshape(B, h, w, -1), *drawn(4)], -1)
    x = nn.silu(self.mix(x))
    for block in self.after:
      x = block(x)
    x = self._to_pixels(features.image, self.to_pixels(x))
    x = nn.silu(self.refine(jnp.concatenate([x, features.detail, *drawn(1)], -1)))
    return self.out(x)[..., 0]

  def _to_pixels(self, image, tokens):
    """What each pixel takes from the tokens [B, h, w, DETAIL] -> [B, H, W, DETAIL]."""
    if not self.pixels:
      return jax.image.resize(tokens, (*image.shape[:3], tokens.shape[-1]), 'bilinear')
    numbers = map(jnp.exp, (self.log_colour, self.log_place, self.log_trust))
    return jax.vmap(join, (0, 0, None, None, None))(image, tokens, *numbers)

  def _read(self, features, clicks, on):
    """Values that the tokens read, [B, h, w, heads, V]."""
    B, h, w, H, C = features.tokens.shape
    cell = jnp.clip(clicks.pixels // 4, 0, jnp.array([[[h - 1, w - 1]]]))
    known = self.labels[jnp.maximum(clicks.labels, 0)]  # [B, S, H, V]
    pooled, values = _pooled(features.tokens), features.values
    while pooled[0, :, :, 0, 0].size > MOST and not any(n % 2 for n in pooled.shape[1:3]):
      pooled, values = _pooled(pooled), _pooled(values)
    attended = Attended(
      features.tokens,
      pooled,
      values,
      jax.vmap(lambda tokens, at: tokens[at[:, 0], at[:, 1]])(features.tokens, cell),
      known,
    )
    clicked = Clicked(clicks.pixels.astype(jnp.float32), clicks.labels >= 0)
    alpha, beta, trust = self.precisions()
    numbers = Numbers(alpha, beta, trust, self.prior, self.reach, jnp.exp(self.trust_clicks))
    on = tuple(jnp.broadcast_to(jnp.asarray(flag), (B,)) for flag in on)
    per_head = jax.vmap(self._read_head, (Attended(2, 2, 2, 1, 1), None, None, 0), 1)
    read = jax.vmap(per_head, (0, 0, 0, None))(attended, clicked, on, numbers)
    read = read.reshape(B, h, w, H, C)
    if self.clicks == 'values':
      return read
    return jax.vmap(_hold)(read, cell, known, clicked.used)

  def _read_head(self, attended, clicked, on, numbers):
    """Values that the tokens of one head of one item read, [h w, V]."""
    h, w, C = attended.tokens.shape
    alpha, beta, trust, prior, reach, trust_clicks = numbers
    place = lambda x, at: jnp.concatenate([x, at * (reach / REACH)], 1)
    flat = lambda x: x.reshape(-1, x.shape[-1])
    queries = place(flat(attended.tokens), flat(_grid((h, w), 4)))
    clicks = place(attended.clicked, clicked.pixels + 0.5)
    rows, columns, _ = attended.pooled.shape
    keys = place(flat(attended.pooled), flat(_grid((rows, columns), 4 * h // rows)))
    J, S, held = len(keys), len(clicks), clicked.used.astype(keys.dtype)
    # clicks are tokens and units: their keys adapt, their values are known; with 'values' they are
    # neither before the values are propagated
    joins = clicked.used & (self.clicks == 'tokens')
    joined = joins.astype(keys.dtype)
    units = em.memory(
      jnp.concatenate([keys, clicks]),
      jnp.concatenate([flat(attended.values), attended.known]),
      alpha,
      beta,
      jnp.concatenate([jnp.zeros(J), jnp.where(joins, prior, -jnp.inf)]),
    )
    everyone = em.Tokens(
      jnp.concatenate([clicks, queries]),
      jnp.concatenate([attended.known, jnp.zeros((len(queries), C))]),
      jnp.concatenate([joined, jnp.zeros(len(queries))]),
      present=jnp.concatenate([joined, jnp.ones(len(queries))]),
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
