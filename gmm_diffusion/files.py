"""Files that are whole or absent: written under a temporary name, then renamed."""

import contextlib
import fcntl
import json
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from gmm_diffusion.errors import UserError


def write(path: str, save: Callable[[str], None]) -> None:
  """Calls save(temporary name with the same extension), then renames to path."""
  root, extension = os.path.splitext(path)
  temporary = f'{root}.partial{extension}'
  try:
    save(temporary)
    os.replace(temporary, path)
  finally:
    if os.path.exists(temporary):
      os.remove(temporary)


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
  """Waits until no other process holds path.lock; the system takes the lock back when a process
  ends."""
  with open(path + '.lock', 'ab') as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    yield


def write_npz(
  path: str, arrays: dict[str, tuple[tuple[int, ...], Any, Iterable[np.ndarray]]]
) -> None:
  """An .npz of arrays {name: (shape, dtype, blocks of rows)} of any size; one block is in memory at
  a time."""

  def save(name):
    with zipfile.ZipFile(name, 'w') as archive:
      for key, (shape, dtype, blocks) in arrays.items():
        with archive.open(key + '.npy', 'w', force_zip64=True) as member:
          np.lib.format.write_array_header_1_0(
            member, {'descr': np.dtype(dtype).str, 'fortran_order': False, 'shape': shape}
          )
          for block in blocks:
            member.write(np.ascontiguousarray(block, dtype).data)

  write(path, save)


def is_whole(path: str) -> bool:
  """Whether an .npz can be read to its end, checksums included."""
  try:
    with zipfile.ZipFile(path) as archive:
      return archive.testzip() is None
  except (OSError, zipfile.BadZipFile, EOFError):
    return False


def write_text(path: str, text: str) -> None:
  def save(name):
    with open(name, 'w', encoding='utf-8') as file:
      file.write(text)

  write(path, save)


def write_json(path: str, value: Any) -> None:
  write_text(path, json.dumps(value, indent=1, allow_nan=False, default=_plain) + '\n')


def _plain(value):
  return value.item() if isinstance(value, np.generic) else list(value)


def read_json(path: str, default: Any) -> Any:
  """The content of a JSON file, or `default` where there is none."""
  if not os.path.exists(path):
    return default
  try:
    with open(path, encoding='utf-8') as file:
      return json.load(file)
  except (ValueError, OSError) as error:
    raise UserError(f'cannot read {path}: {error}; remove the file to start it anew') from error


def make_workdir(path: str) -> None:
  """Creates the folder; raises UserError if files cannot be written there."""
  try:
    os.makedirs(path, exist_ok=True)
    write_text(os.path.join(path, 'writable'), '')
    os.remove(os.path.join(path, 'writable'))
  except OSError as error:
    raise UserError(
      f'cannot write to --workdir {path!r}: {error.strerror}; give a folder that can be written'
    ) from error
