"""Streams of stored images: a folder, an .npz, a tfds split or an array, all read in batches and in
a fixed order.

Memory does not grow with the number of images. What is not uint8 images of one size and one kind is
refused before the first batch, as far as file headers tell.
"""

import functools
import hashlib
import os
import re
from collections.abc import Iterator
from concurrent import futures
from typing import Any, Protocol

import numpy as np
from PIL import ExifTags, Image, ImageOps

from gmm_diffusion import files
from gmm_diffusion.data import npz
from gmm_diffusion.errors import UserError

EXTENSIONS = ('.png', '.jpg', '.jpeg', '.webp')
MODES = {'L': 1, 'RGB': 3}
_PIECE = 1 << 24  # bytes hashed at a time
_AHEAD = 1024  # files whose heads are read in parallel


class ImageSet(Protocol):
  """Stored images.

  Attributes:
    what: for people.
    shape: (H, W, C), with C 1 or 3.
    hash: twelve hexadecimal digits of the SHA-256 of what is stored: the pixels of an array or
      .npz, the bytes of the files of a folder or split. Reads all of it, but decodes no image.
    skipped: the unreadable images that were left out, so far.
  """

  what: str
  shape: Any
  skipped: list[str]

  @property
  def hash(self) -> str: ...

  def __len__(self) -> int:
    """Number of images; an upper bound where unreadable ones are skipped."""

  def batches(self, size: int) -> Iterator[np.ndarray]:
    """uint8 [n, H, W, C] in order; n is `size` but in the last batch, or where images are
    skipped."""


def _short(digest) -> str:
  return digest.hexdigest()[:12]


def _hash_files(paths: list[str], *more: Any) -> str:
  digest = hashlib.sha256(repr(more).encode())
  for path in paths:
    digest.update(str(os.path.getsize(path)).encode())
    with open(path, 'rb') as file:
      while piece := file.read(_PIECE):
        digest.update(piece)
  return _short(digest)


class ArraySet:
  """Images in memory or in a stream, or vectors [N, D]."""

  def __init__(self, images: Any, what: str):
    self.images, self.what, self.shape = images, what, images.shape[1:]
    self.skipped: list[str] = []

  def __len__(self):
    return len(self.images)

  @functools.cached_property
  def hash(self):
    return files.fingerprint(self.images)

  def batches(self, size):
    for start in range(0, len(self), size):
      yield np.asarray(self.images[start : start + size])


