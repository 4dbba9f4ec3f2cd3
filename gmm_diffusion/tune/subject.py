"""The denoiser that is tuned for: draws by any table, and predictions at any state."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmm_diffusion import parallel, samplers
from gmm_diffusion.maths import noise as noise_lib
from gmm_diffusion.maths.bands import Bands
from gmm_diffusion.maths.schedules import Schedule
from gmm_diffusion.samplers import linear
from gmm_diffusion.samplers.base import Plan
from gmm_diffusion.samplers.linear import Table
from gmm_diffusion.samplers.run import initial_state, run
from gmm_diffusion.types import Array, Denoiser, StepGrid, Time


class Subject:
  """A denoiser with its weights on the devices.

  All tables with as many rows and bands share one compilation.

  Attributes:
    bind: weights -> Denoiser.
    weights: on the host.
    schedule: of the denoiser.
    shape: of one sample.
    limits: the range of the data, to which samples are clipped; None for data without one.
    labels: ids [n] -> what the denoiser is given with them, int32 [n].
    batch: samples at a time on each device.
    whole_times: whether the denoiser knows whole times only.
    calls: single-sample network calls made so far.
  """

  def __init__(
    self,
    bind: Callable[[Any], Denoiser],
    weights: Any,
    schedule: Schedule,
    shape: tuple[int, ...],
    limits: tuple[float, float] | None = None,
    labels: Callable[[np.ndarray], np.ndarray] = lambda ids: np.zeros(len(ids), np.int32),
    batch: int = 64,
    whole_times: bool = False,
  ):
    self.bind, self.weights, self.schedule, self.shape = bind, weights, schedule, shape
    self.limits, self.labels, self.batch, self.whole_times = limits, labels, batch, whole_times
    self.calls = 0
    self._kept: dict[Any, Any] = {}

  def draw(
    self, table: Table, seed: int, ids: np.ndarray, bands: Bands | None = None
  ) -> np.ndarray:
    """Samples of a table with the noise of (seed, ids), float32 [n, *shape]."""
    steps, count = table.keep.shape
    self.calls += steps * len(ids)
    key = 'draw', steps, count
    if key not in self._kept:
      kernel = linear.form(steps, True, bands)
      self._kept[key] = self._mapped(kernel, 'last')
    return self._kept[key](
      self._shared(linear.grid_of(table), Plan(linear.rows(table, steps)), seed), self._batch(ids)
    )

  def path(
    self,
    name: str,
    options: dict[str, Any],
    grid: StepGrid,
    x: np.ndarray,
    ids: np.ndarray,
    seed: int = 0,
  ) -> np.ndarray:
    """States of a sampler of the library from x [n, *shape] on, one before and one after each step,
    float32 [steps + 1, n, *shape]; compiled once for each sampler and number of steps."""
    batch = (x, *self._batch(ids))
    return np.moveaxis(self._library('all', name, options, grid, seed, batch), 1, 0)

  def _library(self, keep, name, options, grid, seed, batch):
    kernel = samplers.make(name, options, self.schedule)
    self.calls += len(grid.t) * len(batch[0])
    plan, _ = kernel.plan(grid, self.shape)
    rest = {key: value for key, value in options.items() if key not in samplers.NUMBERS}
    key = keep, name, str(rest), len(grid.t)
    if key not in self._kept:
      self._kept[key] = self._mapped(kernel, keep)
    return self._kept[key](self._shared(grid, plan, seed), batch)

  def end(
    self, name: str, options: dict[str, Any], grid: StepGrid, seed: int, ids: np.ndarray
  ) -> np.ndarray:
    """Samples of a sampler of the library, float32 [n, *shape]; compiled as `path`."""
    return self._library('last', name, options, grid, seed, self._batch(ids))

  def start(self, b: float, seed: int, ids: np.ndarray) -> np.ndarray:
    """x_T of `draw`, where the noise level is b."""
    keys = noise_lib.sample_keys(seed, np.asarray(ids, np.uint32))
    return np.asarray(jnp.float32(b) * noise_lib.initial(keys, self.shape))

  def predict(self, x: np.ndarray, time: Time, labels: np.ndarray) -> np.ndarray:
    """x_0 as the denoiser predicts it from states [n, *shape] at one time, with labels [n]."""
    self.calls += len(x)
    if 'predict' not in self._kept:

      def fn(shared, batch):
        weights, time = shared
        return self.bind(weights)(batch[0], time, batch[1]).x0

      self._kept['predict'] = parallel.map_batches(fn, self.batch)
    time = Time(*(np.asarray(part, np.float32) for part in time))
    shared = self._there(), parallel.replicate(time, local=True)
    return self._kept['predict'](shared, (x, np.asarray(labels, np.int32)))

  def clipped(self, x: Array) -> Array:
    """Samples in the range of the data."""
    return x if self.limits is None else jnp.clip(x, *self.limits)

  def times(self, t: np.ndarray) -> np.ndarray:
    """Times at which the denoiser may be asked, falling and as near to `t` as may be."""
    t = np.clip(np.asarray(t, np.float64), self.schedule.first, self.schedule.last)
    if self.whole_times:
      t = np.round(t)
      for n in range(len(t) - 2, -1, -1):  # from the clean end: each above the next
        t[n] = max(t[n], t[n + 1] + 1)
      t = np.minimum(t, self.schedule.last - np.arange(len(t)))
    return t

  def _mapped(self, kernel, keep):
    """(shared, (x where states are kept, ids, labels)) -> samples, or states [n, N + 1, ...]."""
    shape = self.shape

    def fn(shared, batch):
      (weights, (grid, plan, seed)), (*start, ids, cond) = shared, batch
      keys = noise_lib.sample_keys(seed, ids)
      at = lambda n: noise_lib.at_step(keys, n, shape)
      x = start[0] if start else initial_state(grid, keys, shape)
      result = run(kernel, self.bind(weights), grid, plan, x, at, cond, keep)
      if keep == 'last':
        return self.clipped(result.x)
      return jnp.moveaxis(jnp.concatenate([x[None], result.path]), 0, 1)

    return parallel.map_batches(fn, self.batch)

  def _shared(self, grid, plan, seed):
    plan = jax.tree.map(np.asarray, plan)
    return self._there(), parallel.replicate((grid, plan, np.uint32(seed)), local=True)

  def _batch(self, ids):
    return np.asarray(ids, np.uint32), self.labels(np.asarray(ids))

  def _there(self):
    if 'weights' not in self._kept:
      self._kept['weights'] = parallel.replicate(self.weights, local=True)
    return self._kept['weights']
