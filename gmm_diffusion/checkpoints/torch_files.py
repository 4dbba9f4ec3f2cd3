"""Files of PyTorch, read without it, and without running anything in them.

Such a file is a pickle, that is a program which may call any function. Here it finds only what
tensors are made of, as plain records; what a training run leaves beside its weights becomes an
inert `_Ignored`; every other name is refused. The program is stopped after so many steps, and no
step takes more time or memory than its bytes in the file: nothing is compared, hashed, printed or
copied that a few bytes can make large.
"""

import io
import pickle
import re
import sys
import zipfile
import zlib
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from gmm_diffusion.checkpoints import places
from gmm_diffusion.checkpoints.places import BROKEN, Bad, Bytes, Place

EXTENSIONS = ('.pt', '.pth', '.ckpt', '.bin')
# Of one pickle: its bytes, and how often it may be read from. A tensor takes about 60 readings, so
# this is 30,000 tensors.
_BYTES, _STEPS = 2**26, 2_000_000
_NAME = 200  # characters of a name that is looked up
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of files older than PyTorch 1.6
_TORCH = {
  'Double': 'f8',
  'Float': 'f4',
  'Half': 'f2',
  'BFloat16': ml_dtypes.bfloat16,
  'Long': 'i8',
  'Int': 'i4',
  'Short': 'i2',
  'Char': 'i1',
  'Byte': 'u1',
  'Bool': '?',
  'Untyped': 'u1',
}
# What .ckpt files of training runs hold beside the weights. Never looked up, so a name here costs
# nothing.
_LEFTOVERS = re.compile(
  r'(pytorch_lightning|lightning|lightning_fabric|omegaconf|typing|pathlib|torch\.optim)\.[\w.]+'
  r'|argparse\.Namespace|_codecs\.encode|collections\.defaultdict'
  r'|numpy\.(_?core\.multiarray\.(scalar|_reconstruct)|dtype|ndarray)'
  r'|(builtins|__builtin__)\.(dict|list|tuple|str|int|float|bool)'
  r'|torch\.(device|bool|bfloat16|(float|u?int|complex)\d+)|torch\.storage\.TypedStorage'
)
_OTHER_TENSORS = re.compile(r'torch\.(_utils|_tensor)\._rebuild_\w+|torch\.\w+Storage')


def locate(file: BinaryIO) -> dict[str, Place]:
  """Places of the tensors of an open file of either layout; raises Bad, or anything, if it is
  damaged."""
  head = file.read(8)
  file.seek(0)
  if head.startswith(b'PK\3\4'):
    return _zip(file)
  if head.startswith(pickle.PROTO):
    return _legacy(file)
  raise Bad(f'starts with {head!r}, not as a file of PyTorch; copy or download it again')


class _Ignored:
  """Anything in a pickle that is no tensor: takes what it is given and does nothing."""

  def append(self, *args):
    pass

  extend = add = append


class _Storage(NamedTuple):
  """An array in the file, known by its key: `size` elements."""

  key: str
  dtype: np.dtype
  size: int


class _Tensor(NamedTuple):
  """A view of a storage; offset and strides in elements."""

  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


def _rebuild_tensor(storage, offset, shape, strides, *rest):
  del rest  # whether it is trained, and hooks
  if not isinstance(storage, _Storage):
    raise Bad(f'{BROKEN} (a tensor without its storage)')
  return _Tensor(storage, offset, _size(shape), _size(strides))


def _rebuild_parameter(tensor, *rest):
  del rest
  return tensor


def _size(sizes=()):
  if len(sizes) > places.DIMENSIONS:
    raise Bad(f'{BROKEN} (a tensor of {len(sizes):,} dimensions)')
  return tuple(sizes)


_FOUND = {
  'collections.OrderedDict': dict,
  'torch.Size': _size,
  'torch._utils._rebuild_tensor': _rebuild_tensor,
  'torch._utils._rebuild_tensor_v2': _rebuild_tensor,
  'torch._utils._rebuild_parameter': _rebuild_parameter,
  'torch.storage.UntypedStorage': np.dtype('u1'),
  **{f'torch.{name}Storage': np.dtype(dtype) for name, dtype in _TORCH.items()},
}


class _Steps(io.BytesIO):
  """The bytes of pickles, each of which may be read from a limited number of times."""

  left = _STEPS

  def read(self, size=-1):
    self.spend(1)
    return super().read(size)

  def spend(self, steps):
    self.left -= steps
    if self.left < 0:
      raise Bad(
        f'is a pickle of more than {_STEPS:,} steps, which no weights need; save the state_dict of '
        f'the network alone'
      )