class NpzSet:
  """arr_0 of an .npz, uint8 [N, H, W, C]: samples from here, or ADM's batches. Rows are read one
  after another."""

  def __init__(self, path: str):
    self.path, self.what = path, path
    self.skipped: list[str] = []
    with npz.Npz(path) as file:
      if 'arr_0' not in file.heads:
        raise UserError(
          f'{path} has no arr_0 but {", ".join(file.heads) or "nothing"}; give an .npz with images '
          f'uint8 [N, H, W, C] as arr_0'
        )
      shape, dtype, fortran = file.heads['arr_0']
    if dtype != np.uint8 or len(shape) != 4 or shape[-1] not in (1, 3) or fortran or not all(shape):
      raise UserError(
        f'arr_0 of {path} is {dtype} {list(shape)}; valid: uint8 [N, H, W, 1 or 3] in 0..255 (of '
        f'floats in [-1, 1]: round 127.5 (x + 1) and clip)'
      )
    self.count, self.shape = shape[0], shape[1:]

  def __len__(self):
    return self.count

  @functools.cached_property
  def hash(self):
    digest = hashlib.sha256(
      f'uint8{(self.count, *self.shape)}'.encode()
    )  # that of the same array in memory
    for batch in self.batches(max(1, _PIECE // int(np.prod(self.shape)))):
      digest.update(batch)
    return _short(digest)

  def batches(self, size):
    with npz.Npz(self.path) as file:
      yield from file.rows('arr_0', size)


def upright(image: Image.Image) -> Image.Image:
  """The image as it was meant to be seen: turned and mirrored as its EXIF orientation says."""
  return ImageOps.exif_transpose(image)


def _orientation(image: Image.Image) -> int:
  """The EXIF orientation, 1 to 8, from the head of a file."""
  if image.format == 'PNG' and 'exif' not in image.info:
    return 1  # Pillow would decode all pixels to look behind them
  return image.getexif().get(ExifTags.Base.Orientation, 1)


class FolderSet:
  """All PNG, JPEG and WebP files below a folder, at any depth, sorted by their path; other files
  are left alone."""

  def __init__(self, path: str, skip_unreadable: bool = False):
    self.path, self.what, self.skip = path, path, skip_unreadable
    names = [
      os.path.relpath(os.path.join(root, name), path)
      for root, _, names in os.walk(path)
      for name in names
    ]
    names = sorted(name for name in names if name.lower().endswith(EXTENSIONS))
    if not names:
      raise UserError(f'no images in {path}; valid: {", ".join(EXTENSIONS)}, at any depth')
    self.names: list[str] = []
    self.skipped: list[str] = []
    self.turned = False
    kinds: dict[tuple[tuple[int, int], str], str] = {}
    with self._pool() as pool:
      for start in range(0, len(names), _AHEAD):  # all at once would queue a task for each file
        part = names[start : start + _AHEAD]
        for name, head in zip(part, pool.map(self._head, part)):
          if head:
            *kind, orientation = head
            self.names.append(name)
            self.turned |= orientation != 1
            kinds.setdefault(tuple(kind), name)
    if not kinds:
      raise UserError(f'none of the {len(names)} images in {path} can be read')
    self._check(kinds)
    (width, height), mode = next(iter(kinds))
    self.shape: tuple[int, ...] = (height, width, MODES[mode])

  def _check(self, kinds):
    (size, mode), first = next(iter(kinds.items()))
    for (other_size, other_mode), other in kinds.items():
      if other_mode not in MODES:
        raise UserError(
          f'{other} in {self.path} has mode {other_mode!r}; valid: {", ".join(map(repr, MODES))}; '
          f'convert the images'
        )
      if other_size != size:
        raise UserError(
          f'{self.path} has images of several sizes: {first} is {size[0]} x {size[1]}, {other} is '
          f'{other_size[0]} x {other_size[1]}; resize or crop them to one'
        )
      if other_mode != mode:
        raise UserError(
          f'{self.path} has grey and colour images: {first} is {mode}, {other} is {other_mode}; '
          'convert them to one, such as RGB'
        )

  def _pool(self):
    return futures.ThreadPoolExecutor(
      min(16, os.cpu_count() or 1)
    )  # decoding lets other threads run

  def _read(self, name, read):
    try:
      with Image.open(os.path.join(self.path, name)) as image:
        return read(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
      if not self.skip:
        raise UserError(
          f'cannot read image {os.path.join(self.path, name)} ({type(error).__name__}); repair or '
          f'remove it, or set evaluate.skip_unreadable=True'
        ) from error
      if name not in self.skipped:
        self.skipped.append(name)
      return None

  def _head(self, name):
    def read(image):
      orientation = _orientation(image)
      size = image.size[::-1] if orientation in (5, 6, 7, 8) else image.size
      return size, image.mode, orientation

    return self._read(name, read)

  def _pixels(self, name):
    def read(image):
      pixels = np.asarray(upright(image))
      if pixels.shape[:2] != self.shape[:2]:
        raise ValueError('its head gives another size')
      return pixels.reshape(self.shape)

    return self._read(name, read)

  def __len__(self):
    return len(self.names)

  @functools.cached_property
  def hash(self):
    turned = ['upright'] * self.turned  # the same bytes were other pixels before they were turned
    return _hash_files([os.path.join(self.path, name) for name in self.names], *turned)

  def batches(self, size):
    with self._pool() as pool:
      for start in range(0, len(self), size):
        found = pool.map(self._pixels, self.names[start : start + size])
        found = [image for image in found if image is not None]
        if found:
          yield np.stack(found)


class TfdsSet:
  """A split of a prepared tensorflow-datasets set, read through array_record; no TensorFlow."""

  def __init__(self, name: str, split: str, data_dir: str):
    try:
      import tensorflow_datasets
    except ImportError as error:
      raise UserError(
        f'reading {name!r} needs tensorflow-datasets ({error}); install the extra: pip install -e '
        f"'.[tfds]'"
      ) from error
    self.what, self.split = f'tfds {name}, {split}', split
    self.skipped: list[str] = []
    folder = os.path.expanduser(data_dir) or None
    try:
      self.info = tensorflow_datasets.builder(name, data_dir=folder).info
      self.source = tensorflow_datasets.data_source(
        name, data_dir=folder, split=split, download=False
      )
      self.shape = np.shape(self.source[0]['image'])
    except Exception as error:  # tfds raises many kinds
      reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
      raise UserError(
        f'cannot read {name!r}, split {split!r}, from data.path {folder!r}: {reason}; '
        'give the folder of a set with images, prepared in array_record form'
      ) from error

  def __len__(self):
    return len(self.source)

  @functools.cached_property
  def hash(self):
    return _hash_files(list(map(str, self.info.splits[self.split].filepaths)), self.split)

  def batches(self, size):
    for start in range(0, len(self), size):
      rows = self.source.__getitems__(list(range(start, min(start + size, len(self)))))
      for row in rows:
        if row['image'].shape != self.shape:
          raise UserError(
            f'{self.what} has images of several sizes: {list(self.shape)} and '
            f'{list(row["image"].shape)}; crop them to one'
          )
      yield np.stack([row['image'] for row in rows])


def load(path: str, data_dir: str = '', skip_unreadable: bool = False) -> ImageSet:
  """A folder, an .npz, or 'tfds:NAME:SPLIT' below data_dir.

  Raises:
    UserError: nothing there, or not uint8 images of one size and kind.
  """
  if path.startswith('tfds:'):
    parts = re.fullmatch(
      r'tfds:(.+?):([^:\[]+(\[.*\])?)', path
    )  # slices such as test[:100] have colons of their own
    if not parts:
      raise UserError(
        f'{path!r} names no split; valid: tfds:NAME:SPLIT, such as tfds:cifar10:train'
      )
    return TfdsSet(parts[1], parts[2], data_dir)
  path = os.path.expanduser(path)
  if os.path.isdir(path):
    return FolderSet(path, skip_unreadable)
  if not os.path.exists(path):
    raise UserError(
      f'there is nothing at {path}; valid: a folder of images, an .npz, or tfds:NAME:SPLIT'
    )
  return NpzSet(path)
