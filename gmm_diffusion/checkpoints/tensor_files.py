"""Named tensors of released weights, read one at a time: .safetensors, and PyTorch's .pt, .pth,
.ckpt and .bin.

PyTorch is not needed, and nothing in a file is run. A PyTorch file is a pickle, that is a program
which may call any function. Here it finds only what tensors are made of, as plain records; what a
training run leaves beside its weights becomes an inert `_Ignored`; every other name is refused.

All formats come down to a `_Place`: where in the file the elements of a tensor are.
"""

import contextlib
import io
import json
import math
import os
import pickle
import re
import sys
import zipfile
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from gmm_diffusion.errors import UserError

PICKLED = ('.pt', '.pth', '.ckpt', '.bin')
INDEX = '.index.json'
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of files older than PyTorch 1.6
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_SAFE = {
  'F64': 'f8',
  'F32': 'f4',
  'F16': 'f2',
  'BF16': _BFLOAT16,
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
_TORCH = {
  'Double': 'f8',
  'Float': 'f4',
  'Half': 'f2',
  'BFloat16': _BFLOAT16,
  'Long': 'i8',
  'Int': 'i4',
  'Short': 'i2',
  'Char': 'i1',
  'Byte': 'u1',
  'Bool': '?',
  'Untyped': 'u1',
}
_BROKEN = 'is truncated or not a checkpoint; copy or download it again'
# What .ckpt files of training runs hold beside the weights. Never looked up, so a name here costs
# nothing.
_LEFTOVERS = re.compile(
  r'(pytorch_lightning|lightning|lightning_fabric|omegaconf|typing|pathlib|torch\.optim)\.[\w.]+|argparse\.Namespace'
  r'|numpy\.(_?core\.multiarray\.(scalar|_reconstruct)|dtype|ndarray)|_codecs\.encode|collections\.defaultdict'
  r'|(builtins|__builtin__)\.(dict|list|tuple|str|int|float|bool)'
  r'|torch\.(device|bool|bfloat16|(float|u?int|complex)\d+)|torch\.storage\.TypedStorage'
)
_OTHER_TENSORS = re.compile(r'torch\.(_utils|_tensor)\._rebuild_\w+|torch\.\w+Storage')


class _Bad(Exception):
  """What is wrong with a file, to be said after its name."""


class _Place(NamedTuple):
  """Elements of a tensor: of `file`, from byte `start` on, `strides` elements apart."""

  file: BinaryIO
  start: int
  dtype: np.dtype
  shape: tuple[int, ...]
  strides: tuple[int, ...]
  swap: bool


class Source:
  """Tensors of one or more open files; a context manager that closes them.

  Attributes:
    shapes: of every tensor by its dotted name; known without reading any tensor.
    dtypes: their NumPy names, 'float32', 'bfloat16', ...
  """

  def __init__(self, path: str, places: dict[str, _Place], files: contextlib.ExitStack):
    self.shapes = {name: place.shape for name, place in places.items()}
    self.dtypes = {name: place.dtype.name for name, place in places.items()}
    self._path, self._places, self._files = path, places, files

  def read(self, name: str) -> np.ndarray:
    """A tensor in memory of its own: [*shapes[name]] of dtypes[name], C-contiguous.

    Raises UserError for an unknown name, and if the file has changed since it was opened.
    """
    if name not in self._places:
      raise UserError(f'no tensor {name!r} in {self._path}; it has {_few(self._places)}')
    file, start, dtype, shape, strides, swap = self._places[name]
    # Read, not mapped: mapped pages would stay in memory beside the copies made of them.
    raw = np.empty(_span(shape, strides) * dtype.itemsize, np.uint8)
    file.seek(start)
    if file.readinto(raw) != raw.nbytes:
      raise UserError(
        f'cannot read {name!r} of {self._path}: the file was cut while open; copy or download it '
        f'again'
      )
    if swap and dtype.itemsize > 1:
      raw.view(f'u{dtype.itemsize}').byteswap(inplace=True)
    elements = np.ndarray(
      shape, dtype, raw, strides=[dtype.itemsize * stride for stride in strides]
    )
    return np.ascontiguousarray(elements).reshape(
      shape
    )  # ascontiguousarray gives 0-d arrays an axis

  def close(self) -> None:
    self._files.close()

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self.close()


def open_tensors(path: str) -> Source:
  """Opens a file of tensors, or the .index.json of one in several shards. Reads names and shapes
  only.

  Of a training checkpoint, the tensors of its 'state_dict' or 'ema'; else those at the top level.

  Raises:
    UserError: if there is no such file, or it is truncated, of an unknown kind, without tensors, or
      a pickle that refers to anything but tensors.
  """
  path = os.fspath(path)
  with contextlib.ExitStack() as files:
    places = _shards(path, files) if path.endswith(INDEX) else _open(path, files)
    return Source(path, places, files.pop_all())


@contextlib.contextmanager
def _errors_of(path):
  """Turns what a bad file can raise into a UserError."""
  try:
    yield
  except UserError:
    raise
  except _Bad as error:
    raise UserError(f'{path} {error}') from error
  except OSError as error:
    raise UserError(
      f'cannot read {path}: {error.strerror or error}; give a file of weights'
    ) from error
  except Exception as error:  # pylint: disable=broad-except; a broken pickle can fail in any way
    raise UserError(f'{path} {_BROKEN} ({type(error).__name__})') from error


def _shards(path, files):
  """Places of the tensors that an index spreads over several files of its folder."""
  with _errors_of(path):
    with open(path, encoding='utf-8') as file:
      index = dict(json.load(file)['weight_map'])
    if not index:
      raise _Bad('names no shards; copy or download it again')
    for shard in index.values():
      if os.path.basename(shard) != shard or shard.endswith(INDEX):
        raise _Bad(
          f'names the shard {shard!r}; shards must be files of weights in the folder of the index'
        )
  shards = {
    shard: _open(os.path.join(os.path.dirname(path), shard), files)
    for shard in sorted(set(index.values()))
  }
  for name, shard in index.items():
    if name not in shards[shard]:
      raise UserError(
        f'{path} places {name!r} in {shard}, which does not have it; download both again'
      )
  return {name: shards[shard][name] for name, shard in index.items()}


def _open(path, files):
  """Places of the tensors of one file, which `files` closes."""
  with _errors_of(path):
    extension = os.path.splitext(path)[1].lower()
    file = files.enter_context(open(path, 'rb'))
    if extension not in (*PICKLED, '.safetensors'):
      raise _Bad(
        f'has the unknown extension {extension!r}; valid: .safetensors, {", ".join(PICKLED)}, '
        f'{INDEX}'
      )
    head = file.read(8)
    file.seek(0)
    if not head:
      raise _Bad('is empty; copy or download it again')
    if head == b'version ':
      raise _Bad("is a pointer of Git LFS and not the weights; fetch them with 'git lfs pull'")
    if extension == '.safetensors':
      return _safetensors(file)
    if head.startswith(b'PK\3\4'):
      return _zip(file)
    if head.startswith(pickle.PROTO):
      return _legacy(file)
    raise _Bad(f'starts with {head!r}, not as a file of PyTorch; copy or download it again')


def _few(names):
  return ', '.join(f'{name!r:.60}' for name in list(names)[:5]) + (
    ', ...' if len(names) > 5 else ''
  )


def _size(file):
  return os.fstat(file.fileno()).st_size


def _span(shape, strides):
  """Number of elements from the first to the last of a tensor, both included."""
  return 0 if 0 in shape else 1 + sum((n - 1) * stride for n, stride in zip(shape, strides))


def _contiguous(shape):
  return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _place(file, name, dtype, shape, strides, offset, start, end, swap):
  """The place of a tensor `offset` bytes into the bytes [start, end) of the file, if it is within
  them, and they in the file."""
  size = _size(file)
  # By strides of zero a small file could fill the memory, and NumPy has limits of its own: hence
  # the last line.
  if (
    not all(type(n) is int and n >= 0 for n in (*shape, *strides, offset))
    or len(shape) != len(strides)
    or end > size
    or offset + _span(shape, strides) * dtype.itemsize > end - start
    or math.prod(n or 1 for n in shape) * dtype.itemsize > size
    or len(shape) > 32
    or max(strides, default=0) > size
  ):
    raise _Bad(
      f'has no room for {name!r:.80} of shape {shape!s:.60}: it is truncated or damaged; copy or '
      f'download it again'
    )
  return _Place(file, start + offset, dtype, shape, strides, swap)


def _safetensors(file):
  """Eight bytes with the length of the header, a header in JSON, and the tensors without gaps."""
  start = 8 + int.from_bytes(file.read(8), 'little')
  if start > _size(file):
    raise _Bad(_BROKEN)
  header = json.loads(file.read(start - 8))
  places = {}
  for name, about in header.items():
    if name == '__metadata__':
      continue
    if about['dtype'] not in _SAFE:
      raise _Bad(
        f'has {name!r:.80} of dtype {about["dtype"]!r:.20}; valid: {", ".join(_SAFE)}; convert it'
      )
    dtype, shape, (begin, end) = (
      np.dtype(_SAFE[about['dtype']]),
      tuple(about['shape']),
      about['data_offsets'],
    )
    places[name] = _place(
      file,
      name,
      dtype,
      shape,
      _contiguous(shape),
      begin,
      start,
      start + end,
      sys.byteorder == 'big',
    )
    if end - begin != math.prod(shape) * dtype.itemsize:
      raise _Bad(
        f'has {name!r:.80} of shape {shape} in {end - begin} bytes; it is damaged: copy or '
        f'download it again'
      )
  return places or _no_tensors(header)


class _Ignored:
  """Anything in a pickle that is no tensor: takes what it is given and does nothing."""

  def __new__(cls, *args, **kwargs):
    del args, kwargs
    return super().__new__(cls)

  def append(self, *args):
    pass

  extend = add = __setitem__ = append


class _Storage(NamedTuple):
  """An array in the file, known by its key: `count` elements."""

  key: str
  dtype: np.dtype
  count: int


class _Tensor(NamedTuple):
  """A view of a storage; offset and strides in elements."""

  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


def _rebuild_tensor(storage, offset, shape, strides, *rest):
  del rest  # whether it is trained, and hooks
  if not isinstance(storage, _Storage):
    raise _Bad(_BROKEN)
  return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(tensor, *rest):
  del rest
  return tensor


_FOUND = {
  'collections.OrderedDict': dict,
  'torch.Size': tuple,
  'torch._utils._rebuild_tensor': _rebuild_tensor,
  'torch._utils._rebuild_tensor_v2': _rebuild_tensor,
  'torch._utils._rebuild_parameter': _rebuild_parameter,
  'torch.storage.UntypedStorage': np.dtype('u1'),
  **{f'torch.{name}Storage': np.dtype(dtype) for name, dtype in _TORCH.items()},
}


class _Unpickler(pickle._Unpickler):  # pylint: disable=protected-access
  """Unpickles records of tensors, and runs nothing.

  The one in Python, as its memo is a dict: a file makes that of the one in C as large as it likes.
  """

  dispatch = dict(pickle._Unpickler.dispatch)  # pylint: disable=protected-access

  def __init__(self, file):
    super().__init__(file, encoding='latin1')
    self.storages = {}

  def find_class(self, module, name):
    full = f'{module}.{name}'
    if full in _FOUND:
      return _FOUND[full]
    if _LEFTOVERS.fullmatch(full):
      return _Ignored
    if _OTHER_TENSORS.fullmatch(full):
      raise _Bad(
        f'holds {full}; only dense tensors of {", ".join(_TORCH)} are read: convert them with '
        f'PyTorch'
      )
    raise _Bad(
      f'refers to {ascii(full[:80])[1:-1]}, which is code and not tensors; refused: use a file '
      f'that has only weights, such as .safetensors'
    )

  def persistent_load(self, pid):
    if not (
      isinstance(pid, tuple)
      and len(pid) in (5, 6)
      and pid[0] == 'storage'
      and isinstance(pid[1], np.dtype)
      and type(pid[2]) is str
      and type(pid[4]) is int
      and pid[4] >= 0
      and pid[5:] in ((), (None,))
    ):
      raise _Bad(f'{_BROKEN} (storage {pid!r:.60})')
    storage = _Storage(pid[2], pid[1], pid[4])
    if self.storages.setdefault(storage.key, storage) != storage:
      raise _Bad(f'{_BROKEN} (storage {pid!r:.60})')
    return storage

  def _skip_state(self):
    self.stack.pop()

  # Setting the state of an object would set any attribute of anything; no tensor needs it.
  dispatch[pickle.BUILD[0]] = _skip_state
  # Short numbers for names in a registry of this process, not of the file.
  for _code in (pickle.EXT1, pickle.EXT2, pickle.EXT4):
    del dispatch[_code[0]]


def _zip(file):
  """Since PyTorch 1.6: NAME/data.pkl, and a storage in each NAME/data/KEY."""
  with zipfile.ZipFile(file) as archive:
    entries = {entry.filename: entry for entry in archive.infolist()}
  folders = [
    name.removesuffix('data.pkl') for name in entries if re.fullmatch('[^/]+/data.pkl', name)
  ]
  if len(folders) != 1:
    raise _Bad('is a zip without NAME/data.pkl, not a file of PyTorch; give a file of weights')

  def find(name):
    """The bytes [start, end) of an entry."""
    entry = entries.get(folders[0] + name)
    if entry is None or entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
      raise _Bad(f'{_BROKEN} ({name!r:.40} is missing or compressed)')
    file.seek(entry.header_offset)
    header = file.read(30)
    start = (
      entry.header_offset
      + 30
      + int.from_bytes(header[26:28], 'little')
      + int.from_bytes(header[28:30], 'little')
    )
    if start + entry.file_size > _size(file):
      raise _Bad(_BROKEN)
    return start, start + entry.file_size

  def content(name):
    start, end = find(name)
    file.seek(start)
    return file.read(end - start)

  unpickler = _Unpickler(io.BytesIO(content('data.pkl')))
  tree = unpickler.load()
  order = content('byteorder').decode() if folders[0] + 'byteorder' in entries else 'little'
  if order not in ('little', 'big'):
    raise _Bad(_BROKEN)
  return _places(
    file, tree, {key: find('data/' + key) for key in unpickler.storages}, order != sys.byteorder
  )


def _legacy(file):
  """Before PyTorch 1.6: five pickles, the fifth with the keys of the storages, which follow."""
  if _Unpickler(file).load() != _MAGIC or _Unpickler(file).load() != _PROTOCOL:
    raise _Bad('is a pickle, but not a file of PyTorch; give a file of weights')
  _Unpickler(
    file
  ).load()  # about the machine it was written on; the bytes are little-endian whatever it says
  unpickler = _Unpickler(file)
  tree, keys = unpickler.load(), _Unpickler(file).load()
  ranges = {}
  for key in keys:
    storage, count = unpickler.storages[key], int.from_bytes(file.read(8), 'little')
    ranges[key] = file.tell(), file.tell() + count * storage.dtype.itemsize
    file.seek(ranges[key][1])
  return _places(file, tree, ranges, sys.byteorder == 'big')


def _places(file, tree: Any, ranges: dict[str, tuple[int, int]], swap: bool) -> dict[str, _Place]:
  """Where the tensors of a pickled dict are, given the bytes [start, end) of each storage."""
  top = tree
  for key in ('ema', 'state_dict'):  # of a training run
    inner = tree.get(key) if isinstance(tree, dict) else None
    if isinstance(inner, dict) and any(isinstance(value, _Tensor) for value in inner.values()):
      top = inner
  places = {}
  for name, value in top.items() if isinstance(top, dict) else ():
    if isinstance(value, _Tensor) and isinstance(name, str):
      (key, dtype, count), (start, end) = value.storage, ranges[value.storage.key]
      if count * dtype.itemsize > end - start:
        raise _Bad(
          f'has {end - start} bytes where {count} of {dtype} should be: it is damaged; copy or '
          f'download it again'
        )
      places[name] = _place(
        file,
        name,
        dtype,
        value.shape,
        value.strides,
        value.offset * dtype.itemsize,
        start,
        start + count * dtype.itemsize,
        swap,
      )
  return places or _no_tensors(top)


def _no_tensors(top):
  raise _Bad(
    f'has no tensors by name; it has {_few(top) if isinstance(top, dict) else type(top).__name__}:'
    ' save the state_dict of the network'
  )
