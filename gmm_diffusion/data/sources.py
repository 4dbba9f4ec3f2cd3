"""Data sets in memory: embedded digits, tensorflow-datasets without TensorFlow, a toy mixture."""

import difflib
import functools
import os
import re
from typing import Any, NamedTuple

import numpy as np

from gmm_diffusion import specs
from gmm_diffusion.aliases import UserError


class Data(NamedTuple):
  """A data set.

  Attributes:
    train, test: uint8 images [N, H, W, C], or float32 vectors [N, D].
    train_labels, test_labels: int32 [N].
    classes: number of classes; 0 has no labels.
    mixture: (means [J, D], variances [J]) where the distribution is known, else None.
    names: of the classes, where they have any.
  """

  train: np.ndarray
  train_labels: np.ndarray
  test: np.ndarray
  test_labels: np.ndarray
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


def digits(spec: specs.Data) -> Data:
  """The 1,797 handwritten digits of scikit-learn, 8 x 8, 1,500 for training. No download."""
  del spec
  from sklearn import datasets  # slow to import, and only needed here

  bunch = datasets.load_digits()
  images = np.round(bunch.images[..., None] * (255 / 16)).astype(np.uint8)
  labels = bunch.target.astype(np.int32)
  order = np.random.RandomState(0).permutation(len(images))
  train, test = order[:1500], order[1500:]
  return Data(images[train], labels[train], images[test], labels[test], 10)


def tfds(spec: specs.Data) -> Data:
  """A prepared tensorflow-datasets image classification set, read through array_record."""
  try:
    import tensorflow_datasets
  except ImportError as error:
    raise UserError(
      f'reading {spec.dataset!r} needs tensorflow-datasets ({error}); '
      "install the extra: pip install -e '.[tfds]'"
    ) from error
  try:
    parts = [
      tensorflow_datasets.data_source(
        spec.dataset, data_dir=os.path.expanduser(spec.path) or None, split=split, download=False
      )
      for split in ('train', 'test')
    ]
  except Exception as error:  # tfds raises many kinds
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    raise UserError(
      f'cannot read {spec.dataset!r} from data.path {spec.path!r}: {reason}; '
      'give the folder of a set prepared in array_record form'
    ) from error

  def load(source):
    rows = [(row['image'], row['label']) for row in source]
    return np.stack([image for image, _ in rows]), np.array([label for _, label in rows], np.int32)

  (train, train_labels), (test, test_labels) = map(load, parts)
  return Data(
    train, train_labels, test, test_labels, int(max(train_labels.max(), test_labels.max())) + 1
  )


def toy(spec: specs.Data) -> Data:
  """Eight round Gaussians on a circle of radius 0.8 in the plane; the class is the Gaussian."""
  del spec
  angle = np.arange(8) * (2 * np.pi / 8)
  means = 0.8 * np.stack([np.cos(angle), np.sin(angle)], 1)
  variances = np.full(8, 0.05**2)
  random = np.random.RandomState(0)
  labels = random.randint(8, size=8000).astype(np.int32)
  points = (
    means[labels] + np.sqrt(variances[labels])[:, None] * random.standard_normal((8000, 2))
  ).astype(np.float32)
  return Data(
    points[:4000],
    labels[:4000],
    points[4000:],
    labels[4000:],
    8,
    (means.astype(np.float32), variances.astype(np.float32)),
  )


def none(spec: specs.Data) -> Data:
  """No items: the shape and classes of what a pretrained model makes."""
  if spec.size < 1:
    raise UserError(f"data.size must be at least 1 where data.name is 'none', got {spec.size}")
  images, labels = np.zeros((0, spec.size, spec.size, 3), np.uint8), np.zeros(0, np.int32)
  names = imagenet_classes() if spec.dataset == 'imagenet' else ()
  return Data(images, labels, images, labels, spec.classes, names=names[: spec.classes])


@functools.cache
def imagenet_classes() -> tuple[str, ...]:
  """The names of the 1000 classes, in the order that models number them."""
  with open(
    os.path.join(os.path.dirname(__file__), 'imagenet_classes.txt'), encoding='utf-8'
  ) as file:
    return tuple(file.read().splitlines())


def crafted(spec: specs.Data) -> Data:
  """Locally ambiguous, globally consistent images."""
  del spec
  from gmm_diffusion.creativity import crafted as made  # it needs Data

  return made.load()


def load(spec: specs.Data) -> Data:
  """The data set that a spec names, with its first `limit` training images if that is not 0."""
  data = {'digits': digits, 'tfds': tfds, 'toy': toy, 'none': none, 'crafted': crafted}[spec.name](
    spec
  )
  if spec.limit:
    data = data._replace(
      train=data.train[: spec.limit], train_labels=data.train_labels[: spec.limit]
    )
  return data


def class_numbers(data: Data, label: str) -> np.ndarray:
  """The classes that `label` names: numbers or names separated by commas; '' is all of them. int32,
  none without labels.

  Raises:
    UserError: on a class that does not exist, with the nearest names.
  """
  if not label:
    return np.arange(data.classes, dtype=np.int32)
  if not data.classes:
    raise UserError(
      f'sample.label {label!r} needs a conditional model; this one takes no labels, leave it empty'
    )
  lower = [name.lower() for name in data.names]

  def number(word):
    if word.lower() in lower:
      return lower.index(word.lower())
    if re.fullmatch(r'\d+', word) and int(word) < data.classes:
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
  return x.astype(np.float32) / 127.5 - 1 if x.dtype == np.uint8 else x


def to_image(x: np.ndarray) -> np.ndarray:
  """float in [-1, 1] -> uint8, rounded and clipped."""
  return np.clip(np.round((np.asarray(x, np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)


def batch_indices(seed: int, step: int, size: int, batch: int) -> np.ndarray:
  """Indices of batch number `step`: a new permutation each epoch, a function of (seed, step)
  alone."""
  position = step * batch + np.arange(batch)
  epochs = position // size
  order = {
    e: np.random.RandomState([seed, e]).permutation(size) for e in np.unique(epochs).tolist()
  }
  return np.array([order[e][p] for e, p in zip(epochs.tolist(), (position % size).tolist())])


def summary(data: Data) -> dict[str, Any]:
  """Counts and shape for people to read."""
  return {
    'train': len(data.train),
    'test': len(data.test),
    'shape': ' x '.join(map(str, data.shape)),
    'classes': data.classes,
  }
