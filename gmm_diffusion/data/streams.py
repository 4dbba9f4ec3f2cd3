"""Images that are read when they are asked for, by number and in any order, and batches that are
read ahead of the training.

Which images are in a batch is a function of (seed, step), so a training goes on in the middle
without reading what came before, and each host reads its own part.
"""

import os
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from gmm_diffusion.errors import UserError

THREADS = min(16, os.cpu_count() or 1)  # decoding lets other threads run
AHEAD = 2**29  # bytes of the batches that wait, if they are more than two
_AT_ONCE = 256  # images that wait for a thread


class Stream:
  """uint8 images [N, H, W, C] of one size, as far as possible like an array.

  A slice is another Stream; numbers give an array; np.asarray reads everything. The shape is that
  of the first image, and an image of another one is refused when it is read.
  """

  dtype = np.dtype(np.uint8)

  def __init__(
    self,
    one: Callable[[int], np.ndarray],
    name: Callable[[int], str],
    count: int,
    start: int = 0,
    item: tuple[int, ...] = (),
  ):
    """one: number -> image; name: number -> what to call it; item: shape of an image, if known."""
    self._one, self._name, self._start = one, name, start
    self.shape = (count, *(item or one(start).shape))

  def __len__(self):
    return self.shape[0]

  def __getitem__(self, index: Any) -> Any:
    if isinstance(index, slice):
      start, stop, step = index.indices(len(self))
      if step != 1:
        raise IndexError('a stream has slices of neighbours only')
      return Stream(
        self._one, self._name, max(0, stop - start), self._start + start, self.shape[1:]
      )
    numbers = np.arange(len(self))[index]
    return np.stack([self._checked(n) for n in numbers]) if numbers.ndim else self._checked(numbers)

  def __array__(self, dtype=None, copy=None):
    return self.read()

  def _checked(self, number):
    number = self._start + int(number)
    image = self._one(number)
    if image.shape != self.shape[1:]:
      (height, width, channels), found = self.shape[1:], image.shape
      if found[2] != channels:
        raise UserError(
          f'{self._name(number)} has {found[2]} channels, and {self._name(self._start)} has '
          f"{channels}; set data.colour to 'rgb' or 'grey'"
        )
      raise UserError(
        f'{self._name(number)} is {found[1]} x {found[0]}, and {self._name(self._start)} is '
        f'{width} x {height}; set data.size to crop all to one size'
      )
    return image

  def read(self, title: str = '') -> np.ndarray:
    """All of it, with a progress bar where there is a title."""
    out = np.empty(self.shape, np.uint8)
    for number, image in enumerate(mapped(self._checked, len(self), title)):
      out[number] = image
    return out

  def blocks(self) -> Iterator[np.ndarray]:
    """All of it, in arrays of neighbours."""
    for start in range(0, len(self), _AT_ONCE):
      yield self[start : start + _AT_ONCE].read()


class Labels:
  """Classes int32 [N], each read with its image or when it is asked for.

  Numbers and slices give arrays; np.asarray reads everything.
  """

  dtype = np.dtype(np.int32)
  __eq__ = None  # type: ignore[assignment]  # compare what was read, not this
  __hash__ = None  # type: ignore[assignment]

  def __init__(self, one: Callable[[int], int], count: int):
    """one: number -> its class, which reads the item again."""
    self._one, self._known, self.shape = one, np.full(count, -1, np.int32), (count,)

  def __len__(self):
    return self.shape[0]

  def know(self, number: int, label: int) -> None:
    """What is known of an item that was read."""
    self._known[number] = label

  def __getitem__(self, index: Any) -> Any:
    for number in np.atleast_1d(np.arange(len(self))[index]):
      if self._known[number] < 0:
        self._known[number] = self._one(int(number))
    return self._known[index]

  def __array__(self, dtype=None, copy=None):
    return self[:]


def mapped(one: Callable[[int], Any], count: int, title: str = '') -> Iterator[Any]:
  """one(0), one(1), ... of `count` numbers, by several threads."""
  with (
    futures.ThreadPoolExecutor(THREADS) as pool,
    tqdm(total=count, desc=title, unit='image', dynamic_ncols=True, disable=not title) as bar,
  ):
    for start in range(0, count, _AT_ONCE):  # all at once would queue a task for each
      for value in pool.map(one, range(start, min(start + _AT_ONCE, count))):
        yield value
        bar.update()


def grain() -> Any:
  """The module; raises UserError where it is not installed."""
  try:
    import grain  # slow to import, and only needed here

    return grain
  except ImportError as error:
    raise UserError(
      f"data.stream needs grain ({error}); install the extra: pip install -e '.[stream]'"
    ) from error


def ahead(batch: Callable[[int], Any], start: int, stop: int) -> Iterator[Any]:
  """batch(start), ..., batch(stop - 1) in order, each read by a thread before it is asked for.

  Raises:
    UserError: grain, which does that, is not installed.
  """
  data = grain().MapDataset
  if start >= stop:
    return
  first = batch(start)
  size = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(first))
  waiting = int(np.clip(AHEAD // max(size, 1), 2, 2 * THREADS))
  options = grain().ReadOptions(min(THREADS, waiting), prefetch_buffer_size=waiting)
  rest, done = iter(data.range(start + 1, stop).map(batch).to_iter_dataset(options)), object()
  with futures.ThreadPoolExecutor(1) as pool:
    second = pool.submit(next, rest, done)  # reading goes on while the first step is compiled
    yield first
  if second.result() is not done:
    yield second.result()
    yield from rest
