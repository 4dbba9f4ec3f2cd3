"""Files in the layouts of released weights, for benchmarks and tests that need such files: no
PyTorch, one tensor in memory.

Tensors are given as name -> (shape, dtype, make), where make() returns the array when its turn to
be written comes.
"""

import json
import math
import pickle
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from gmm_diffusion import files

Tensors = dict[str, tuple[tuple[int, ...], Any, Callable[[], np.ndarray]]]
NAMES = {
  np.dtype('f4'): ('F32', 'FloatStorage'),
  np.dtype('f2'): ('F16', 'HalfStorage'),
  np.dtype('i8'): ('I64', 'LongStorage'),
  np.dtype(ml_dtypes.bfloat16): ('BF16', 'BFloat16Storage'),
}


def made(arrays: dict[str, np.ndarray]) -> Tensors:
  """Arrays in memory as tensors to write."""
  return {
    name: (array.shape, array.dtype, lambda array=array: array) for name, array in arrays.items()
  }


def write_safetensors(path: str, tensors: Tensors) -> None:
  """Writes a .safetensors file; it appears when it is complete."""
  header, end = {}, 0
  for name, (shape, dtype, _) in tensors.items():
    begin, end = end, end + _bytes(shape, dtype)
    header[name] = {
      'dtype': NAMES[np.dtype(dtype)][0],
      'shape': list(shape),
      'data_offsets': [begin, end],
    }
  text = json.dumps(header).encode()
  text += b' ' * (-len(text) % 8)

  def save(partial):
    with open(partial, 'wb') as file:
      file.write(struct.pack('<Q', len(text)) + text)
      for name in tensors:
        file.write(_data(name, *tensors[name]))

  files.write(path, save)


def write_torch(path: str, tensors: Tensors, nest: str = '') -> None:
  """Writes what torch.save does of an OrderedDict of tensors, or of {nest: that}; it appears when
  it is complete."""

  def save(partial):
    with zipfile.ZipFile(partial, 'w', zipfile.ZIP_STORED) as archive:
      archive.writestr('archive/data.pkl', _pickle(tensors, nest))
      archive.writestr('archive/byteorder', 'little')
      for i, (name, (shape, dtype, make)) in enumerate(tensors.items()):
        entry = zipfile.ZipInfo(f'archive/data/{i}')
        entry.file_size = _bytes(
          shape, dtype
        )  # so that entries above 2 GiB get the header they need
        with archive.open(entry, 'w') as file:
          file.write(_data(name, shape, dtype, make))
      archive.writestr('archive/version', '3\n')

  files.write(path, save)


def _bytes(shape, dtype):
  return math.prod(shape) * np.dtype(dtype).itemsize


def _data(name, shape, dtype, make):
  """The little-endian bytes of one tensor."""
  array = make()
  if array.shape != tuple(shape) or array.dtype != dtype:
    raise ValueError(
      f'{name} was to be {shape} of {np.dtype(dtype)}, got {array.shape} of {array.dtype}'
    )
  return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def _pickle(tensors, nest):
  """Opcodes by hand, as a pickler writes a global such as torch.FloatStorage only if it can import
  it."""
  plain = lambda value: pickle.dumps(value, 2)[2:-1]  # without the first and the last opcode
  ordered = pickle.GLOBAL + b'collections\nOrderedDict\n' + pickle.EMPTY_TUPLE + pickle.REDUCE
  out = [pickle.PROTO + b'\2']
  if nest:
    out += [pickle.EMPTY_DICT, plain(nest)]
  out += [ordered, pickle.MARK]
  for i, (name, (shape, dtype, _)) in enumerate(tensors.items()):
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    out += [
      plain(name),
      pickle.GLOBAL,
      b'torch._utils\n_rebuild_tensor_v2\n',
      pickle.MARK,
      pickle.MARK,
      plain('storage'),
      pickle.GLOBAL,
      b'torch\n%s\n' % NAMES[np.dtype(dtype)][1].encode(),
      plain(str(i)),
      plain('cpu'),
      plain(math.prod(shape)),
      pickle.TUPLE,
      pickle.BINPERSID,
      plain(0),
      plain(tuple(shape)),
      plain(strides),
      pickle.NEWFALSE,
      ordered,
      pickle.TUPLE,
      pickle.REDUCE,
    ]
  out += [pickle.SETITEMS] + ([pickle.SETITEM] if nest else [])
  return b''.join(out) + pickle.STOP
