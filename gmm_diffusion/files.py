"""Files that are whole or absent: written under a name of their own, then renamed. Locks between
processes, and the one cache: `kept`."""

import contextlib
import errno
import hashlib
import json
import math
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
  closed = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
  remedy = 'make its folder writable' if closed else 'free space or remove what is in the way'
  return f'cannot write {path}: {error.strerror or error}; {remedy}, or give another --workdir'


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


def remove_lock(path: str) -> None:
  """Removes path.lock, where everybody who gets the lock looks first whether the file is there by
  now: who waited for the removed one finds it."""
  with contextlib.suppress(OSError):
    os.remove(path + '.lock')


def fingerprint(*values: Any) -> str:
  """Twelve hexadecimal digits of the SHA-256 of values: arrays, also those that are read in blocks,
  by dtype, shape and content, anything else by its repr."""
  digest = hashlib.sha256()
  for value in values:
    if isinstance(value, np.ndarray | np.generic):
      digest.update(f'{value.dtype}{value.shape}'.encode())
      digest.update(np.ascontiguousarray(value).data)
    elif hasattr(value, 'blocks'):  # data.streams
      digest.update(f'{value.dtype}{value.shape}'.encode())
      for block in value.blocks():
        digest.update(block)
    else:
      digest.update(f'{value!r}\0'.encode())
  return digest.hexdigest()[:12]


def kept(
  path: str,
  mark: Any,
  make: Callable[[], dict[str, Any]],
  enough: Callable[[dict[str, Any]], bool] = lambda found: True,
) -> dict[str, Any]:
  """What make() returns, from a file where an earlier call left it.

  It is made where the file is absent, damaged, or of another mark. Of several processes one makes
  it and the others wait. So `make` must not wait for other hosts: where all of them compute
  together, `load` and `save` are called one by one.

  Args:
    path: .npz for arrays {name: array}, .json for plain values {name: value}; its folder is made.
    mark: what the content depends on: text for .npz, any plain value for .json.
    make: () -> the content.
    enough: whether what is there holds all that is wanted; if not, it is made.
  """

  def look():
    found = load(path, mark)
    return found if found is not None and enough(found) else None

  found = look()
  if found is None:
    with locked(path):
      found = look()
      if found is None:
        found = save(path, mark, make())
    remove_lock(path)
  return found


def load(path: str, mark: Any) -> dict[str, Any] | None:
  """What `save` wrote to path; None where it is absent, damaged, or of another mark."""
  if not os.path.exists(path):
    return None
  try:
    if path.endswith('.json'):
      with open(path, encoding='utf-8') as file:
        found = json.load(file)
      there = found.pop('key')
      mark = json.loads(json.dumps(_plain(mark)))
    else:
      with open(path, 'rb') as content, np.load(content) as file:
        there = str(file['mark'])
        found = {name: file[name] for name in file.files if name != 'mark' and there == mark}
  except Exception:  # a damaged file raises many kinds
    print(f'{path} is damaged: it is made again', flush=True)
    return None
  return found if there == mark else None


def has_mark(path: str, mark: str) -> bool:
  """Whether path is an .npz with this mark; of its arrays nothing is read."""
  try:
    with open(path, 'rb') as content, np.load(content) as file:
      return str(file['mark']) == mark
  except Exception:  # absent, or damaged in one of many ways
    return False


def save(path: str, mark: Any, content: dict[str, Any]) -> dict[str, Any]:
  """Writes what `load` reads, and returns it; arguments as for `kept`."""
  if path.endswith('.json'):
    content = json.loads(json.dumps(_plain(content)))
    write_json(path, {'key': mark, **content})
  else:
    content = {name: np.asarray(array) for name, array in content.items()}
    write(path, lambda name: np.savez(name, mark=mark, **content))
  return content


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
  except Exception:  # a damaged file raises many kinds
    return False


def write_text(path: str, text: str) -> None:
  def save(name):
    with open(name, 'w', encoding='utf-8') as file:
      file.write(text)

  write(path, save)


def append_line(path: str, text: str) -> None:
  """Adds a line to a text file; raises UserError where the system refuses."""
  try:
    with open(path, 'a', encoding='utf-8') as file:
      file.write(text + '\n')
  except OSError as error:
    raise UserError(_refused(path, error)) from error


def write_json(path: str, value: Any) -> None:
  """Writes dicts, sequences and arrays of numbers and text.

  Raises:
    UserError: a number is not finite, which JSON does not have; or as `write`.
  """
  undefined = {}
  value = _plain(value, undefined)
  for where, number in undefined.items():
    raise UserError(
      f'cannot write {path}: {where} is {number}; check the settings and the weights that it comes '
      f'from'
    )
  write_text(path, json.dumps(value, indent=1) + '\n')


def finite(value: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
  """(the value as plain JSON with null for numbers that are not finite, {place: such a number})."""
  undefined = {}
  return _plain(value, undefined), undefined


def _plain(value, undefined=None, where=''):
  if isinstance(value, np.generic):
    value = value.item()
  if value is None or isinstance(value, str | int):
    return value
  if isinstance(value, float):
    if not math.isfinite(value) and undefined is not None:
      undefined[where] = str(value)
      return None
    return value
  if isinstance(value, dict):
    return {
      key: _plain(item, undefined, f'{where}.{key}'.lstrip('.')) for key, item in value.items()
    }
  return [_plain(item, undefined, f'{where}[{i}]') for i, item in enumerate(value)]


def read_json(path: str, default: Any, fits: Callable[[Any], bool] = lambda value: True) -> Any:
  """The content of a JSON file, or `default` where there is none.

  Raises:
    UserError: it cannot be read, is of another type than `default`, or does not fit.
  """
  if not os.path.exists(path):
    return default
  try:
    with open(path, encoding='utf-8') as file:
      value = json.load(file)
  except (ValueError, OSError, RecursionError) as error:
    raise UserError(f'cannot read {path}: {error}; remove the file to start it anew') from error
  if not (default is None or isinstance(value, type(default))) or not fits(value):
    raise UserError(
      f'{path} does not hold what this program writes there; remove the file to start it anew'
    )
  return value


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
