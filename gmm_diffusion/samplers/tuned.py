"""The sampler of a file that tuning wrote: a table with its times (samplers/linear.py)."""

import functools
import os
from typing import Any, NamedTuple

import jax
import numpy as np

from gmm_diffusion import files
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import bands as bands_lib
from gmm_diffusion.maths.schedules import Schedule
from gmm_diffusion.samplers import linear
from gmm_diffusion.samplers.base import Kernel
from gmm_diffusion.samplers.linear import Table
from gmm_diffusion.types import StepGrid, Time

_PARTS = ('t', 'time_a', 'time_b', 'a', 'b', 'keep', 'weights', 'std')
_TOLERANCE = 1e-5  # between a level in a file and the same of the schedule


class Tuned(NamedTuple):
  """What a file holds.

  Attributes:
    table: float64, N rows.
    shape: of the samples that it was tuned for.
    weights: hash of those that it was tuned on.
    mark: hash of all numbers.
  """

  table: Table
  shape: tuple[int, ...]
  weights: str
  mark: str


def tuned(path: str = '') -> Kernel:
  """The kernel of a file.

  Args:
    path: of the file, WORKDIR/tuned/N.json.

  Raises:
    UserError: it is not there or not such a file; from plan, for samples of another shape.
  """
  found = read(path)
  count = found.table.keep.shape[1]
  kernel = linear.linear(found.table, bands_lib.make(found.shape, count) if count > 1 else None)

  def plan(grid, shape):
    if tuple(shape) != found.shape:
      raise UserError(
        f'{path} was tuned for samples of shape {list(found.shape)}, these are {list(shape)}; tune '
        f'for this model with --mode=tune'
      )
    return kernel.plan(grid, shape)

  return kernel._replace(plan=plan)


def grid(path: str, schedule: Schedule) -> StepGrid:
  """The steps of a file; raises UserError where its times have other levels on the schedule."""
  time = read(path).table.time
  at = schedule.at(np.clip(time.t, schedule.clean, schedule.last))
  if not (
    np.allclose(at.a, time.a, rtol=_TOLERANCE, atol=_TOLERANCE)
    and np.allclose(at.b, time.b, rtol=_TOLERANCE, atol=_TOLERANCE)
  ):
    raise UserError(
      f'{path} was tuned on another noise schedule; use its config, or tune for this model with '
      f'--mode=tune'
    )
  return linear.grid_of(read(path).table)


def content(table: Table, shape: tuple[int, ...], weights: str) -> dict[str, Any]:
  """What a file holds of a table, as plain values; more may stand beside it."""
  parts = (*table.time, *table[1:])
  return {
    'table': {name: np.asarray(part).tolist() for name, part in zip(_PARTS, parts, strict=True)},
    'shape': list(shape),
    'weights': weights,
  }


def table_of(content: dict[str, Any]) -> Table:
  """The table of what `content` wrote of it; raises ValueError where it is none, or has numbers
  that are not finite."""
  arrays = [np.array(content[name], np.float64) for name in _PARTS]
  made = Table(Time(*arrays[:3]), *arrays[3:])
  steps, count = made.keep.shape
  shapes = (
    [(steps,)] * 3 + [(steps + 1,)] * 2 + [(steps, count), (steps, steps, count), (steps, count)]
  )
  if [part.shape for part in arrays] != shapes or not all(np.isfinite(p).all() for p in arrays):
    raise ValueError('damaged')
  return made


@functools.lru_cache(8)
def _read(path, stamp):
  del stamp
  found = files.read_json(path, {})
  try:
    table = table_of(found['table'])
    shape, weights = tuple(map(int, found['shape'])), str(found['weights'])
  except (KeyError, TypeError, ValueError) as error:
    raise UserError(
      f'{path} holds no table of finite numbers as --mode=tune writes it; tune again'
    ) from error
  return Tuned(table, shape, weights, files.fingerprint(*jax.tree.leaves(table)))


def read(path: str) -> Tuned:
  """A file of --mode=tune; raises UserError where it is not one."""
  if not path:
    raise UserError('sampler tuned needs sampler.path, a file that --mode=tune wrote')
  if not os.path.isfile(path):
    raise UserError(
      f'there is no tuned sampler {path}; make it with --mode=tune, or set sampler.path or '
      f'sampler.steps to one that is there'
    )
  return _read(path, os.stat(path).st_mtime_ns)