class _Unpickler(pickle._Unpickler):  # pylint: disable=protected-access
  """Unpickles records of tensors, and runs nothing.

  The one in Python, as its memo is a dict: a file makes that of the one in C as large as it likes.
  Dicts keep what has a name and nothing else: the hash of a nested key can take for ever, and so
  can many keys with one hash.
  """

  dispatch = dict(pickle._Unpickler.dispatch)  # pylint: disable=protected-access

  def __init__(self, file: _Steps):
    super().__init__(file, encoding='latin1')
    self._steps = file
    file.left = _STEPS
    self.storages = {}

  def find_class(self, module, name):
    if len(module) + len(name) > _NAME:
      raise Bad(f'{BROKEN} (a name of {len(module) + len(name):,} characters)')
    full = f'{module}.{name}'
    if full in _FOUND:
      return _FOUND[full]
    if _LEFTOVERS.fullmatch(full):
      return _Ignored
    if _OTHER_TENSORS.fullmatch(full):
      raise Bad(
        f'holds {full:.80}; only dense tensors of {", ".join(_TORCH)} are read: convert them with '
        f'PyTorch'
      )
    raise Bad(
      f'refers to {ascii(full[:80])[1:-1]}, which is code and not tensors; refused: use a file '
      f'that has only weights, such as .safetensors'
    )

  def persistent_load(self, pid):
    if not (
      isinstance(pid, tuple)
      and len(pid) in (5, 6)
      and isinstance(pid[0], str)
      and pid[0] == 'storage'
      and isinstance(pid[1], np.dtype)
      and type(pid[2]) is str
      and type(pid[4]) is int
      and pid[4] >= 0
      and (len(pid) == 5 or pid[5] is None)
    ):
      raise Bad(f'{BROKEN} (a bad reference to a storage)')
    storage = _Storage(pid[2], pid[1], pid[4])
    if self.storages.setdefault(storage.key, storage) != storage:
      raise Bad(f'{BROKEN} (two forms of the storage {storage.key!r:.60})')
    return storage

  def _call(self, make, args):
    """What a call in the pickle gives; only what find_class returned can be called."""
    self._steps.spend(len(args))
    if make is _Ignored:
      return _Ignored()
    if make is dict:
      return self._dict(*args)
    if not any(make is known for known in (_rebuild_tensor, _rebuild_parameter, _size)):
      raise Bad(f'{BROKEN} (a call of {type(make).__name__})')
    return make(*args)

  def _dict(self, pairs=()):
    if not isinstance(pairs, (list, tuple)):
      raise Bad(f'{BROKEN} (a dict of {type(pairs).__name__})')
    self._steps.spend(len(pairs))
    return {key: value for key, value in pairs if type(key) is str}

  def _set(self, items):
    """Sets keys and values, which take turns, in the dict on the stack."""
    target = self.stack[-1]
    if type(target) is dict:
      target.update((key, value) for key, value in zip(items[::2], items[1::2]) if type(key) is str)

  def _load_setitem(self):
    value, key = self.stack.pop(), self.stack.pop()
    self._set((key, value))

  def _load_setitems(self):
    self._set(self.pop_mark())

  def _load_dict(self):
    items = self.pop_mark()
    self.append({})
    self._set(items)

  def _load_call(self):
    args, make = self.stack.pop(), self.stack.pop()
    self.append(self._call(make, args))

  def _load_newobj_ex(self):
    self.stack.pop()  # arguments by name
    self._load_call()

  def _load_obj(self):
    make, *args = self.pop_mark()
    self.append(self._call(make, args))

  def _load_inst(self):
    module, name = (self.readline()[:-1].decode('ascii') for _ in range(2))
    self.append(self._call(self.find_class(module, name), self.pop_mark()))

  def _load_set(self):
    self.append(_Ignored())

  def _load_frozenset(self):
    self.pop_mark()
    self.append(_Ignored())

  def _load_frame(self):
    self.read(8)  # only says how much could be read at once

  def _load_put(self):
    place = int(self.readline()[:-1])
    if not 0 <= place < 2**32:
      raise Bad(f'{BROKEN} (a bad place in the memo)')
    self.memo[place] = self.stack[-1]

  def _load_float(self):
    self.readline()  # Python takes minutes to round millions of digits, and no tensor needs one
    self.append(_Ignored())

  def _load_build(self):
    # Setting the state of an object would set any attribute of anything; no tensor needs it.
    self.stack.pop()

  dispatch.update(
    {
      code[0]: load  # type: ignore[misc]
      for code, load in (
        (pickle.SETITEM, _load_setitem),
        (pickle.SETITEMS, _load_setitems),
        (pickle.DICT, _load_dict),
        (pickle.REDUCE, _load_call),
        (pickle.NEWOBJ, _load_call),
        (pickle.NEWOBJ_EX, _load_newobj_ex),
        (pickle.OBJ, _load_obj),
        (pickle.INST, _load_inst),
        (pickle.EMPTY_SET, _load_set),
        (pickle.FROZENSET, _load_frozenset),
        (pickle.FRAME, _load_frame),
        (pickle.PUT, _load_put),
        (pickle.FLOAT, _load_float),
        (pickle.BUILD, _load_build),
        # the original makes an array as large as is announced, before it reads
        (pickle.BYTEARRAY8, pickle._Unpickler.load_binbytes8),  # type: ignore[attr-defined]
      )
    }
  )
  # Short numbers for names in a registry of this process, not of the file.
  for _code in (pickle.EXT1, pickle.EXT2, pickle.EXT4):
    del dispatch[_code[0]]


