"""Data sets: embedded digits, folders, .npz files, tensorflow-datasets without TensorFlow, a toy
mixture."""

import functools
import os
from typing import Any

import numpy as np

from gmm_diffusion import specs
from gmm_diffusion.data import crafted as crafted_set
from gmm_diffusion.data import folders, npz, streams
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

    train = source('train')
    others = {name: source(name) for name in ('test', 'validation') if name in info.splits}
    train[0]['image']
  except Exception as error:  # tfds raises many kinds
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    raise UserError(
      f'cannot read {spec.dataset!r} from data.path {spec.path!r}: {reason}; '
      'give the folder of a set with images, prepared in array_record form'
    ) from error
  label = info.features['label'] if 'label' in info.features else None
  classes = getattr(label, 'num_classes', None) or 0

  def part(rows, split, limit=0):
    bare = source(split, image=tensorflow_datasets.decode.SkipDecoding())
    images, labels = _tfds_part(rows, bare, split, limit, classes, spec)
    return (images, labels) if spec.stream else (images.read(f'reading {split}'), labels[:])

  images, labels = part(train, 'train', spec.limit)
  held_out, held_out_labels = images[:0], np.zeros(0, np.int32)
  for name, rows in others.items():
    secret = classes and len(rows) and rows[0]['label'] < 0  # as those of a test set may be
    if len(rows) and not secret:
      held_out, held_out_labels = part(rows, name)
      break
  return Data(
    images,
    labels,
    held_out,
    held_out_labels,
    classes,
    names=tuple(label.names) if label and classes else (),
  )


def _tfds_part(
  rows: Any, bare: Any, split: str, limit: int, classes: int, spec: specs.Data
) -> tuple[streams.Stream, streams.Labels]:
  """Images and labels of the rows of a split; `bare` are the rows without their images."""
  mode = folders.MODES[spec.colour] if spec.colour else ''
  count = min(limit or len(rows), len(rows))
  name = lambda n: f'item {n} of {spec.dataset}, {split},'
  labels = streams.Labels(lambda n: _label(bare[n], classes, name(n)), count)

  def one(number):
    row = rows[number]
    image = row['image']
    if image.dtype != np.uint8 or image.ndim != 3:
      raise UserError(
        f'{name(number)} is {image.dtype} {list(image.shape)}; valid: uint8 [height, width, '
        f'channels]'
      )
    labels.know(number, _label(row, classes, name(number)))
    return folders.fitted_pixels(image, spec.size, mode)

  return streams.Stream(one, name, count), labels


def _label(row, classes, name):
  """The class of an item; 0 where the set has none."""
  number = int(row['label']) if classes else 0
  if classes and not 0 <= number < classes:
    raise UserError(f'{name} has the label {number}; valid: 0..{classes - 1}')
  return number


# Names of arrays in an .npz: (images, classes) to train on and those held out, as ADM, MedMNIST and
# Keras write them.
NPZ_NAMES: tuple[tuple[tuple[str, str], tuple[str, ...]], ...] = (
  (('arr_0', 'arr_1'), ()),
  (('train_images', 'train_labels'), ('test_images', 'test_labels')),
  (('x_train', 'y_train'), ('x_test', 'y_test')),
)


def npz_file(spec: specs.Data) -> Data:
  """The uint8 images [N, H, W] or [N, H, W, 1 or 3] of an .npz, and their classes if it has any."""
  path = os.path.expanduser(spec.path)
  if not os.path.isfile(path):
    raise UserError(f'there is no file {spec.path!r}; set data.path to an .npz of images')
  with npz.Npz(path) as file:
    names = [pair for pair in NPZ_NAMES if pair[0][0] in file.heads]
    if not names:
      raise UserError(
        f'{path} has no images but {", ".join(file.heads) or "nothing"}; valid names: '
        f'{", ".join(own[0] for own, _ in NPZ_NAMES)}'
      )
    own, other = names[0]
    strange = [label for (_, label), _ in NPZ_NAMES if label in file.heads]
    if strange and own[1] not in file.heads:
      raise UserError(
        f'{path} has images in {own[0]} and classes in {strange[0]}; rename these to {own[1]}'
      )
    there = bool(other) and other[0] in file.heads
    train = _npz_part(file, *own)
    test = _npz_part(file, *other) if there else train
    if (train[1][0] < 0) != (test[1][0] < 0):
      raise UserError(
        f'{path} has classes in only one of {own[1]} and {other[1]}; add the other, or leave both '
        f'out'
      )
  away = folders.held_out(len(train[1]), 0.0 if there else spec.held_out)
  kept, apart = np.flatnonzero(~away), np.arange(len(test[1])) if there else np.flatnonzero(away)
  kept = kept[: spec.limit or len(kept)]
  if not len(kept):
    raise UserError(f'no image is left to train on in {path}; lower data.held_out')
  mode = folders.MODES[spec.colour] if spec.colour else ''

  def read(images, numbers, item=()):
    one = lambda n: folders.fitted_pixels(np.array(images[numbers[n]]), spec.size, mode)
    name = lambda n: f'image {numbers[n]} of {path}'
    stream = streams.Stream(one, name, len(numbers), item=item)
    return stream if spec.stream else stream.read()

  images = read(train[0], kept)
  held_out = read(test[0], apart, images.shape[1:])
  labels = train[1][kept], test[1][apart]
  classes = max(int(part.max(initial=-1)) for part in labels) + 1
  return Data(images, np.maximum(labels[0], 0), held_out, np.maximum(labels[1], 0), classes)


def _npz_part(file: npz.Npz, images: str, labels: str) -> tuple[np.ndarray, np.ndarray]:
  """(images [N, H, W, C] that stay in the file, classes int32 [N], -1 where there are none)."""
  shape, dtype, _ = file.heads[images]
  if dtype != np.uint8 or len(shape) not in (3, 4) or [*shape, 1][3] not in (1, 3) or 0 in shape:
    raise UserError(
      f'{images} of {file.path} is {dtype} {list(shape)}; valid: uint8 [N, H, W] or '
      f'[N, H, W, 1 or 3] in 0..255'
    )
  rows = file.mapped(images).reshape(*shape[:3], -1)
  if labels not in file.heads:
    return rows, np.full(len(rows), -1, np.int32)
  classes = file.array(labels)
  if classes.size != len(rows) or classes.dtype.kind not in 'iu' or classes.min() < 0:
    raise UserError(
      f'{labels} of {file.path} is {classes.dtype} {list(classes.shape)}; valid: whole numbers '
      f'from 0 on, one for each of the {len(rows)} images'
    )
  return rows, classes.reshape(-1).astype(np.int32)


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
  'npz': npz_file,
  'tfds': tfds,
  'crafted': crafted,
  'none': none,
}


def load(spec: specs.Data) -> Data:
  """The data set that a spec names, with its first `limit` training images if that is not 0."""
  data = SOURCES[spec.name](spec)
  if spec.limit and len(data.train) > spec.limit:
    data = data._replace(
      train=data.train[: spec.limit], train_labels=data.train_labels[: spec.limit]
    )
  return data
