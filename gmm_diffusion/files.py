"""Files that are whole or absent: written under a name of their own, then renamed. Locks between
processes."""

import contextlib
import json
import os
import uuid
import zipfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import filelock
import numpy as np

from gmm_diffusion.errors import UserError

_PARTIAL = '.partial-'
_ABANDONED = 3600.0  # seconds without a change, after which an unfinished file has no writer


def write(path: str, save: Callable[[str], None]) -> None:
  """Calls save(temporary name in the same folder, which is made, with the same extension), then
  renames to path.

  Any number of processes may write the same path: the last one counts. What a killed process left
  unfinished in the folder an hour or more ago is removed.

  Raises:
    UserError: the system refuses: no space, no permission, something else in the place.
  """
  folder, name = os.path.split(path)
  temporary = os.path.join(folder, f'{_PARTIAL}{uuid.uuid4().hex[:12]}-{name}')
  try:
    if folder:
      os.makedirs(folder, exist_ok=True)
    save(temporary)
    os.replace(temporary, path)
    _remove_abandoned(folder or '.', os.path.getmtime(path))
  except OSError as error:
    raise UserError(_refused(path, error)) from error
  finally:
    with contextlib.suppress(OSError):
      os.remove(temporary)


def _remove_abandoned(folder, now):
  """now: of the clock that stamps the files, which on a network drive is not this machine's."""
  with contextlib.suppress(OSError):  # another process may remove the same
    for entry in os.scandir(folder):
      if entry.name.startswith(_PARTIAL) and now - entry.stat().st_mtime > _ABANDONED:
        os.remove(entry.path)


def _refused(path, error):
  return (
    f'cannot write {path}: {error.strerror or error}; free space or remove what is in the way, or '
    f'give another --workdir'
  )


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
  """Waits until no other process holds path.lock, in a folder that is made.

  The system takes the lock back when a process ends, however it ends. Hosts exclude each other on
  every file system that passes flock on to its server, which NFS does on Linux.

  Raises:
    UserError: the system refuses the lock.
  """
  with _lock(path, -1):
    yield


@contextlib.contextmanager
def claimed(path: str) -> Iterator[bool]:
  """As `locked`, without waiting: whether this process has the lock."""
  try:
    with _lock(path, 0):
      yield True
  except filelock.Timeout:
    yield False


@contextlib.contextmanager
def _lock(path, timeout):
  lock = filelock.FileLock(path + '.lock')
  try:
    os.makedirs(os.path.dirname(lock.lock_file) or '.', exist_ok=True)
    lock.acquire(timeout)
  except filelock.Timeout:
    raise
  except OSError as error:
    raise UserError(_refused(path + '.lock', error)) from error
  try:
    yield
  finally:
    lock.release()


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
  trial = os.path.join(path, f'{_PARTIAL}{uuid.uuid4().hex[:12]}')
  try:
    os.makedirs(path, exist_ok=True)
    with open(trial, 'wb'):
      pass
    os.remove(trial)
  except OSError as error:
    raise UserError(
      f'cannot write to --workdir {path!r}: {error.strerror}; give a folder that can be written'
    ) from error
