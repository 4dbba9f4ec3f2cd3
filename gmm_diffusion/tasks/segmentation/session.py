"""A session with a person: add a click, get a mask; undo, reset, correct."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from gmm_diffusion.errors import UserError
from gmm_diffusion.tasks.segmentation import scenes
from gmm_diffusion.tasks.segmentation.annotator import Click
from gmm_diffusion.tasks.segmentation.model import ARMS, STRIDE, Clicks, Segmenter


@functools.cache
def compiled(module: Segmenter) -> tuple[Any, Any]:
  """(encode, update) of a network, compiled once for each shape."""
  return (
    jax.jit(lambda params, image: module.apply(params, image, method='encode')),
    jax.jit(
      lambda params, features, clicks, on: module.apply(
        params, features, clicks, on, method='update'
      )
    ),
  )


def working_shape(shape: tuple[int, int], size: int) -> tuple[int, int]:
  """Where an image is worked on: as it is, or with its longer side reduced to `size`."""
  factor = min(1.0, size / max(shape))
  height, width = (max(1, int(round(side * factor))) for side in shape)
  return height, width


def to_network(image: np.ndarray, size: int) -> np.ndarray:
  """uint8 [H, W, 3] of any size -> float32 in [-1, 1], sides a multiple of STRIDE, the rim
  repeated."""
  image = scenes.resize(image, working_shape(image.shape[:2], size)).astype(np.float32) / 127.5 - 1
  return np.pad(image, [(0, -side % STRIDE) for side in image.shape[:2]] + [(0, 0)], mode='edge')


def from_network(
  logits: np.ndarray, shape: tuple[int, int], size: int, clicks: Sequence[Click]
) -> np.ndarray:
  """Logits of `to_network` -> bool mask [H, W] of the image; clicked pixels are what the clicks
  say."""
  height, width = working_shape(shape, size)
  logits = np.asarray(logits)[:height, :width]
  if (height, width) != shape:
    logits = np.asarray(Image.fromarray(logits).resize(shape[::-1], Image.Resampling.BILINEAR))
  mask = logits > 0
  for click in clicks:
    mask[click.row, click.column] = click.positive
  return mask


def scaled(clicks: Sequence[Click], shape: tuple[int, int], size: int) -> list[Click]:
  """Clicks on an image in pixels of its working shape."""
  height, width = working_shape(shape, size)
  return [
    click._replace(row=click.row * height // shape[0], column=click.column * width // shape[1])
    for click in clicks
  ]


def pack(clicks: Sequence[Click], shape: tuple[int, int], size: int, slots: int) -> Clicks:
  """Clicks in slots, in pixels of the working shape."""
  pixels, labels = np.zeros((slots, 2), np.int32), np.full(slots, -1, np.int32)
  for i, click in enumerate(scaled(clicks, shape, size)):
    pixels[i], labels[i] = (click.row, click.column), click.positive
  return Clicks(pixels, labels)


class Session:
  """One image being segmented. Deterministic: the mask is a function of the image and the clicks.

  Attributes:
    clicks: in order; a second click on a pixel replaces the first.
    mask: bool [H, W], of the image as it came in; all False before the first click.
    note: what was done to the image to work on it, or ''.
  """

  def __init__(
    self,
    module: Segmenter,
    params: Any,
    image: np.ndarray,
    size: int = 240,
    slots: int = 40,
    arm: str = 'both',
  ):
    """image: see scenes.rgb; larger ones are worked on at `size` pixels. arm: a name in
    model.ARMS."""
    if arm not in ARMS:
      raise UserError(f'unknown arm {arm!r}; valid: {", ".join(ARMS)}')
    image = scenes.rgb(image)
    self._module, self._params, self._size, self._slots = module, params, size, slots
    self._shape, self._on = image.shape[:2], tuple(map(jnp.asarray, ARMS[arm]))
    self._encode, self._update = compiled(module)
    self._features = self._encode(params, to_network(image, size)[None])
    self._history = []
    height, width = working_shape(self._shape, size)
    self.note = (
      ''
      if (height, width) == self._shape
      else f'{self._shape[1]} x {self._shape[0]} pixels are worked on as {width} x {height}'
    )
    self.clicks: list[Click] = []
    self.mask = np.zeros(self._shape, bool)

  def click(self, row: int, column: int, positive: bool) -> np.ndarray:
    """Adds a click on the object (or the background) and returns the mask."""
    return self.scribble([(row, column)], positive)

  def scribble(self, pixels: Sequence[tuple[int, int]], positive: bool) -> np.ndarray:
    """Adds a stroke of pixels (row, column), which is undone as one; at most 16 of them are used,
    evenly spaced."""
    clicks = self._with(self.clicks, pixels, positive)
    self._history.append(self.clicks)
    return self._show(clicks)

  def replay(self, strokes: Sequence[tuple[Sequence[tuple[int, int]], bool]]) -> np.ndarray:
    """Forgets all clicks, adds strokes (pixels, positive) one after the other, and returns the last
    mask. Nothing changes where one of them cannot be added."""
    clicks, history = [], []
    for pixels, positive in strokes:
      history.append(clicks)
      clicks = self._with(clicks, pixels, positive)
    self._history = history
    return self._show(clicks)

  def undo(self) -> np.ndarray:
    """Takes back the last click or scribble, if there is one."""
    return self._show(self._history.pop() if self._history else [])

  def reset(self) -> np.ndarray:
    """Forgets all clicks."""
    self._history = []
    return self._show([])

  def _with(self, clicks, pixels, positive):
    """The clicks and those of one more stroke."""
    if not np.isfinite(np.asarray(pixels, float)).all():
      raise UserError(f'click at {list(pixels)[:3]} is not finite; give a row and a column')
    new = [
      Click(int(np.floor(row)), int(np.floor(column)), bool(positive)) for row, column in pixels
    ]
    height, width = self._shape
    for click in new:
      if not (0 <= click.row < height and 0 <= click.column < width):
        raise UserError(
          f'click at row {click.row}, column {click.column} is outside the image; valid: rows '
          f'0..{height - 1}, columns 0..{width - 1}'
        )
    new = (
      [new[i] for i in np.unique(np.linspace(0, len(new) - 1, min(16, len(new))).astype(int))]
      if new
      else []
    )
    places = {(click.row, click.column) for click in new}
    out = [click for click in clicks if (click.row, click.column) not in places] + new
    if len(out) > self._slots:
      raise UserError(
        f'{len(out)} clicks are more than the {self._slots} slots; undo some, or raise '
        f'segmentation.slots'
      )
    return out

  def _show(self, clicks):
    self.clicks = clicks
    if not clicks:
      self.mask = np.zeros(self._shape, bool)
      return self.mask
    packed = jax.tree.map(lambda x: x[None], pack(clicks, self._shape, self._size, self._slots))
    logits = self._update(self._params, self._features, packed, self._on)
    self.mask = from_network(np.asarray(logits[0]), self._shape, self._size, clicks)
    return self.mask
