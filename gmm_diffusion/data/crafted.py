"""A data set whose images are locally ambiguous and globally consistent; ours, made for the
question what attention adds.

A 12 x 12 image has an object near each of its four corners, on dark ground: one of three shapes of
3 x 3 pixels, drawn freely for each corner. The objects of an image all have the same colour, its
theme, one of four. Between objects there are four dark pixels, so that no 5 x 5 patch and no 7 x 7
patch about a pixel of an object sees another object: any four fit together locally, and only an
agreement over the whole image is consistent. (A 7 x 7 patch about a dark pixel between objects sees
the rims of two, so what two objects have in common can reach a network with this view over several
steps, through the ground.)

Of the 4 x 3^4 = 324 combinations (theme, shapes of the four cells) a quarter is held out of
training. So

- consistency asks for one theme in the whole image, wherever its objects are: of the four cells
  (quarters) at least two show coloured pixels, and the theme of most coloured pixels is the same in
  all that do. Chance level: 4^-3 = 1.6 % where all four cells show something and are independent;
  `chance` computes it for the cells' own frequencies.
- recognition asks for more: every cell shows one of the twelve objects at its place.
- novelty, a consistent and recognised image's combination was never seen in training, has chance
  level 25 %.
"""

import itertools
from typing import NamedTuple

import numpy as np

from gmm_diffusion.data.base import Data

THEMES = np.array([[220, 50, 50], [50, 180, 60], [60, 90, 230], [230, 200, 40]], np.uint8)
GROUND = np.array([30, 30, 30], np.uint8)
SHAPES = np.array(
  [
    [[1, 1, 1], [1, 1, 1], [1, 1, 1]],  # square
    [[1, 0, 1], [0, 1, 0], [1, 0, 1]],  # cross
    [[0, 1, 0], [1, 1, 1], [0, 1, 0]],  # plus
  ],
  bool,
)
CELL, CELLS = 6, 4
# First row and column of the object in each cell: one pixel from the edge of the image.
CORNERS = ((1, 1), (1, 2), (2, 1), (2, 2))
CHANCE_CONSISTENT, HELD_OUT = len(THEMES) ** (1 - CELLS), 0.25
# A cell is recognised where the root mean square distance of its values from the nearest perfect
# cell is below this.
TOLERANCE = 40.0
# A pixel is coloured where it is farther from the ground than this, the root of the sum of squares
# over channels.
COLOURED = 80.0
EMPTY = len(THEMES)


class Reading(NamedTuple):
  """What images show: theme (or EMPTY) and nearest shape of each cell [N, 4], and whether all cells
  of an image are recognised [N]."""

  themes: np.ndarray
  shapes: np.ndarray
  recognised: np.ndarray


def cells_of(theme: int, shape: int) -> np.ndarray:
  """An object in each of the four cells, uint8 [4, 6, 6, 3]."""
  out = np.broadcast_to(GROUND, (CELLS, CELL, CELL, 3)).copy()
  for cell, (y, x) in zip(out, CORNERS):
    cell[y : y + 3, x : x + 3][SHAPES[shape]] = THEMES[theme]
  return out


def combinations() -> tuple[np.ndarray, np.ndarray]:
  """(theme, four shapes) of the training and of the held-out combinations, [243, 5] and [81, 5]."""
  every = np.array(list(itertools.product(range(len(THEMES)), *[range(len(SHAPES))] * CELLS)))
  order = np.random.RandomState(0).permutation(len(every))
  held_out = int(HELD_OUT * len(every))
  return every[np.sort(order[held_out:])], every[np.sort(order[:held_out])]


def _images(chosen: np.ndarray) -> np.ndarray:
  """The images of combinations [N, 5]."""
  known = np.array(
    [[cells_of(theme, shape) for shape in range(len(SHAPES))] for theme in range(len(THEMES))]
  )
  parts = known[chosen[:, :1], chosen[:, 1:], np.arange(CELLS)[None]]  # [N, 4, 6, 6, 3]
  rows = parts.reshape(-1, 2, 2, CELL, CELL, 3).transpose(0, 1, 3, 2, 4, 5)
  return rows.reshape(-1, 2 * CELL, 2 * CELL, 3)


def load() -> Data:
  """One image of each training combination, and of each held-out one for testing, in mixed order;
  the label is the theme."""
  seen, held_out = (np.random.RandomState(1).permutation(part) for part in combinations())
  return Data(
    _images(seen),
    seen[:, 0].astype(np.int32),
    _images(held_out),
    held_out[:, 0].astype(np.int32),
    len(THEMES),
  )


def read(images: np.ndarray) -> Reading:
  """Reads uint8 images [N, 12, 12, 3], cell by cell."""
  kinds = np.array(list(itertools.product(range(len(THEMES)), range(len(SHAPES)))))
  known = np.array([cells_of(*kind) for kind in kinds], np.float64).reshape(len(kinds), CELLS, -1)
  cells = (
    images.reshape(-1, 2, CELL, 2, CELL, 3)
    .transpose(0, 1, 3, 2, 4, 5)
    .reshape(len(images), CELLS, -1)
    .astype(np.float64)
  )
  squares = np.sum((cells[:, None] - known[None]) ** 2, 3)  # [N, kinds, 4]
  rms = np.sqrt(np.min(squares, 1) / known.shape[2])
  pixels = cells.reshape(len(images), CELLS, -1, 1, 3)
  nearest = np.argmin(np.sum((pixels - THEMES.astype(np.float64)) ** 2, -1), -1)
  coloured = np.sum((pixels[..., 0, :] - GROUND) ** 2, -1) > COLOURED**2
  votes = np.stack([np.sum(coloured & (nearest == theme), 2) for theme in range(len(THEMES))], -1)
  themes = np.where(votes.any(-1), np.argmax(votes, -1), EMPTY)
  return Reading(themes, kinds[np.argmin(squares, 1), 1], np.all(rms < TOLERANCE, 1))


def consistent(reading: Reading) -> np.ndarray:
  """Whether at least two cells show a theme, and all that do the same, [N]."""
  shown = reading.themes != EMPTY
  lowest = np.min(reading.themes, 1, keepdims=True)  # EMPTY is the largest
  return (shown.sum(1) >= 2) & np.all(~shown | (reading.themes == lowest), 1)


def novel(reading: Reading) -> np.ndarray:
  """Whether a consistent and recognised image has a combination that no training image has, [N];
  False for the others."""
  seen = {tuple(row) for row in combinations()[0].tolist()}
  found = np.concatenate([reading.themes[:, :1], reading.shapes], 1)
  unseen = np.array([tuple(row) not in seen for row in found.tolist()], bool)
  return unseen & consistent(reading) & reading.recognised


def chance(reading: Reading) -> float:
  """Consistency of cells that are independent, but each as often of each theme or empty as here."""
  shares = np.stack([np.mean(reading.themes == theme, 0) for theme in range(EMPTY + 1)])  # [5, 4]
  outcomes = np.array(list(itertools.product(range(EMPTY + 1), repeat=CELLS)))
  odds = np.prod(shares[outcomes, np.arange(CELLS)[None]], 1)
  return float(np.sum(odds[consistent(Reading(outcomes, outcomes, outcomes[:, 0] >= 0))]))