class _Directory:
  """A file for zipfile, which would read a directory of any length."""

  def __init__(self, file):
    self.seek, self.tell, self.seekable, self._read = file.seek, file.tell, file.seekable, file.read

  def read(self, size=-1):
    places.check_length(size)
    return self._read(size)


def _zip(file):
  """Since PyTorch 1.6: NAME/data.pkl, and a storage in each NAME/data/KEY."""
  with zipfile.ZipFile(_Directory(file)) as archive:
    listed = archive.infolist()
  entries = {entry.filename: entry for entry in listed}
  if len(entries) < len(listed):
    raise Bad('has two entries of one name; it is damaged: copy or download it again')
  folders = [
    name.removesuffix('data.pkl') for name in entries if re.fullmatch('[^/]+/data.pkl', name)
  ]
  if len(folders) != 1:
    raise Bad('is a zip without NAME/data.pkl, not a file of PyTorch; give a file of weights')

  def find(name):
    """The bytes of an entry."""
    entry = entries.get(folders[0] + name)
    if entry is None or entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
      raise Bad(f'{BROKEN} ({name!r:.40} is missing or compressed)')
    file.seek(entry.header_offset)
    header = file.read(30)
    start = (
      entry.header_offset
      + 30
      + int.from_bytes(header[26:28], 'little')
      + int.from_bytes(header[28:30], 'little')
    )
    if not header.startswith(b'PK\3\4') or start + entry.file_size > places.size_of(file):
      raise Bad(BROKEN)
    return Bytes(start, start + entry.file_size, entry.CRC)

  def content(name, limit):
    found = find(name)
    if found.end - found.start > limit:
      raise Bad(
        f'has {found.end - found.start:,} bytes of {name}, at most {limit:,} are read; save the '
        f'state_dict of the network alone'
      )
    file.seek(found.start)
    out = file.read(found.end - found.start)
    if zlib.crc32(out) != found.crc:
      raise Bad(f'{BROKEN} (the checksum of {name} differs)')
    return out

  unpickler = _Unpickler(_Steps(content('data.pkl', _BYTES)))
  tree = unpickler.load()
  order = b'little'
  if folders[0] + 'byteorder' in entries:
    order = content('byteorder', 16)
  if order not in (b'little', b'big'):
    raise Bad(BROKEN)
  return _places(
    file,
    tree,
    {key: find('data/' + key) for key in unpickler.storages},
    order.decode() != sys.byteorder,
  )


def _legacy(file):
  """Before PyTorch 1.6: five pickles, the fifth with the keys of the storages, which follow."""
  head = _Steps(file.read(_BYTES))
  if _plain(head) != _MAGIC or _plain(head) != _PROTOCOL:
    raise Bad('is a pickle, but not a file of PyTorch; give a file of weights')
  # about the machine it was written on; the bytes are little-endian whatever it says
  _Unpickler(head).load()
  unpickler = _Unpickler(head)
  tree, keys = unpickler.load(), _Unpickler(head).load()
  if type(keys) is not list or not all(type(key) is str for key in keys):
    raise Bad(f'{BROKEN} (no list of storages)')
  ranges, start = {}, head.tell()
  for key in keys:
    if key in ranges:
      raise Bad(f'{BROKEN} (the storage {key!r:.40} is there twice)')
    file.seek(start)
    storage, count = unpickler.storages[key], int.from_bytes(file.read(8), 'little')
    ranges[key] = Bytes(start + 8, start + 8 + count * storage.dtype.itemsize)
    start = ranges[key].end
  return _places(file, tree, ranges, sys.byteorder == 'big')


def _plain(head):
  """The number that a pickle is, or None."""
  found = _Unpickler(head).load()
  return found if type(found) is int else None


def _places(file, tree: Any, ranges: dict[str, Bytes], swap: bool) -> dict[str, Place]:
  """Where the tensors of a pickled dict are, given the bytes of each storage."""
  top = tree
  for key in ('ema', 'state_dict'):  # of a training run
    inner = tree.get(key) if isinstance(tree, dict) else None
    if isinstance(inner, dict) and any(isinstance(value, _Tensor) for value in inner.values()):
      top = inner
  found = {}
  for name, value in top.items() if isinstance(top, dict) else ():
    if isinstance(value, _Tensor):
      (key, dtype, count), storage = value.storage, ranges[value.storage.key]
      if count * dtype.itemsize > storage.end - storage.start:
        raise Bad(
          f'has {storage.end - storage.start} bytes where {count} of {dtype} should be: it is '
          f'damaged; copy or download it again'
        )
      found[name] = places.place(
        file, name, dtype, value.shape, value.strides, value.offset, storage, swap
      )
  return found or places.no_tensors(top)
