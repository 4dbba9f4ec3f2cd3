"""Where in a file the elements of a tensor are.

Every format of weights comes down to a `Place`. What a file says of itself is not believed: a place
is given out only if the file has room for it, and names and shapes are read up to a limit.
"""

import json
import math
import os
from collections.abc import Iterable
from typing import Any, BinaryIO, NamedTuple

import numpy as np

# Bytes of a header in JSON or of a zip's directory that are read. The largest models have less than
# a tenth of it; a hostile file could fill the memory with a larger one.
LIMIT = 2**23
DIMENSIONS = 32
BROKEN = 'is truncated or not a checkpoint; copy or download it again'


class Bad(Exception):
  """What is wrong with a file, to be said after its name."""


class Bytes(NamedTuple):
  """The bytes [start, end) of a file, and their CRC-32 where the file tells it."""

  start: int
  end: int
  crc: int | None = None


class Place(NamedTuple):
  """Elements of a tensor: of `file`, from byte `start` on, `strides` elements apart.

  swap: they have the other byte order than this machine. storage: the bytes that they are among.
  """

  file: BinaryIO
  start: int
  dtype: np.dtype
  shape: tuple[int, ...]
  strides: tuple[int, ...]
  swap: bool
  storage: Bytes


def size_of(file: BinaryIO) -> int:
  return os.fstat(file.fileno()).st_size


def span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
  """Number of elements from the first to the last of a tensor, both included."""
  return 0 if 0 in shape else 1 + sum((n - 1) * stride for n, stride in zip(shape, strides))


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
  """Strides of a tensor without gaps."""
  return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def place(
  file: BinaryIO,
  name: str,
  dtype: np.dtype,
  shape: Any,
  strides: Any,
  offset: Any,
  storage: Bytes,
  swap: bool,
) -> Place:
  """The place of a tensor `offset` elements into its storage.

  strides: in elements; None is without gaps. Raises Bad unless the tensor is within the storage and
  the storage in the file.
  """
  size = size_of(file)
  # Lengths come first: each later line takes time or memory that grows with what it is given.
  fits = isinstance(shape, (tuple, list)) and len(shape) <= DIMENSIONS
  fits = fits and all(type(n) is int and 0 <= n <= size for n in (*shape, offset))
  if fits and strides is None:
    strides = contiguous(shape)
  fits = fits and isinstance(strides, (tuple, list)) and len(strides) == len(shape)
  fits = fits and all(type(n) is int and n >= 0 for n in strides)
  # by strides of zero a small file could fill the memory
  if (
    not fits
    or storage.end > size
    or (offset + span(shape, strides)) * dtype.itemsize > storage.end - storage.start
    or math.prod(n or 1 for n in shape) * dtype.itemsize > size
    or max(strides, default=0) > size
  ):
    raise Bad(
      f'has no room for {name!r:.80} of shape {words(shape)}: it is truncated or damaged; copy or '
      f'download it again'
    )
  return Place(
    file,
    storage.start + offset * dtype.itemsize,
    dtype,
    tuple(shape),
    tuple(strides),
    swap,
    storage,
  )


def words(shape: Any) -> str:
  """A shape for a message, whatever a file gave as one."""
  if not isinstance(shape, (tuple, list)) or len(shape) > DIMENSIONS:
    return 'that is none'
  return f'{[n if type(n) is int else type(n).__name__ for n in shape]!s:.60}'


def few(names: Iterable[str]) -> str:
  """The first names, for a message."""
  names = list(names)
  return (
    ', '.join(f'{name!r:.60}' for name in names[:5]) + (', ...' if len(names) > 5 else '')
    or 'nothing'
  )


def no_tensors(top: Any) -> Any:
  raise Bad(
    f'has no tensors by name; it has {few(top) if isinstance(top, dict) else type(top).__name__}:'
    ' save the state_dict of the network'
  )


def parse_json(content: bytes) -> Any:
  """JSON in which no name is there twice; fractions, which mean nothing here, stay text."""

  def unique(pairs):
    out = dict(pairs)
    if len(out) < len(pairs):
      raise Bad('names a tensor twice; copy or download it again')
    return out

  # Python takes minutes to round a fraction of millions of digits
  return json.loads(content, object_pairs_hook=unique, parse_float=str)


def check_length(length: int) -> None:
  """Raises Bad if names and shapes take more than LIMIT bytes."""
  if length > LIMIT:
    raise Bad(
      f'has {length:,} bytes of names and shapes, at most {LIMIT:,} are read; it is damaged or no '
      f'file of weights: copy or download it again'
    )
