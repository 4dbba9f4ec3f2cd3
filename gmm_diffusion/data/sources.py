"""Data sets in memory: embedded digits, tensorflow-datasets without TensorFlow, a toy mixture."""

import os
from typing import Any, NamedTuple

import numpy as np

from gmm_diffusion import specs
from gmm_diffusion.aliases import UserError


class Data(NamedTuple):
  """A data set.

  Attributes:
    train, test: uint8 images [N, H, W, C], or float32 vectors [N, D].
    train_labels, test_labels: int32 [N].
    classes: number of classes.
    mixture: (means [J, D], variances [J]) where the distribution is known, else None.
  """

  train: np.ndarray
  train_labels: np.ndarray
  test: np.ndarray
  test_labels: np.ndarray
  classes: int
  mixture: tuple[np.ndarray, np.ndarray] | None = None

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
    raise UserError(f"reading {spec.dataset!r} needs tensorflow-datasets ({error}); "
                    "install the extra: pip install -e '.[tfds]'") from error
  try:
    parts = [tensorflow_datasets.data_source(spec.dataset, data_dir=os.path.expanduser(spec.path) or None, split=split, download=False)
             for split in ('train', 'test')]
  except Exception as error:  # tfds raises many kinds
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    raise UserError(f'cannot read {spec.dataset!r} from data.path {spec.path!r}: {reason}; '
                    'give the folder of a set prepared in array_record form') from error

  def load(source):
    rows = [(row['image'], row['label']) for row in source]
    return np.stack([image for image, _ in rows]), np.array([label for _, label in rows], np.int32)

  (train, train_labels), (test, test_labels) = map(load, parts)
  return Data(train, train_labels, test, test_labels, int(max(train_labels.max(), test_labels.max())) + 1)


def toy(spec: specs.Data) -> Data:
  """Eight round Gaussians on a circle of radius 0.8 in the plane; the class is the Gaussian."""
  del spec
  angle = np.arange(8) * (2 * np.pi / 8)
  means = 0.8 * np.stack([np.cos(angle), np.sin(angle)], 1)
  variances = np.full(8, 0.05**2)
  random = np.random.RandomState(0)
  labels = random.randint(8, size=8000).astype(np.int32)
  points = (means[labels] + np.sqrt(variances[labels])[:, None] * random.standard_normal((8000, 2))).astype(np.float32)
  return Data(points[:4000], labels[:4000], points[4000:], labels[4000:], 8,
              (means.astype(np.float32), variances.astype(np.float32)))


def load(spec: specs.Data) -> Data:
  """The data set that a spec names."""
  return {'digits': digits, 'tfds': tfds, 'toy': toy}[spec.name](spec)


def to_model(x: np.ndarray) -> np.ndarray:
  """uint8 images -> float32 in [-1, 1]; vectors stay as they are."""
  return x.astype(np.float32) / 127.5 - 1 if x.dtype == np.uint8 else x


def to_image(x: np.ndarray) -> np.ndarray:
  """float in [-1, 1] -> uint8, rounded and clipped."""
  return np.clip(np.round((np.asarray(x, np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)


def batch_indices(seed: int, step: int, size: int, batch: int) -> np.ndarray:
  """Indices of batch number `step`: a new permutation each epoch, a function of (seed, step) alone."""
  position = step * batch + np.arange(batch)
  epochs = position // size
  order = {e: np.random.RandomState([seed, e]).permutation(size) for e in np.unique(epochs).tolist()}
  return np.array([order[e][p] for e, p in zip(epochs.tolist(), (position % size).tolist())])


def summary(data: Data) -> dict[str, Any]:
  """Counts and shape for people to read."""
  return {'train': len(data.train), 'test': len(data.test), 'shape': ' x '.join(map(str, data.shape)), 'classes': data.classes}
