"""Improved precision and recall [Kynkaanniemi et al. 2019].

A point lies on a set's manifold if it is within the distance of some member to that member's
k-th neighbour. Precision: share of samples on the reference manifold; recall: the reverse.
Distances are float64, or, for comparison with numbers from ADM's evaluator, its own
(adm_float16.py). They are computed block by block; none are kept.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gmm_diffusion.errors import UserError
from gmm_diffusion.metrics import adm_float16
from gmm_diffusion.metrics.estimates import Estimate, blocks, jackknife


class Distances(NamedTuple):
  """A way to compute distances, or what grows with them.

  Attributes:
    between: [n, D], [m, D] -> [n, m].
    block: rows and columns at a time.
    zero: whether the distance of a point to itself is set to zero.
  """

  between: Callable[[np.ndarray, np.ndarray], np.ndarray]
  block: int
  zero: bool


def _distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  squares = (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T
  return np.sqrt(np.maximum(squares, 0))


DISTANCES = {
  'float64': Distances(_distances, 2048, True),
  'adm_float16': Distances(adm_float16.distances, adm_float16.BLOCK, False),
}


def radii(x: np.ndarray, k: int, distances: Distances = DISTANCES['float64']) -> np.ndarray:
  """Distance of each row of x [N, D] to its k-th neighbour, itself excluded: [N]."""
  if len(x) <= k:
    raise UserError(
      f'{len(x)} samples have no neighbour number {k}; use more samples or fewer neighbours'
    )
  nearest = np.full((len(x), k + 1), np.inf)
  for rows in blocks(len(x), distances.block):
    for columns in blocks(len(x), distances.block):
      d = distances.between(x[rows], x[columns])
      if distances.zero and rows == columns:
        np.fill_diagonal(d, 0)  # not 1e-8: rounding would reorder
      if d.shape[1] > k + 1:
        d = np.partition(d, k, axis=1)[:, : k + 1]
      nearest[rows] = np.sort(np.concatenate([nearest[rows], d], 1), 1)[:, : k + 1]
  return nearest[:, k]


def improved_precision_recall(
  sample: np.ndarray, reference: np.ndarray, k: int, distances: str = 'float64'
) -> tuple[Estimate, Estimate]:
  """(precision, recall) of features [N, D] against features [M, D].

  The influence of a sample on recall is what it alone covers; in the interval the radii of the
  others stay.

  Args:
    distances: 'float64', or 'adm_float16' for the values of ADM's evaluator.
  """
  if distances not in DISTANCES:
    raise UserError(f'unknown distances {distances!r}; valid: {", ".join(DISTANCES)}')
  way, x, y = DISTANCES[distances], sample, reference
  x_reach, y_reach = radii(x, k, way), radii(y, k, way)
  on_reference, covers, last = np.zeros(len(x), bool), np.zeros(len(y), int), np.zeros(len(y), int)
  for rows in blocks(len(y), way.block):
    for columns in blocks(len(x), way.block):
      d = way.between(y[rows], x[columns])
      on_reference[columns] |= (d <= y_reach[rows, None]).any(0)
      cover = d <= x_reach[columns]
      covers[rows] += cover.sum(1)
      last[rows] = np.where(cover.any(1), columns.start + cover.argmax(1), last[rows])
  alone = np.bincount(last[covers == 1], minlength=len(x))
  return (
    jackknife(float(on_reference.mean()), on_reference.astype(float)),
    jackknife(float(np.mean(covers > 0)), (len(x) - 1) * alone / len(y)),
  )
