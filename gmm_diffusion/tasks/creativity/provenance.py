"""Where the pixels of an image come from: the nearest training patch of each, and the mosaic it
makes.

In the limit t -> 0 a local machine's image is one whose pixels are the centres of their nearest
training patches: locally consistent. The map of these patches tells a collage of many images from a
copy of one.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gmm_diffusion.maths import patches
from gmm_diffusion.types import Array


class Provenance(NamedTuple):
  """For each pixel of each image the nearest training patch: its image [B, H, W], centre [B, H, W,
  2], rms distance [B, H, W]."""

  image: np.ndarray
  place: np.ndarray
  distance: np.ndarray


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _nearest(x, data, size, padding, places):
  """(unit index, squared distance) of one query's pixels, [H, W] each; data [blocks, n, H, W,
  C]."""
  pad = lambda y: patches.pad(y, size, padding)
  units = pad if places == 'all' else lambda y: y

  def scan(best, block):
    number, images = block
    d = patches.distances(pad(x), units(images), size)
    d = d.reshape(-1, *d.shape[3:])
    index, least = jnp.argmin(d, 0), jnp.min(d, 0)
    better = least < best[1]
    return (
      jnp.where(better, number * len(d) + index, best[0]),
      jnp.where(better, least, best[1]),
    ), None

  start = jnp.zeros(x.shape[:2], jnp.int32), jnp.full(x.shape[:2], jnp.inf, x.dtype)
  return jax.lax.scan(scan, start, (jnp.arange(len(data), dtype=jnp.int32), data))[0]


def trace(
  images: Array,
  known: Array,
  size: int,
  padding: str = 'zero',
  places: str = 'interior',
  block: int = 16,
) -> Provenance:
  """Provenance of images [B, H, W, C] among `known` [N, H, W, C] by patches of `size`; the options
  are those of the machines."""
  patches.check(size, known.shape[1:])
  block = min(block, len(known))
  count = -(-len(known) // block)
  data = np.concatenate([known, np.repeat(known[:1], count * block - len(known), 0)]).reshape(
    (count, block) + known.shape[1:]
  )
  found = [_nearest(x, data, size, padding, places) for x in jnp.asarray(images)]
  unit, squares = (np.stack(part) for part in zip(*found))
  H, W = known.shape[1:3]
  r = size // 2 if places == 'interior' else 0
  image, y, x = np.unravel_index(unit, (count * block, H - 2 * r, W - 2 * r))
  image = np.where(image < len(known), image, 0)  # copies of the first fill the last block
  return Provenance(
    image, np.stack([y + r, x + r], -1), np.sqrt(squares / (size**2 * known.shape[-1]))
  )


def pieces(provenance: Provenance) -> np.ndarray:
  """How many training images an image is made of, counting those that give at least 5 % of the
  pixels, [B]."""
  return np.array(
    [
      np.sum(np.unique(image, return_counts=True)[1] >= 0.05 * image.size)
      for image in provenance.image
    ]
  )


def mosaic(
  provenance: Provenance, known: np.ndarray, colours: int = 12
) -> tuple[np.ndarray, np.ndarray]:
  """(the images made of the centres of the nearest patches, a map of the training images in
  colours), both [B, H, W, .].

  In the map the most frequent training images of each image have a colour each, all others are
  grey.
  """
  made = known[provenance.image, provenance.place[..., 0], provenance.place[..., 1]]
  hues = np.stack(
    [
      0.5 + 0.5 * np.cos(2 * np.pi * (0.618 * np.arange(colours) + shift))
      for shift in (0, 1 / 3, 2 / 3)
    ],
    -1,
  )  # neighbours differ
  maps = np.full(provenance.image.shape + (3,), 128, np.uint8)
  for out, image in zip(maps, provenance.image):
    values, counts = np.unique(image, return_counts=True)
    for hue, value in zip(hues, values[np.argsort(-counts)]):
      out[image == value] = np.round(255 * hue)
  return made, maps
