"""A folder of images of any size and kind, as images of one size.

Each is turned upright as its EXIF orientation says, resized so that it just covers the square, and
cropped at its centre. What is transparent becomes white.
"""

import csv
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from gmm_diffusion import specs
from gmm_diffusion.data import streams
from gmm_diffusion.data.base import Data
from gmm_diffusion.data.image_sets import EXTENSIONS, upright
from gmm_diffusion.errors import UserError

PARTS = ('train', 'test')  # folders that, where both are there, say what is held out
MODES = {'rgb': 'RGB', 'grey': 'L'}
COLUMNS = ('file', 'label')  # of a CSV of labels
DAMAGED = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises


def load(spec: specs.Data) -> Data:
  """All PNG, JPEG and WebP files below data.path, at any depth, uint8, in memory or read when asked
  for.

  Raises:
    UserError: there are none, one of them cannot be read, or they do not fit together.
  """
  root = os.path.expanduser(spec.path)
  if not spec.path or not os.path.isdir(root):
    raise UserError(
      f'there is no folder {spec.path!r}; set data.path to a folder of images '
      f'({", ".join(EXTENSIONS)}, at any depth)'
    )
  parts = _parts(root)
  found = [_names(os.path.join(root, part)) for part in parts]
  words = _words(root, parts, found, spec.labels)
  classes = _classes(words)
  number = {word: i for i, word in enumerate(classes)}
  items = [  # (path, class) of each image of each part
    [(os.path.join(root, part, name), number.get(word, 0)) for name, word in zip(*both)]
    for part, *both in zip(parts, found, words)
  ]
  if len(items) == 1:
    out = held_out(len(items[0]), spec.held_out)
    items = [[item for item, away in zip(items[0], out) if away == held] for held in (False, True)]
  if spec.limit:
    items[0] = items[0][: spec.limit]
  if not items[0]:
    raise UserError(f'no image is left to train on in {root}; lower data.held_out')
  (train, train_labels), (test, test_labels) = (_images(part, spec) for part in items)
  if not len(test):
    test = train[:0]
  if train.shape[1:] != test.shape[1:]:
    raise UserError(
      f'the images in train and test of {root} have different sizes; set data.size to crop all to '
      f'one'
    )
  return Data(train, train_labels, test, test_labels, len(classes), names=classes)


def names(root: str) -> list[str]:
  """The images below data.path in the order in which `load` reads them, named from there on."""
  return [
    os.path.join(part, name) for part in _parts(root) for name in _names(os.path.join(root, part))
  ]


def _parts(root: str) -> list[str]:
  """The folders of what is trained on and what is held out, or the whole."""
  parts = [part for part in PARTS if os.path.isdir(os.path.join(root, part))]
  return parts if len(parts) == len(PARTS) else ['']


def _names(folder: str) -> list[str]:
  """The images below a folder, in the order of their names."""
  names = sorted(
    os.path.relpath(os.path.join(place, name), folder)
    for place, _, names in os.walk(folder, followlinks=True)
    for name in names
    if name.lower().endswith(EXTENSIONS) and not name.startswith('.')
  )
  if not names:
    raise UserError(f'no images in {folder}; valid: {", ".join(EXTENSIONS)}, at any depth')
  return names


def _words(root, parts, found, labels) -> list[list[str]]:
  """The class of each image of each part, as a word; '' has none."""
  if labels == 'none':
    return [[''] * len(names) for names in found]
  if labels != 'folder':
    return _of_csv(labels, parts, found)
  out = [[name.split(os.sep)[0] if os.sep in name else '' for name in names] for names in found]
  flat = [
    (word, os.path.join(root, part, name))
    for part, words, names in zip(parts, out, found)
    for word, name in zip(words, names)
  ]
  inside, outside = ([path for word, path in flat if bool(word) == has] for has in (True, False))
  if inside and outside:
    raise UserError(
      f'{outside[0]} lies in no folder that says its class, {inside[0]} does; move it into one, or '
      f"set data.labels to 'none'"
    )
  return out


