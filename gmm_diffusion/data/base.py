"""Data: what every set of data is, and what is done with any of them."""

import difflib
import functools
import re
from typing import Any, NamedTuple

import numpy as np

from gmm_diffusion.errors import UserError


class Data(NamedTuple):
  """A data set.

  Attributes:
    train, test: uint8 images [N, H, W, C], in memory or a streams.Stream, or float32 vectors
      [N, D].
    train_labels, test_labels: int32 [N], in memory or a streams.Labels.
    classes: number of classes; 0 has no labels.
    mixture: (means [J, D], variances [J]) where the distribution is known, else None.
    names: of the classes, where they have any.
  """

  train: Any
  train_labels: Any
  test: Any
  test_labels: Any
  classes: int
  mixture: tuple[np.ndarray, np.ndarray] | None = None
  names: tuple[str, ...] = ()

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of one sample."""
    return self.train.shape[1:]

  @property
  def is_image(self) -> bool:
    return self.train.dtype == np.uint8


def class_numbers(data: Data, label: str) -> np.ndarray:
  """The classes that `label` names: numbers or names separated by commas; '' is all of them. int32,
  none without labels.

  Raises:
    UserError: on a class that does not exist, with the nearest names, and on a name of several
      classes (ImageNet has a dog and a garment "cardigan"), with their numbers.
  """
  if not label:
    return np.arange(data.classes, dtype=np.int32)
  if not data.classes:
    raise UserError(
      f'sample.label {label!r} needs a conditional model; this one takes no labels, leave it empty'
    )
  lower = [name.lower() for name in data.names]

  def number(word):
    named = [i for i, name in enumerate(lower) if name == word.lower()]
    if len(named) > 1:
      choices = [f'{i} (next to {data.names[i - 1]!r})' for i in named]
      raise UserError(
        f'{word!r} is the name of {len(named)} classes; give the number: {" or ".join(choices)}'
      )
    if named:
      return named[0]
    if re.fullmatch('[0-9]{1,9}', word) and int(word) < data.classes:
      return int(word)
    near = [data.names[i] for i, name in enumerate(lower) if word.lower() in name]
    near = near or [
      data.names[lower.index(name)] for name in difflib.get_close_matches(word.lower(), lower)
    ]
    raise UserError(
      f'no class {word!r}; valid: 0..{data.classes - 1}'
      + (
        f', or a name such as {", ".join(map(repr, near[:5] or data.names[:3]))}'
        if data.names
        else ''
      )
    )

  return np.array([number(word.strip()) for word in label.split(',')], np.int32)


def to_model(x: np.ndarray) -> np.ndarray:
  """uint8 images -> float32 in [-1, 1]; vectors stay as they are."""
  x = np.asarray(x)
  return x.astype(np.float32) / 127.5 - 1 if x.dtype == np.uint8 else x


LEVELS = to_model(np.arange(256, dtype=np.uint8))  # of a uint8 value, in [-1, 1]


def to_image(x: np.ndarray) -> np.ndarray:
  """float in [-1, 1] -> uint8, rounded and clipped."""
  return np.clip(np.round((np.asarray(x, np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)


def batch_indices(seed: int, step: int, size: int, batch: int) -> np.ndarray:
  """Indices of batch number `step`: a new permutation each epoch, a function of (seed, step)
  alone."""
  position = step * batch + np.arange(batch)
  epochs = position // size
  out = np.empty(batch, np.int64)
  for epoch in np.unique(epochs).tolist():
    here = epochs == epoch
    out[here] = _order(seed, epoch, size)[position[here] % size]
  return out


@functools.lru_cache(maxsize=4)  # as many epochs as are in use at the same time
def _order(seed, epoch, size):
  return np.random.RandomState([seed, epoch]).permutation(size)


def summary(data: Data) -> dict[str, Any]:
  """Counts and shape for people to read."""
  return {
    'train': len(data.train),
    'test': len(data.test),
    'shape': ' x '.join(map(str, data.shape)),
    'classes': data.classes,
  }


def labelled_batch(data: Data, seed: int, step: int, batch: int, mine: slice) -> tuple[Any, ...]:
  """(images, labels, positions in the whole batch) of a host's part `mine` of a batch."""
  index = batch_indices(seed, step, len(data.train), batch)[mine]
  return data.train[index], data.train_labels[index], np.arange(batch, dtype=np.int32)[mine]
