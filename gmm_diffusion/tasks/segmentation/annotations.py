"""What a person has clicked on the images of a folder: kept in files, click by click.

NAME.json has the clicks on NAME.jpg (or any other kind of image), and NAME.png its mask, once that
is saved. The state of an image is what is on disk, whoever looks at it: a change names the version
that it was made from, and is refused where that is not the present one.
"""

import base64
import collections
import io
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from gmm_diffusion import files
from gmm_diffusion.errors import UserError
from gmm_diffusion.tasks.segmentation import scenes
from gmm_diffusion.tasks.segmentation.networks import Network
from gmm_diffusion.tasks.segmentation.session import Session

SHOWN = 1600  # longer side of what is shown of an image, in pixels
_SESSIONS = 4  # images that stay encoded


class Stroke(NamedTuple):
  """A click, or a line that was drawn, as pixels (row, column) of the image; whether they belong to
  the object."""

  pixels: tuple[tuple[int, int], ...]
  positive: bool


class Record(NamedTuple):
  """What is known of an image.

  Attributes:
    strokes: in order.
    cleared: those before the last reset, which an undo brings back.
    saved: whether the mask on disk is that of the strokes.
  """

  strokes: tuple[Stroke, ...] = ()
  cleared: tuple[Stroke, ...] = ()
  saved: bool = False

  @property
  def version(self) -> str:
    """A name for this content."""
    return files.fingerprint(*self)


class Stale(Exception):
  """A change was made from another version than the present one."""


def added(record: Record, stroke: Stroke) -> Record:
  return Record((*record.strokes, stroke), record.cleared)


def undone(record: Record) -> Record:
  """Without the last stroke; where there is none, with those before the last reset."""
  if record.strokes:
    return Record(record.strokes[:-1], record.cleared)
  return Record(record.cleared) if record.cleared else record


def cleared(record: Record) -> Record:
  return Record((), record.strokes or record.cleared)


def _strokes(value: Any) -> tuple[Stroke, ...]:
  """From JSON; raises TypeError, KeyError or ValueError where it is not that."""
  return tuple(stroke(one['pixels'], one['positive']) for one in value)


def stroke(pixels: Any, positive: Any) -> Stroke:
  """A stroke of plain values.

  Raises:
    UserError: they are not 1 to 10,000 pairs of whole numbers, and true or false.
  """
  whole = lambda number: type(number) is int and abs(number) < 1 << 31
  pairs = isinstance(pixels, list | tuple) and all(
    isinstance(pixel, list | tuple) and len(pixel) == 2 and all(map(whole, pixel))
    for pixel in pixels
  )
  if not pairs or not 1 <= len(pixels) <= 10_000 or not isinstance(positive, bool):
    raise UserError(
      'a stroke is 1 to 10000 pixels [row, column] of whole numbers, and positive, which is true '
      'or false'
    )
  return Stroke(tuple((row, column) for row, column in pixels), positive)


def read(path: str, shape: tuple[int, int] | None = None) -> Record:
  """The clicks in a file of this program; none where it is absent.

  Args:
    path: NAME.json.
    shape: of the image, (height, width), where that is known.

  Raises:
    UserError: it holds something else, or clicks on an image of another size.
  """
  found: Any = files.read_json(path, {})
  if not found:
    return Record()
  try:
    record = Record(_strokes(found['strokes']), _strokes(found['cleared']), bool(found['saved']))
    size = found['height'], found['width']
  except (TypeError, KeyError, ValueError) as error:
    raise UserError(
      f'{path} does not hold what this program writes there; remove the file to start it anew'
    ) from error
  if shape is not None and shape != size:
    raise UserError(
      f'the clicks in {path} are on an image of {size[1]} x {size[0]} pixels, and it has '
      f'{shape[1]} x {shape[0]} now; put the image back, or remove that file'
    )
  return record


def write_mask(path: str, mask: np.ndarray) -> None:
  """bool [H, W] -> a PNG of 0 and 255; raises UserError where it cannot be written."""
  files.write(path, lambda name: Image.fromarray(mask.astype(np.uint8) * 255).save(name))


def _reduced(shape):
  """Size (width, height) at which an image is shown."""
  factor = min(1.0, SHOWN / max(shape))
  return tuple(max(1, round(side * factor)) for side in reversed(shape))


def _shown_mask(mask: np.ndarray) -> str:
  """bool [H, W] -> a small PNG that is transparent outside of the mask, as a data URL."""
  image = Image.fromarray(mask.astype(np.uint8))
  image = image.resize(_reduced(mask.shape), Image.Resampling.NEAREST)
  image.putpalette([0, 0, 0, 255, 255, 255])
  out = io.BytesIO()
  image.save(out, 'PNG', bits=1, transparency=0)
  return 'data:image/png;base64,' + base64.b64encode(out.getvalue()).decode()