def _of_csv(path, parts, found):
  """Words from the rows `file,label` of a CSV; files are named from data.path on."""
  try:
    with open(os.path.expanduser(path), encoding='utf-8-sig', newline='') as file:  # of Excel too
      reader = csv.DictReader(file)
      rows = list(reader)
      columns = reader.fieldnames or []
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise UserError(
      f'cannot read data.labels {path!r} ({type(error).__name__}); valid: folder, none, or a CSV'
    ) from error
  if not set(COLUMNS) <= set(columns):
    raise UserError(
      f'the first line of {path} is {",".join(columns)!r:.80}; it must name the columns '
      f'{",".join(COLUMNS)}'
    )
  word = {}
  for row in filter(lambda row: row['file'], rows):  # spreadsheets leave empty ones
    name, label = os.path.normpath(row['file']), (row['label'] or '').strip()
    if word.setdefault(name, label) != label:
      raise UserError(f'{path} has two labels for {name}: {word[name]!r} and {label!r}; keep one')
  out = [
    [word.get(os.path.join(part, name), '') for name in names] for part, names in zip(parts, found)
  ]
  for part, words, names in zip(parts, out, found):
    if '' in words:
      name = os.path.join(part, names[words.index('')])
      raise UserError(f'{path} has no label for {name}; add a row for it, or remove the image')
  return out


def _classes(words: list[list[str]]) -> tuple[str, ...]:
  """The classes in order, by number where all are numbers. A single one is as good as none."""
  every = set().union(*words)
  if len(every) < 2:
    return ()
  return tuple(sorted(every, key=int if all(word.isdecimal() for word in every) else None))


def held_out(count: int, share: float) -> np.ndarray:
  """Which images are held out: the same ones in every run."""
  out = np.zeros(count, bool)
  out[np.random.RandomState(0).permutation(count)[: round(share * count)]] = True
  return out


def _images(items: Sequence[tuple[str, int]], spec: specs.Data) -> tuple[Any, np.ndarray]:
  """(uint8 images [N, H, W, C], their classes)."""
  paths = [path for path, _ in items]

  def one(number):
    try:
      return decode(paths[number], spec.size, MODES[spec.colour or 'rgb'])
    except DAMAGED as error:
      raise UserError(
        f'cannot read image {paths[number]} ({type(error).__name__}); repair or remove it, or set '
        f'data.skip_unreadable=True'
      ) from error

  def fits(number):
    try:
      one(number)
    except UserError:
      return False
    return True

  if spec.skip_unreadable:
    good = list(streams.mapped(fits, len(paths), 'checking'))
    if not all(good):
      print(
        f'skipped {good.count(False)} unreadable images, the first is {paths[good.index(False)]}'
      )
    items = [item for item, fine in zip(items, good) if fine]
    paths = [path for path, _ in items]
  labels = np.array([label for _, label in items], np.int32)
  if not paths:
    return np.zeros((0, 1, 1, 1), np.uint8), labels
  images = streams.Stream(one, lambda number: paths[number], len(paths))
  return (images if spec.stream else images.read('reading')), labels


def decode(path: str, size: int, mode: str) -> np.ndarray:
  """An image of a file, uint8 [size, size, C]; 0 leaves its size as it is.

  Args:
    mode: of Pillow: RGB, or L for grey.

  Raises:
    Exception: one of DAMAGED.
  """
  with Image.open(path) as file:
    if size:
      file.draft(mode, (size, size))  # a JPEG is decoded at the least scale that is large enough
    return fitted(upright(file), size, mode)


def fitted(image: Image.Image, size: int, mode: str) -> np.ndarray:
  """The same of an image that is open; without a mode it stays grey or in colour."""
  if image.mode.startswith('I'):  # 16 bits
    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
  if image.has_transparency_data:
    white = Image.new('RGBA', image.size, 'white')
    image = Image.alpha_composite(white, image.convert('RGBA'))
  image = image.convert(mode or ('L' if image.mode in ('1', 'L') else 'RGB'))
  if size and image.size != (size, size):
    image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
  pixels = np.asarray(image)
  return pixels.reshape(*pixels.shape[:2], len(image.getbands()))


def fitted_pixels(pixels: np.ndarray, size: int, mode: str) -> np.ndarray:
  """The same of uint8 pixels [H, W, 1, 3 or 4]; as they are where nothing is asked for."""
  if not (size or mode):
    return pixels
  return fitted(Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels), size, mode)
