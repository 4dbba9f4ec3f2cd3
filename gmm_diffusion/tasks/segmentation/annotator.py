"""A simulated annotator: where the next click goes."""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from gmm_diffusion.tasks.segmentation.scenes import BACKGROUND, OBJECT


class Click(NamedTuple):
  """A pixel of the image and whether it belongs to the object."""

  row: int
  column: int
  positive: bool


def depth(region: np.ndarray) -> np.ndarray:
  """Distance of each pixel of a bool region [H, W] from what is outside it; outside the image is
  outside."""
  return ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]


def next_click(mask: np.ndarray, predicted: np.ndarray, clicks: list[Click]) -> Click | None:
  """The centre of the largest error region, by distance transform: the pixel farthest from what is
  right.

  Args:
    mask: BACKGROUND, OBJECT or IGNORE [H, W].
    predicted: bool [H, W].
    clicks: those so far, whose pixels are not clicked again.

  Returns:
    Click, or None where nothing is wrong.
  """
  best, out = 0.0, None
  for positive, wrong in (
    (True, (mask == OBJECT) & ~predicted),
    (False, (mask == BACKGROUND) & predicted),
  ):
    if wrong.any():
      distance = depth(wrong)
      for click in clicks:
        distance[click.row, click.column] = 0
      if distance.max() > best:
        best = distance.max()
        row, column = np.unravel_index(np.argmax(distance), distance.shape)
        out = Click(int(row), int(column), positive)
  return out


def first_clicks(mask: np.ndarray, count: int, random: np.random.RandomState) -> list[Click]:
  """Clicks to train with: the first at the centre of the object, the others anywhere, more often
  near its border."""
  row, column = np.unravel_index(np.argmax(depth(mask == OBJECT)), mask.shape)
  out = [Click(int(row), int(column), True)]
  near = ndimage.distance_transform_edt(mask != OBJECT) < 16
  for _ in range(count - 1):
    positive = random.rand() < 0.5
    region = mask == (OBJECT if positive else BACKGROUND)
    if not positive and random.rand() < 0.7 and (region & near).any():
      region = region & near
    pixels = np.flatnonzero(region)
    if len(pixels):
      row, column = np.unravel_index(pixels[random.randint(len(pixels))], mask.shape)
      out.append(Click(int(row), int(column), positive))
  return out