class Annotations:
  """The images of a folder with their clicks and masks. Every method may be called by any number of
  threads: an image is worked on by one at a time, and different images at once.

  Attributes:
    names: of the images.
    folder: where clicks and masks are kept; one Annotations at a time may have it.
    stamp: another number after every change.
  """

  def __init__(self, images: str, folder: str, network: Network):
    """Raises UserError where `images` holds no image, or two of one name."""
    found = scenes.listing(images)
    if not found:
      raise UserError(f'no images in data.images {images!r}; give a folder of image files')
    self.names, self.folder, self.stamp = tuple(found), folder, time.time_ns()
    self._paths, self._network = list(found.values()), network
    self._root = os.path.realpath(os.path.expanduser(images))
    self._locks = [threading.Lock() for _ in self.names]
    self._records: list[Record | UserError] = [self._read(number) for number in range(len(found))]
    masks = scenes.listing(folder, ('.png',))
    self._masks = [name in masks for name in self.names]
    self._sessions: collections.OrderedDict[int, Session] = collections.OrderedDict()
    self._sessions_lock = threading.Lock()

  def _path(self, number, extension):
    return os.path.join(self.folder, self.names[number] + extension)

  def _read(self, number):
    try:
      return read(self._path(number, '.json'))
    except UserError as error:
      return error

  def _record(self, number) -> Record:
    record = self._records[number]
    if isinstance(record, UserError):
      raise record
    return record

  def _image(self, number) -> np.ndarray:
    path = self._paths[number]
    if os.path.commonpath([self._root, os.path.realpath(path)]) != self._root:
      raise UserError(
        f'{os.path.basename(path)} is a link that leads out of {self._root}; put the image itself '
        f'there'
      )
    return scenes.open_image(path)

  def _session(self, number) -> Session:
    """Encodes the image where that was not done lately."""
    with self._sessions_lock:
      if number in self._sessions:
        self._sessions.move_to_end(number)
        return self._sessions[number]
    record, image = self._record(number), self._image(number)
    read(self._path(number, '.json'), image.shape[:2])  # its size
    session = self._network.session(image)
    session.click(0, 0, True)  # compiles what answers a click, before a person waits for it
    session.replay(record.strokes)
    with self._sessions_lock:
      self._sessions[number] = session
      while len(self._sessions) > _SESSIONS:
        self._sessions.popitem(last=False)
    return session

  def summary(self) -> list[dict[str, Any]]:
    """Name, version, and what there is of each image: '', 'clicks', 'changed' since it was saved,
    'mask', or 'error'."""
    out = []
    for name, record, mask in zip(self.names, self._records, self._masks):
      if isinstance(record, UserError):
        out.append({'name': name, 'version': '', 'state': 'error'})
        continue
      clicks = 'changed' if mask and record.strokes else 'clicks' if record.strokes else ''
      state = 'mask' if mask and (record.saved or not record.strokes) else clicks
      out.append({'name': name, 'version': record.version, 'state': state})
    return out

  def preview(self, number: int) -> bytes:
    """A JPEG of the image, at most SHOWN pixels wide and high."""
    image = Image.fromarray(self._image(number))
    image = image.resize(_reduced((image.height, image.width)), Image.Resampling.BILINEAR)
    out = io.BytesIO()
    image.save(out, 'JPEG', quality=93)
    return out.getvalue()

  def state(self, number: int) -> dict[str, Any]:
    """Everything that the page shows of an image, in plain values.

    Raises:
      UserError: the image, or the file of its clicks, cannot be read.
    """
    with self._locks[number]:
      return self._state(number, self._session(number))

  def _state(self, number, session):
    record, (height, width) = self._record(number), session.mask.shape
    return {
      'name': self.names[number],
      'file': os.path.basename(self._paths[number]),
      'width': width,
      'height': height,
      'version': record.version,
      'strokes': [one._asdict() for one in record.strokes],
      'cleared': bool(record.cleared),
      'saved': record.saved,
      'clicks': len(session.clicks),
      'slots': self._network.slots,
      'note': session.note,
      'empty': not session.mask.any(),
      'mask': _shown_mask(session.mask),
    }

  def change(self, number: int, version: str, change: Callable[[Record], Record]) -> dict[str, Any]:
    """Replaces the record, on disk before anything else is told, and returns the new state.

    Args:
      number: of the image.
      version: of the record that the change is made from.
      change: such as `undone`.

    Raises:
      Stale: the present version is another one.
      UserError: a click is not in the image, there are too many, or they cannot be written; then
        nothing has changed.
    """
    with self._locks[number]:
      session, record = self._session(number), self._record(number)
      if version != record.version:
        raise Stale
      new = change(record)
      if new != record:
        session.replay(new.strokes)
        try:
          self._keep(number, new, session)
        except UserError:
          session.replay(record.strokes)
          raise
      return self._state(number, session)

  def save(self, number: int, version: str) -> dict[str, Any]:
    """Writes the mask, at the size of the image, and returns the state; arguments and errors as of
    `change`, and a UserError where the mask is empty."""
    with self._locks[number]:
      session, record = self._session(number), self._record(number)
      if version != record.version:
        raise Stale
      if not session.mask.any():
        raise UserError('the mask is empty; click on the object first')
      write_mask(self._path(number, '.png'), session.mask)
      self._masks[number] = True
      self._keep(number, record._replace(saved=True), session)
      return self._state(number, session)

  def _keep(self, number, record, session):
    height, width = session.mask.shape
    content = {
      'image': os.path.basename(self._paths[number]),
      'width': width,
      'height': height,
      'strokes': [one._asdict() for one in record.strokes],
      'cleared': [one._asdict() for one in record.cleared],
      'saved': record.saved,
    }
    files.write_json(self._path(number, '.json'), content)
    self._records[number], self.stamp = record, time.time_ns()


def clicks_of(clicks: Any, shape: tuple[int, int]) -> Sequence[Stroke]:
  """Strokes of a file NAME.json, or of clicks (row, column, positive)."""
  if isinstance(clicks, (str, os.PathLike)):
    path = os.path.expanduser(os.fspath(clicks))
    if not os.path.exists(path):
      raise UserError(f'there is no {path}; give the NAME.json of an image, or a list of clicks')
    return read(path, shape).strokes
  try:
    return [Stroke(((row, column),), bool(positive)) for row, column, positive in clicks]
  except (TypeError, ValueError) as error:
    raise UserError(
      f'clicks must be (row, column, whether it is the object), or the path of a NAME.json, got '
      f'{clicks!r:.80}'
    ) from error
