"""Images with objects to segment: composed digit scenes, BSDS500, or a folder of images and
masks."""

import os
import struct
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from gmm_diffusion import specs
from gmm_diffusion.data import sources
from gmm_diffusion.errors import UserError

BACKGROUND, OBJECT, IGNORE = 0, 1, 2
LEAST, MOST = 0.03, 0.6  # an object's share of its image
MASK_VALUES = (0, 128, 255)  # background, ignored, object
EXTENSIONS = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp')
# of label maps and of images, by their number of axes
_FILTER = {2: Image.Resampling.NEAREST, 3: Image.Resampling.BILINEAR}
MODES = ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'RGBX', 'CMYK', 'YCbCr')  # of 8 bits


class Scene(NamedTuple):
  """image uint8 [H, W, 3]; maps uint8 or uint16 [A, H, W], one per annotator; objects [(map,
  label)]; what is not an object is background."""

  name: str
  image: np.ndarray
  maps: np.ndarray
  objects: tuple[tuple[int, int], ...]
  ignore: int = -1

  def mask(self, number: int) -> np.ndarray:
    """BACKGROUND, OBJECT or IGNORE, uint8 [H, W]."""
    which, label = self.objects[number]
    return np.where(self.maps[which] == self.ignore, IGNORE, self.maps[which] == label).astype(
      np.uint8
    )


class Scenes(NamedTuple):
  """What to train on, to choose settings by, and to report."""

  train: Sequence[Scene] = ()
  val: Sequence[Scene] = ()
  test: Sequence[Scene] = ()


def rgb(image: np.ndarray) -> np.ndarray:
  """uint8 [H, W, 3] of any grey, RGB or RGBA image, uint8 or float in [0, 1]; alpha is dropped.

  Raises:
    UserError: on another shape, type or range.
  """
  image = np.asarray(image)
  if image.ndim == 2:
    image = image[..., None]
  if image.ndim != 3 or image.shape[-1] not in (1, 3, 4) or not image.size:
    raise UserError(
      f'an image of shape {image.shape} cannot be segmented; valid: [H, W], [H, W, 1], [H, W, 3] '
      f'or [H, W, 4]'
    )
  if image.dtype.kind == 'f':
    if not np.isfinite(image).all():
      raise UserError(
        f'the image has {int((~np.isfinite(image)).sum())} pixels that are not finite; replace '
        f'them first'
      )
    if image.min() < 0 or image.max() > 1:
      raise UserError(f'a float image must be in [0, 1], got {image.min():g} to {image.max():g}')
    image = np.round(image * 255).astype(np.uint8)
  elif image.dtype != np.uint8:
    raise UserError(f'an image must be uint8, or float in [0, 1], got {image.dtype}')
  return np.ascontiguousarray(
    np.broadcast_to(image, image.shape[:2] + (3,)) if image.shape[-1] == 1 else image[..., :3]
  )


