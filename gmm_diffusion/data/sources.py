"""Data sets in memory: embedded digits, folders, tensorflow-datasets without TensorFlow, a toy
mixture."""

import functools
import os

import numpy as np

from gmm_diffusion import specs
from gmm_diffusion.data import crafted as crafted_set
from gmm_diffusion.data import folders, streams
from gmm_diffusion.data.base import Data
from gmm_diffusion.errors import UserError


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
  folder = os.path.expanduser(spec.path) or None
  try:
    info = tensorflow_datasets.builder(spec.dataset, data_dir=folder).info

    def source(split, **decoders):
      return tensorflow_datasets.data_source(
        spec.dataset, data_dir=folder, split=split, decoders=decoders, download=False
      )

    train, test = source('train'), source('test') if 'test' in info.splits else ()
    train[0]['image']
  except Exception as error:  # tfds raises many kinds
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    raise UserError(
      f'cannot read {spec.dataset!r} from data.path {spec.path!r}: {reason}; '
      'give the folder of a set with images, prepared in array_record form'
    ) from error
  mode = folders.MODES[spec.colour] if spec.colour else ''

  def part(rows, split):
    labels = np.zeros(len(rows), np.int32)

    def one(number):
      row = rows[number]
      labels[number] = row.get('label', 0)
      return folders.fitted_pixels(row['image'], spec.size, mode)

    images = streams.Stream(one, lambda n: f'item {n} of {spec.dataset}, {split},', len(rows))
    if not spec.stream:
      return images.read(f'reading {split}'), labels  # of all that were read
    if 'label' in info.features:
      rows = source(split, image=tensorflow_datasets.decode.SkipDecoding())
      labels = np.array([row['label'] for row in rows], np.int32)
    return images, labels

  images, labels = part(train, 'train')
  held_out, held_out_labels = (
    part(test, 'test') if len(test) else (images[:0], np.zeros(0, np.int32))
  )
  classes, names = 0, ()
  if 'label' in info.features:
    classes = int(max(labels.max(), held_out_labels.max(initial=0))) + 1
    names = tuple(getattr(info.features['label'], 'names', ()))[:classes]
  return Data(images, labels, held_out, held_out_labels, classes, names=names)


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
  return crafted_set.load()


SOURCES = {
  'digits': digits,
  'toy': toy,
  'folder': folders.load,
  'tfds': tfds,
  'crafted': crafted,
  'none': none,
}


def load(spec: specs.Data) -> Data:
  """The data set that a spec names, with its first `limit` training images if that is not 0."""
  data = SOURCES[spec.name](spec)
  if spec.limit:
    data = data._replace(
      train=data.train[: spec.limit], train_labels=data.train_labels[: spec.limit]
    )
  return data
