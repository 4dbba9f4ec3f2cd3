"""A data set whose images are locally ambiguous and globally consistent; ours, made for the question what attention adds.

An 18 x 18 image has four cells of 9 x 9, each with one object on dark ground: one of three shapes of 4 x 4 pixels, at one of
four places of the cell, drawn freely for each cell. The objects of an image all have the same colour, its theme, one of four.
Between objects there are at least four dark pixels, so that no 9 x 9 patch about a pixel of an object sees another object:
each patch shows a theme, any four fit together locally, and only an agreement over the whole image is consistent.

Of the 4 x 3^4 = 324 combinations (theme, shapes of the four cells) a quarter is held out of training. So

- consistency, all four cells show one theme, has chance level 4^-3 = 1.6 % (cells independent, themes equally frequent);
- novelty, a consistent image's combination was never seen in training, has chance level 25 % (all combinations alike).
"""

import itertools
from typing import NamedTuple

import numpy as np

from gmm_diffusion.data.sources import Data

THEMES = np.array([[220, 50, 50], [50, 180, 60], [60, 90, 230], [230, 200, 40]], np.uint8)
GROUND = np.array([30, 30, 30], np.uint8)
SHAPES = np.array([
    [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]],  # square
    [[1, 1, 1, 1], [1, 0, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]],  # frame
    [[1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 1, 0], [1, 0, 0, 1]],  # cross
], bool)
CELL, CELLS = 9, 4
PLACES = tuple(itertools.product((2, 3), (2, 3)))
CHANCE_CONSISTENT, HELD_OUT = len(THEMES) ** (1 - CELLS), 0.25
# A cell is recognised where the root mean square distance of its values from the nearest perfect cell is below this.
TOLERANCE = 25.0


class Reading(NamedTuple):
  """What images show: theme and shape of each cell [N, 4], and whether all cells of an image are recognised [N]."""

  themes: np.ndarray
  shapes: np.ndarray
  recognised: np.ndarray


def cell(theme: int, shape: int, place: tuple[int, int]) -> np.ndarray:
  """One cell, uint8 [9, 9, 3]."""
  out = np.broadcast_to(GROUND, (CELL, CELL, 3)).copy()
  y, x = place
  out[y:y + 4, x:x + 4][SHAPES[shape]] = THEMES[theme]
  return out


def combinations() -> tuple[np.ndarray, np.ndarray]:
  """(theme, four shapes) of the training and of the held-out combinations, [243, 5] and [81, 5]."""
  every = np.array(list(itertools.product(range(len(THEMES)), *[range(len(SHAPES))] * CELLS)))
  order = np.random.RandomState(0).permutation(len(every))
  held_out = int(HELD_OUT * len(every))
  return every[np.sort(order[held_out:])], every[np.sort(order[:held_out])]


def _draw(from_, count, seed):
  random = np.random.RandomState(seed)
  chosen = from_[random.randint(len(from_), size=count)]
  places = random.randint(len(PLACES), size=(count, CELLS))
  cells = np.array([[[cell(theme, shape, place) for place in PLACES] for shape in range(len(SHAPES))] for theme in range(len(THEMES))])
  parts = cells[chosen[:, :1], chosen[:, 1:], places]  # [N, 4, 9, 9, 3]
  rows = parts.reshape(count, 2, 2, CELL, CELL, 3).transpose(0, 1, 3, 2, 4, 5)
  return rows.reshape(count, 2 * CELL, 2 * CELL, 3), chosen[:, 0].astype(np.int32)


def load(train: int = 2000, test: int = 500) -> Data:
  """Images of the training combinations, and of the held-out ones for testing; the label is the theme."""
  seen, held_out = combinations()
  return Data(*_draw(seen, train, 1), *_draw(held_out, test, 2), len(THEMES))


def read(images: np.ndarray) -> Reading:
  """Reads uint8 images [N, 18, 18, 3], cell by cell, by the nearest perfect cell."""
  kinds = list(itertools.product(range(len(THEMES)), range(len(SHAPES)), PLACES))
  known = np.array([cell(*kind) for kind in kinds], np.float64).reshape(len(kinds), -1)
  cells = images.reshape(len(images), 2, CELL, 2, CELL, 3).transpose(0, 1, 3, 2, 4, 5).reshape(len(images) * CELLS, -1).astype(np.float64)
  squares = np.sum(cells**2, 1)[:, None] + np.sum(known**2, 1)[None] - 2 * cells @ known.T
  best = np.argmin(squares, 1)
  rms = np.sqrt(np.maximum(np.min(squares, 1), 0) / known.shape[1])
  shaped = lambda values: np.array(values).reshape(len(images), CELLS)
  return Reading(shaped([kinds[i][0] for i in best]), shaped([kinds[i][1] for i in best]), np.all(shaped(rms) < TOLERANCE, 1))


def consistent(reading: Reading) -> np.ndarray:
  """Whether all cells show one theme, [N]."""
  return np.all(reading.themes == reading.themes[:, :1], 1)


def novel(reading: Reading) -> np.ndarray:
  """Whether a consistent and recognised image has a combination that no training image has, [N]; False for the others."""
  seen = {tuple(row) for row in combinations()[0].tolist()}
  found = np.concatenate([reading.themes[:, :1], reading.shapes], 1)
  unseen = np.array([tuple(row) not in seen for row in found.tolist()], bool)
  return unseen & consistent(reading) & reading.recognised


def chance(reading: Reading) -> float:
  """Consistency of cells that are independent but as frequent in each theme as these."""
  shares = np.stack([np.mean(reading.themes == theme, 0) for theme in range(len(THEMES))])
  return float(np.sum(np.prod(shares, 1)))
