"""The patch size at which a machine is most like a network, for each noise level [ELS,
calibration].

Along the network's own trajectories; like is the cosine of the two scores (those of eps), median
over the samples.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gmm_diffusion.tasks.creativity.compare import cosine
from gmm_diffusion.types import Array, StepGrid, Time


class Calibration(NamedTuple):
  """sizes: ((b, k), ...) with increasing b, as score_machines.make takes them; cosines [N,
  candidates] of the grid's steps."""

  sizes: tuple[tuple[float, int], ...]
  candidates: tuple[int, ...]
  levels: np.ndarray
  cosines: np.ndarray


def calibrate(
  states: Array,
  grid: StepGrid,
  network: Callable[[Array, Time], np.ndarray],
  machine: Callable[[int], Callable[[Array, Time], np.ndarray]],
  candidates: tuple[int, ...],
) -> Calibration:
  """Calibrates.

  Args:
    states: x at each step's time, [N, B, H, W, C].
    grid: the N steps of the trajectories.
    network: (x, time) -> eps.
    machine: patch size -> (x, time) -> eps.
    candidates: patch sizes.

  Returns:
    Calibration; equal cosines take the smaller patch.
  """
  row = lambda n: Time(*(np.asarray(value[n], np.float32) for value in grid.now))
  cosines = np.zeros((len(states), len(candidates)))
  for column, size in enumerate(candidates):
    answer = machine(size)
    for n, x in enumerate(states):
      cosines[n, column] = np.median(cosine(answer(x, row(n)), network(x, row(n))))
  best = np.argmax(cosines, 1)
  order = np.argsort(grid.b_t)
  # a level is used up to halfway to the next
  edges = np.append((grid.b_t[order][1:] + grid.b_t[order][:-1]) / 2, grid.b_t.max())
  sizes = tuple((float(b), int(candidates[best[n]])) for b, n in zip(edges, order))
  return Calibration(sizes, tuple(candidates), np.asarray(grid.b_t), cosines)
