"""Named tensors of weights in files, read one at a time: .safetensors, and PyTorch's .pt, .pth,
.ckpt and .bin.

PyTorch is not needed, and nothing in a file is run (torch_files.py). A damaged or hostile file ends
in one UserError, within seconds and without more memory than a few hundred MB and a small multiple
of its size.
"""

import contextlib
import math
import os
import stat
import sys
import zlib
from collections.abc import Iterator

import ml_dtypes
import numpy as np

from gmm_diffusion.checkpoints import places, torch_files
from gmm_diffusion.checkpoints.places import BROKEN, Bad, Bytes, Place
from gmm_diffusion.errors import UserError

INDEX = '.index.json'
_BLOCK = 2**22
_SAFE = {
  'F64': 'f8',
  'F32': 'f4',
  'F16': 'f2',
  'BF16': ml_dtypes.bfloat16,
  'I64': 'i8',
  'I32': 'i4',
  'I16': 'i2',
  'I8': 'i1',
  'U64': 'u8',
  'U32': 'u4',
  'U16': 'u2',
  'U8': 'u1',
  'BOOL': '?',
}


class TensorFile:
  """Tensors of one or more open files; a context manager that closes them.

  Attributes:
    shapes: of every tensor by its dotted name; known without reading any tensor.
    dtypes: their NumPy names, 'float32', 'bfloat16', ...
  """

  def __init__(self, path: str, found: dict[str, Place], files: contextlib.ExitStack):
    self.shapes = {name: place.shape for name, place in found.items()}
    self.dtypes = {name: place.dtype.name for name, place in found.items()}
    self._path, self._places, self._files = path, found, files
    self._checked = set()

  def read(self, name: str) -> np.ndarray:
    """A tensor in memory of its own: [*shapes[name]] of dtypes[name], C-contiguous.

    Raises UserError for an unknown name, if the bytes have another checksum than the file tells
    (zip files of PyTorch tell one), and if the file has changed since it was opened.
    """
    if name not in self._places:
      raise UserError(f'no tensor {name!r} in {self._path}; it has {places.few(self._places)}')
    file, start, dtype, shape, strides, swap, storage = self._places[name]
    self._check(name, file, storage)
    # Read, not mapped: mapped pages would stay in memory beside the copies made of them.
    raw = np.empty(places.span(shape, strides) * dtype.itemsize, np.uint8)
    file.seek(start)
    if file.readinto(raw) != raw.nbytes:  # type: ignore[attr-defined]
      raise UserError(
        f'cannot read {name!r} of {self._path}: the file was cut while open; copy or download it '
        f'again'
      )
    if swap and dtype.itemsize > 1:
      raw.view(f'u{dtype.itemsize}').byteswap(inplace=True)
    elements = np.ndarray(
      shape, dtype, raw, strides=[dtype.itemsize * stride for stride in strides]
    )
    # ascontiguousarray gives 0-d arrays an axis
    return np.ascontiguousarray(elements).reshape(shape)

  def _check(self, name, file, storage):
    """Compares the checksum of a storage, once."""
    if storage.crc is None or (file, storage) in self._checked:
      return
    crc, left = 0, storage.end - storage.start
    file.seek(storage.start)
    while left and (block := file.read(min(_BLOCK, left))):
      crc, left = zlib.crc32(block, crc), left - len(block)
    if crc != storage.crc:
      raise UserError(
        f'{self._path} is damaged: the bytes of {name!r:.80} differ from their checksum; copy or '
        f'download it again'
      )
    self._checked.add((file, storage))

  def close(self) -> None:
    self._files.close()

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self.close()


def open_tensors(path: str) -> TensorFile:
  """Opens a file of tensors, or the .index.json of one in several shards. Reads names and shapes
  only.

  Of a training checkpoint, the tensors of its 'state_dict' or 'ema'; else those at the top level.

  Raises:
    UserError: if there is no such file, or it is truncated, of an unknown kind, without tensors, or
      a pickle that refers to anything but tensors.
  """
  path = os.fspath(path)
  with contextlib.ExitStack() as files:
    found = _shards(path, files) if path.endswith(INDEX) else _open(path, files)
    return TensorFile(path, found, files.pop_all())


