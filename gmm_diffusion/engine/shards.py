"""Long work on ranges of sample ids, one file each: it can be stopped at any moment, and processes
share it.

A file is whole or absent (files.py). A process claims a range by a lock that the system takes back
when the process ends, however it ends, so processes on any hosts that see the same folder need no
coordinator. A claimed range is looked at once more before it is made: no range is made twice.
"""

import os
import time
from collections.abc import Callable, Iterator

import numpy as np
from tqdm import tqdm

from gmm_diffusion import files
from gmm_diffusion.errors import UserError

Arrays = dict[str, np.ndarray]
Advance = Callable[[int], None]

_WAIT = 0.2  # seconds between two looks at what other processes do


def ranges(count: int, size: int) -> list[range]:
  """0..count-1 in ranges of `size`; the last may be shorter."""
  return [range(start, min(start + size, count)) for start in range(0, count, size)]


def path_of(folder: str, ids: range) -> str:
  return os.path.join(folder, f'{ids.start:08d}-{ids.stop - 1:08d}.npz')


def load(folder: str, mark: str, ids: range) -> Arrays | None:
  """The arrays of a range; None where the file is absent, damaged, or made with other settings."""
  return files.load(path_of(folder, ids), mark)


def fill(
  folder: str,
  mark: str,
  count: int,
  size: int,
  make: Callable[[range, Advance], Arrays],
  title: str,
  whole: bool = True,
) -> None:
  """Returns when every range of ids has its file.

  Args:
    folder: of the files; created.
    mark: what the arrays depend on, as text; a file with another mark is made again.
    count: of ids.
    size: ids in a file.
    make: (ids, advance) -> arrays; calls advance(number of ids done) as it goes.
    title: of the progress bar.
    whole: files that are there are read to their end, which finds damaged ones.
  """
  is_there = lambda ids: (
    files.has_mark(path_of(folder, ids), mark)
    and (not whole or load(folder, mark, ids) is not None)
  )
  todo = [ids for ids in ranges(count, size) if not is_there(ids)]
  if not todo:
    return
  with tqdm(
    total=count, initial=count - sum(map(len, todo)), desc=title, unit='image', dynamic_ncols=True
  ) as bar:
    while todo:
      others = []
      for i, ids in enumerate(todo):
        bar.set_postfix_str(
          f'{len(todo) - i + len(others)} of {len(ranges(count, size))} files to go'
        )
        path = path_of(folder, ids)
        with files.claimed(path) as mine:
          if not mine:
            others.append(ids)
          elif is_there(ids):
            bar.update(len(ids))
          else:
            files.save(path, mark, make(ids, bar.update))
        if mine:
          files.remove_lock(path)
      if len(others) == len(todo):
        time.sleep(_WAIT)
      todo = others


def read(folder: str, mark: str, count: int, size: int) -> Iterator[Arrays]:
  """The arrays of each range, in order, one range in memory at a time.

  Raises:
    UserError: a file is not what `fill` left.
  """
  for ids in ranges(count, size):
    arrays = load(folder, mark, ids)
    if arrays is None:
      raise UserError(
        f'{path_of(folder, ids)} was changed by another run; run again, with another --workdir for '
        f'other settings'
      )
    yield arrays