def resize(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
  """uint8 [H, W] or [H, W, 3]; images are filtered, masks keep their values."""
  if image.shape[:2] == shape:
    return image
  return np.asarray(Image.fromarray(image).resize(shape[::-1], _FILTER[image.ndim]))


def _open(path: str) -> Image.Image:
  """A file with one picture, upright.

  Raises:
    UserError: if it cannot be read to its end, or has several pictures.
  """
  try:
    with Image.open(path) as image:
      if (
        getattr(image, 'n_frames', 1) > 1 and image.format != 'MPO'
      ):  # a photograph and its preview
        raise UserError(f'{path!r} has {getattr(image, "n_frames")} pictures; give a file with one')
      image.load()
      return ImageOps.exif_transpose(image)
  except UserError:
    raise
  except Exception as error:  # of a damaged file Pillow's decoders raise nearly anything
    reason = (str(error).splitlines() or [''])[0][:200]
    raise UserError(
      f'cannot read image {path!r}: {reason or type(error).__name__}; repair or remove it'
    ) from error


def open_image(path: str) -> np.ndarray:
  """A file as uint8 RGB [H, W, 3]; transparency is dropped."""
  image = _open(path)
  if image.mode not in MODES:
    raise UserError(
      f'image {path!r} is of mode {image.mode!r}, which 8 bits do not hold; valid: grey, palette '
      f'or colour images of 8 bits'
    )
  return np.asarray(image.convert('RGB'))


def open_labels(path: str) -> np.ndarray:
  """A label map as it is, uint8 or uint16 [H, W]: the numbers of a palette, not its colours."""
  image = _open(path)
  if image.mode in ('P', 'I;16'):
    return np.asarray(image)
  if image.mode not in MODES:
    raise UserError(f'label map {path!r} is of mode {image.mode!r}; valid: 8 or 16 bits, grey')
  return np.asarray(image.convert('L'))


def open_mask(path: str) -> np.ndarray:
  """A mask of one object, uint8 [H, W] of the values in MASK_VALUES, with some object in it."""
  image, valid = _open(path), '0 background, 255 object, 128 ignored'
  if image.mode not in MODES:
    raise UserError(f'mask {path!r} is of mode {image.mode!r}; valid: 8 bits with {valid}')
  if image.has_transparency_data and image.convert('RGBA').getchannel('A').getextrema() != (
    255,
    255,
  ):
    raise UserError(f'mask {path!r} is transparent in parts; save it without, with {valid}')
  mask = np.asarray(image.convert('L'))
  other = sorted(set(np.unique(mask).tolist()) - set(MASK_VALUES))
  if other:
    kind = ' (the greys of its colours)' if image.mode not in ('1', 'L', 'LA') else ''
    raise UserError(f'mask {path!r} has the values {other[:5]}{kind}; valid: {valid}')
  if not (mask == 255).any():
    raise UserError(f'mask {path!r} is empty; valid: {valid}')
  return mask


def listing(folder: str, extensions: tuple[str, ...] = EXTENSIONS) -> dict[str, str]:
  """{name without extension: path} of a folder's files, sorted by path; empty where there is none.

  Raises:
    UserError: where two files differ in their extension alone.
  """
  root, out = os.path.expanduser(folder), {}
  for file in sorted(os.listdir(root)) if os.path.isdir(root) else ():
    name, extension = os.path.splitext(file)
    if extension.lower() in extensions and not file.startswith('.'):
      if name in out:
        raise UserError(f'{root!r} holds {os.path.basename(out[name])} and {file}; keep one')
      out[name] = os.path.join(root, file)
  return out


def open_mat(path: str) -> list[np.ndarray]:
  """The label maps of all annotators, uint8 or uint16 [H, W], in a .mat of BSDS500: its
  `groundTruth` holds a structure with `Segmentation` for each of them."""
  try:
    _check_mat(path)
    from scipy import io  # slow to import, and only needed here

    entries = io.loadmat(path, variable_names=['groundTruth'])['groundTruth'].ravel()
    maps = [entry['Segmentation'][0, 0] for entry in entries]
  except Exception as error:  # of a damaged file scipy raises nearly anything
    reason = (str(error).splitlines() or [''])[0][:200]
    raise UserError(
      f'cannot read {path!r}: {type(error).__name__}: {reason}; download BSDS500 again'
    ) from error
  for labels in maps:
    if labels.ndim != 2 or labels.dtype not in (np.uint8, np.uint16):
      raise UserError(
        f'{path!r} holds a segmentation {labels.dtype} {list(labels.shape)}; valid: uint16 '
        f'[height, width]; download BSDS500 again'
      )
  return maps


def _check_mat(path):
  """Raises zlib.error where a compressed part of a .mat is not as it was written: scipy reads on
  where it should not, and may crash."""
  with open(path, 'rb') as file:
    file.seek(128)
    while len(tag := file.read(8)) == 8:
      kind, size = struct.unpack('<II', tag)
      part = file.read(size)
      if kind == 15:
        zlib.decompress(part)


def _bsds_folders(root: str, split: str) -> tuple[str, str]:
  """Where the images of a split are, and their label maps."""
  pairs = [(os.path.join(root, split, 'images'), os.path.join(root, split, 'segmentations'))]
  for top in ('', 'data', os.path.join('BSDS500', 'data')):  # as downloaded
    inside = os.path.join(root, top)
    pairs.append(
      (os.path.join(inside, 'images', split), os.path.join(inside, 'groundTruth', split))
    )
  return next((pair for pair in pairs if all(map(os.path.isdir, pair))), pairs[0])


def bsds(path: str, split: str) -> list[Scene]:
  """BSDS500 [Arbelaez et al. 2011]. As it is downloaded, images/SPLIT/ID.jpg has its label maps in
  groundTruth/SPLIT/ID.mat, and `path` is BSDS500/data or a folder above. In its other form, the
  label map of annotator K for SPLIT/images/ID.jpg is SPLIT/segmentations/ID_K.png."""
  root = os.path.expanduser(path)
  images, segmentations = _bsds_folders(root, split)
  files = {}
  for name, file in listing(segmentations, ('.png', '.mat')).items():
    files.setdefault(name.rsplit('_', 1)[0], []).append(file)
  out = []
  for name, file in listing(images, ('.jpg',)).items():
    image = open_image(file)
    maps = [
      labels
      for other in files.get(name, ())
      for labels in (open_mat(other) if other.endswith('.mat') else [open_labels(other)])
    ]
    if any(labels.shape != image.shape[:2] for labels in maps):
      raise UserError(f'a segmentation of {file} has another size than the image')
    objects = []
    for number, labels in enumerate(maps):
      share = np.bincount(labels.ravel()) / labels.size
      objects += [
        (number, int(label)) for label in np.flatnonzero((share >= LEAST) & (share <= MOST))
      ]
    if objects:
      out.append(Scene(name, image, np.stack(maps), tuple(objects)))
  if not out:
    raise UserError(
      f'no images with segmentations for {split!r} in {root}; data.path must be BSDS500 as it is '
      f'downloaded (BSDS500/data with images/{split}/ID.jpg and groundTruth/{split}/ID.mat, or a '
      f'folder above), or hold {split}/images/ID.jpg and {split}/segmentations/ID_K.png'
    )
  return out


def folder(images: str, masks: str) -> list[Scene]:
  """Every image of a folder that has a mask of the same name in the other: 0 background, 255
  object, 128 ignored."""
  found, out = listing(masks), []
  for name, path in listing(images).items():
    if name not in found:
      raise UserError(f'image {path} has no mask {name}.png in data.masks {masks!r}')
    image, mask = open_image(path), open_mask(found[name])
    if image.shape[:2] != mask.shape:
      raise UserError(
        f'image {path} is {image.shape[1]} x {image.shape[0]}, its mask {mask.shape[1]} x '
        f'{mask.shape[0]}; they must agree'
      )
    out.append(Scene(name, image, mask[None], ((0, 255),), 128))
  if not out:
    raise UserError(f'no images in data.images {images!r}; give a folder of image files')
  return out


def digit_scenes(
  digits: np.ndarray, photographs: Sequence[np.ndarray], count: int, seed: int, size: int = 96
) -> list[Scene]:
  """Digits [N, 8, 8, 1], enlarged and coloured, on pieces of photographs."""
  random, out = np.random.RandomState(seed), []
  while len(out) < count:
    photo = photographs[random.randint(len(photographs))]
    y, x = (random.randint(0, side - size + 1) for side in photo.shape[:2])
    image, labels = (
      photo[y : y + size, x : x + size].astype(np.float32),
      np.zeros((size, size), np.uint8),
    )
    for label in range(1, random.randint(2, 5)):
      side = random.randint(size // 3, 2 * size // 3)
      shape = np.asarray(
        Image.fromarray(digits[random.randint(len(digits))][..., 0]).resize(
          (side, side), Image.Resampling.BICUBIC
        )
      )
      y, x = random.randint(0, size - side + 1, 2)
      ink = shape > 100
      image[y : y + side, x : x + side][ink] = random.uniform(0, 255, 3) + random.normal(
        0, 12, (int(ink.sum()), 3)
      )
      labels[y : y + side, x : x + side][ink] = label
    share = np.bincount(labels.ravel(), minlength=5) / labels.size
    objects = tuple((0, label) for label in range(1, 5) if share[label] >= LEAST)
    if objects:
      out.append(
        Scene(f'scene {len(out)}', np.clip(image, 0, 255).astype(np.uint8), labels[None], objects)
      )
  return out


def load(spec: specs.Data, splits: Sequence[str] = Scenes._fields) -> Scenes:
  """BSDS500 where data.path is given, else digit scenes; data.images and data.masks replace the
  test set. Splits that are not asked for stay empty."""
  if bool(spec.images) != bool(spec.masks):
    raise UserError('data.images and data.masks go together: give both, or neither')
  if spec.images and spec.split != 'test':
    raise UserError(f'data.images replaces the test set; data.split must be test, got {spec.split}')
  return Scenes(**{split: _split(spec, split) for split in splits})


def _split(spec, split):
  if spec.images and split == 'test':
    return folder(spec.images, spec.masks)
  if spec.path:
    return bsds(spec.path, split)
  from sklearn import datasets  # slow to import, and only needed here

  digits, photos = sources.digits(spec), datasets.load_sample_images().images
  left, right = [photo[:, :400] for photo in photos], [photo[:, 400:] for photo in photos]
  return {
    'train': lambda: digit_scenes(digits.train, left, 400, 0),
    'val': lambda: digit_scenes(digits.test[:150], right, 60, 1),
    'test': lambda: digit_scenes(digits.test[150:], right, 100, 2),
  }[split]()


def crop(
  scene: Scene, numbers: Sequence[int], shape: tuple[int, ...], random: np.random.RandomState
) -> tuple[np.ndarray, np.ndarray]:
  """A random piece of a scene at a random scale, perhaps mirrored, with some of the first object in
  it: image [*shape, 3] and masks [len(numbers), *shape]. An object that does not show in the piece
  is replaced by the first one."""
  masks = [scene.mask(number) for number in numbers]
  height, width = masks[0].shape
  least = max(shape[0] / height, shape[1] / width)
  for _ in range(8):
    scale = np.exp(random.uniform(np.log(least), max(0.0, np.log(least))))
    size = max(shape[0], int(round(height * scale))), max(shape[1], int(round(width * scale)))
    y, x = (random.randint(0, side - s + 1) for side, s in zip(size, shape))
    cut = lambda whole: resize(whole, size)[y : y + shape[0], x : x + shape[1]]
    if _shows(cut(masks[0])):
      break
  else:  # an object at the rim: all of the image
    size, y, x = (shape[0], shape[1]), 0, 0
  image, pieces = cut(scene.image), [cut(mask) for mask in masks]
  shown = np.stack([piece if _shows(piece) else pieces[0] for piece in pieces])
  if random.rand() < 0.5:
    image, shown = image[:, ::-1], shown[:, :, ::-1]
  return image, shown


def _shows(mask):
  return (mask == OBJECT).mean() > 0.01 and (mask == BACKGROUND).any()