@contextlib.contextmanager
def _errors_of(path: str) -> Iterator[None]:
  """Turns what a bad file can raise into a UserError."""
  try:
    yield
  except UserError:
    raise
  except Bad as error:
    raise UserError(f'{path} {error}') from error
  except OSError as error:
    raise UserError(
      f'cannot read {path}: {error.strerror or error}; give a file of weights'
    ) from error
  except Exception as error:  # pylint: disable=broad-except; a broken pickle can fail in any way
    raise UserError(f'{path} {BROKEN} ({type(error).__name__})') from error


def _regular(path, files):
  """Opens a file, which `files` closes; a pipe would let its reader wait for ever."""
  mode = os.stat(path).st_mode
  if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
    raise Bad('is a device or a pipe; give a file of weights')
  return files.enter_context(open(path, 'rb'))


def _shards(path, files):
  """Places of the tensors that an index spreads over several files of its folder."""
  with _errors_of(path):
    file = _regular(path, files)
    places.check_length(places.size_of(file))
    index = dict(places.parse_json(file.read())['weight_map'])
    if not index:
      raise Bad('names no shards; copy or download it again')
    for shard in index.values():
      one_line = shard.isprintable() and len(shard) <= 255
      if os.path.basename(shard) != shard or shard.endswith(INDEX) or not one_line:
        raise Bad(
          f'names the shard {shard!r:.80}; shards must be files of weights in the folder of the '
          f'index'
        )
  shards = {
    shard: _open(os.path.join(os.path.dirname(path), shard), files)
    for shard in sorted(set(index.values()))
  }
  for name, shard in index.items():
    if name not in shards[shard]:
      raise UserError(
        f'{path} places {name!r:.80} in {shard:.80}, which does not have it; download both again'
      )
  return {name: shards[shard][name] for name, shard in index.items()}


def _open(path, files):
  """Places of the tensors of one file, which `files` closes."""
  with _errors_of(path):
    extension = os.path.splitext(path)[1].lower()
    file = _regular(path, files)
    if extension not in (*torch_files.EXTENSIONS, '.safetensors'):
      raise Bad(
        f'has the unknown extension {extension!r:.20}; valid: .safetensors, '
        f'{", ".join(torch_files.EXTENSIONS)}, {INDEX}'
      )
    head = file.read(8)
    file.seek(0)
    if not head:
      raise Bad('is empty; copy or download it again')
    if head == b'version ':
      raise Bad("is a pointer of Git LFS and not the weights; fetch them with 'git lfs pull'")
    return _safetensors(file) if extension == '.safetensors' else torch_files.locate(file)


def _safetensors(file):
  """Eight bytes with the length of the header, a header in JSON, and the tensors without gaps."""
  length = int.from_bytes(file.read(8), 'little')
  if 8 + length > places.size_of(file):
    raise Bad(BROKEN)
  places.check_length(length)
  header = places.parse_json(file.read(length))
  found = {}
  for name, about in header.items():
    if name != '__metadata__':
      found[name] = _safe_place(file, 8 + length, name, about)
  end = 8 + length
  for place in sorted((place.storage for place in found.values()), key=lambda s: (s.start, s.end)):
    if place.start != end:
      raise Bad('has tensors that overlap, or gaps; it is damaged: copy or download it again')
    end = place.end
  return found or places.no_tensors(header)


def _safe_place(file, start, name, about):
  """The place of one tensor; `start` is where those of the file begin."""
  if about['dtype'] not in _SAFE:
    raise Bad(
      f'has {name!r:.80} of dtype {about["dtype"]!r:.20}; valid: {", ".join(_SAFE)}; convert it'
    )
  dtype, shape, (begin, end) = (
    np.dtype(_SAFE[about['dtype']]),
    about['shape'],
    about['data_offsets'],
  )
  if type(begin) is not int or type(end) is not int or begin < 0:
    raise Bad(f'has no room for {name!r:.80}: it is damaged; copy or download it again')
  storage = Bytes(start + begin, start + end)
  place = places.place(file, name, dtype, shape, None, 0, storage, sys.byteorder == 'big')
  if end - begin != math.prod(place.shape) * dtype.itemsize:
    raise Bad(
      f'has {name!r:.80} of shape {place.shape} in {end - begin} bytes; it is damaged: copy or '
      f'download it again'
    )
  return place
