"""Arrays in an .npz from anywhere: what a file holds is known before any of it is read, nothing is
unpickled, and a damaged file ends in one line."""

import contextlib
import math
import struct
import zipfile
from collections.abc import Iterator
from typing import IO, NamedTuple

import numpy as np

from gmm_diffusion.errors import UserError

_LOCAL_HEAD = 30  # bytes before the name of a member, in a zip
_NAME_LENGTHS = 26  # where the lengths of the name and of what follows it stand there


class Head(NamedTuple):
  """What an array says of itself."""

  shape: tuple[int, ...]
  dtype: np.dtype
  fortran: bool


@contextlib.contextmanager
def _one_line(path: str, what: str) -> Iterator[None]:
  """What parsers of damaged files raise, of whatever kind, as a UserError."""
  try:
    yield
  except UserError:
    raise
  except Exception as error:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise UserError(f'cannot read {what} {path}: {reason}; write or download it again') from error


class Npz:
  """An open .npz; use it in a `with`.

  Attributes:
    path: of the file.
    heads: name -> Head of each array.
  """

  def __init__(self, path: str):
    """Raises UserError where the file is no .npz, or one of its arrays is damaged."""
    self.path = path
    with _one_line(path, 'the .npz'):
      self._archive = zipfile.ZipFile(path)
    try:
      self.heads = {}
      for name in self._archive.namelist():
        if name.endswith('.npy'):
          file, self.heads[name.removesuffix('.npy')] = self._open(name)
          file.close()
    except BaseException:
      self._archive.close()
      raise

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    self._archive.close()

  def _open(self, member: str) -> tuple[IO[bytes], Head]:
    """A member at its first value, and its head."""
    with _one_line(self.path, 'an array in'):
      file = self._archive.open(member)
      old = np.lib.format.read_magic(file) == (1, 0)
      read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
      shape, fortran, dtype = read(file)
      bytes_left = self._archive.getinfo(member).file_size - file.tell()
      announced = math.prod(shape) * dtype.itemsize
      if min(shape, default=0) < 0 or (bytes_left != announced and not dtype.hasobject):
        raise ValueError(
          f'{member} says that it is {dtype} {list(shape)} and has {bytes_left} bytes'
        )
      return file, Head(shape, dtype, fortran)

  def array(self, name: str) -> np.ndarray:
    """A whole array of numbers."""
    file, head = self._open(name + '.npy')
    with _one_line(self.path, 'an array in'), file:
      content = file.read()  # to its end, where the checksum is
      values = np.frombuffer(content, head.dtype).reshape(head.shape[:: -1 if head.fortran else 1])
      return values.T if head.fortran else values

  def mapped(self, name: str) -> np.ndarray:
    """The same array, read-only, whose values stay in the file until they are used; in memory where
    the file is compressed or the array is empty."""
    info = self._archive.getinfo(name + '.npy')
    file, head = self._open(name + '.npy')
    file.close()
    if info.compress_type != zipfile.ZIP_STORED or 0 in head.shape or head.dtype.hasobject:
      return self.array(name)
    with _one_line(self.path, 'an array in'), open(self.path, 'rb') as whole:
      whole.seek(info.header_offset + _NAME_LENGTHS)
      name_length, extra_length = struct.unpack('<HH', whole.read(4))
    end = info.header_offset + _LOCAL_HEAD + name_length + extra_length + info.file_size
    start = end - math.prod(head.shape) * head.dtype.itemsize
    shape = head.shape[:: -1 if head.fortran else 1]
    values = np.memmap(self.path, head.dtype, 'r', start, shape)
    return values.T if head.fortran else values

  def rows(self, name: str, size: int) -> Iterator[np.ndarray]:
    """An array in C order as blocks of `size` rows, one of them in memory at a time."""
    file, head = self._open(name + '.npy')
    row = math.prod(head.shape[1:]) * head.dtype.itemsize
    with file:
      for start in range(0, head.shape[0], size):
        n = min(size, head.shape[0] - start)
        with _one_line(self.path, f'rows {start} to {start + n - 1} of'):
          content = file.read(n * row)
          if len(content) < n * row:
            raise EOFError('the file ends before them')
        yield np.frombuffer(content, head.dtype).reshape(n, *head.shape[1:])
