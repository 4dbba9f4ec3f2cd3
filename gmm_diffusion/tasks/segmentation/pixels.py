"""The second, small EM of the segmenter: pixels read what the tokens around them hold, by colour
and place, so that edges are decided where the image has them.

A token is a cell of 4 x 4 pixels. In every window of 4 x 4 tokens (16 x 16 pixels), the tokens and
the ring of tokens around them are memory units: the key is mean colour and centre, and the value is
what the token holds. The pixels of the window move the keys of its units [maths/em.py eq. 4], and
then each pixel reads the units [eq. 3]. Windows do not see each other, so time and memory are
linear in the number of pixels.
"""

import jax
import jax.numpy as jnp

from gmm_diffusion.maths import em
from gmm_diffusion.types import Array

CELL = 4  # pixels to a side of a token
SIDE = 4  # tokens to a side of a window
BLOCK = 64  # pixels at a time, faster than larger ones
RING = SIDE + 2  # tokens to a side of a window with its ring


def join(
  image: Array, tokens: Array, colour: Array, place: Array, trust: Array, steps: int = 1
) -> Array:
  """What each pixel reads.

  Args:
    image: [H, W, 3] in [-1, 1], sides multiples of 16.
    tokens: values [H/4, W/4, V].
    colour, place: precisions per unit of colour squared, and per pixel squared.
    trust: precision of the priors of the keys, in pixels that it outweighs.
    steps: adaptations of the keys.

  Returns:
    [H, W, V], a weighted mean of the values around each pixel.
  """
  H, W, _ = image.shape
  scale = jnp.concatenate([jnp.full(3, jnp.sqrt(colour)), jnp.full(2, jnp.sqrt(place))])
  rows, columns = (jnp.arange(side, dtype=image.dtype) for side in (H, W))
  at = jnp.stack(jnp.meshgrid(rows, columns, indexing='ij'), -1)
  pixels = jnp.concatenate([image, at], -1) * scale[None, None]
  keys = pixels.reshape(H // CELL, CELL, W // CELL, CELL, 5).mean((1, 3))

  def window(pixels, keys, values, inside):
    units = em.memory(keys, values, 1.0, 0.0, jnp.where(inside, 0.0, -jnp.inf))
    queries = em.Tokens(pixels)
    return em.infer(units, queries, trust=em.Trust(trust), key_steps=steps, block=BLOCK).values

  inside = jnp.ones((*tokens.shape[:2], 1), bool)
  read = jax.vmap(window)(
    windows(pixels, SIDE * CELL), around(keys), around(tokens), around(inside)[..., 0]
  )
  return whole(read, (H, W))


def windows(x: Array, side: int) -> Array:
  """[H, W, C] -> its windows, row by row [H W / side^2, side^2, C]."""
  H, W, C = x.shape
  parts = x.reshape(H // side, side, W // side, side, C).swapaxes(1, 2)
  return parts.reshape(-1, side**2, C)


def whole(x: Array, shape: tuple[int, int]) -> Array:
  """What `windows` was made of: [n, side^2, C] -> [H, W, C]."""
  side = round(x.shape[1] ** 0.5)
  H, W = shape
  parts = x.reshape(H // side, W // side, side, side, -1).swapaxes(1, 2)
  return parts.reshape(H, W, -1)


def around(tokens: Array) -> Array:
  """Tokens [h, w, C] of each window and of the ring around it [h w / SIDE^2, RING^2, C], row by
  row; zeros (False) outside the image."""
  h, w, C = tokens.shape
  padded = jnp.pad(tokens, ((1, 1), (1, 1), (0, 0)))
  take = lambda side: (jnp.arange(side // SIDE) * SIDE)[:, None] + jnp.arange(RING)[None]
  out = padded[take(h)][:, :, take(w)]  # [h/4, 6, w/4, 6, C]
  return out.swapaxes(1, 2).reshape(-1, RING**2, C)
