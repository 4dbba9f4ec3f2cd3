"""Improved precision and recall [Kynkaanniemi et al. 2019].

A point lies on a set's manifold if it is within the distance of some member to that member's
k-th neighbour. Precision: share of samples on the reference manifold; recall: the reverse. Distances are float64, or, for
comparison with numbers from ADM's evaluator, its own (adm_float16.py).
"""

from typing import Callable, NamedTuple

import numpy as np

from gmm_diffusion.aliases import UserError
from gmm_diffusion.metrics import adm_float16
from gmm_diffusion.metrics.estimates import Estimate, bootstrap


class Distances(NamedTuple):
  """A way to compute distances, or what grows with them.

  Attributes:
    between: [N, D], [M, D] -> [N, M].
    block: rows at a time.
    zero: whether the distance of a point to itself is set to zero.
  """

  between: Callable[[np.ndarray, np.ndarray], np.ndarray]
  block: int
  zero: bool


def _distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  squares = (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T
  return np.sqrt(np.maximum(squares, 0))


DISTANCES = {'float64': Distances(_distances, 1024, True),
             'adm_float16': Distances(adm_float16.distances, adm_float16.BLOCK, False)}


def _blocks(n, size):
  return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def radii(x: np.ndarray, k: int, distances: Distances = DISTANCES['float64']) -> np.ndarray:
  """Distance of each row of x [N, D] to its k-th neighbour, itself excluded: [N]."""
  if len(x) <= k:
    raise UserError(f'{len(x)} samples have no neighbour number {k}; use more samples or fewer neighbours')
  out = np.empty(len(x))
  for rows in _blocks(len(x), distances.block):
    d = distances.between(x[rows], x)
    if distances.zero:
      d[np.arange(len(d)), np.arange(rows.start, rows.stop)] = 0  # not 1e-8: rounding would reorder
    out[rows] = np.partition(d, k, axis=1)[:, k]
  return out


def improved_precision_recall(sample: np.ndarray, reference: np.ndarray, k: int, resamples: int,
                              distances: str = 'float64') -> tuple[Estimate, Estimate]:
  """(precision, recall) of features [N, D] against features [M, D].

  In the bootstrap of recall the radii of the samples stay those of the whole set. Needs 4 M N bytes.

  Args:
    distances: 'float64', or 'adm_float16' for the values of ADM's evaluator.
  """
  if distances not in DISTANCES:
    raise UserError(f'unknown distances {distances!r}; valid: {", ".join(DISTANCES)}')
  way = DISTANCES[distances]
  x, y = np.asarray(sample, np.float64), np.asarray(reference, np.float64)
  x_reach, y_reach = radii(x, k, way), radii(y, k, way)
  on_reference, cover = np.zeros(len(x), bool), np.empty((len(y), len(x)), np.float32)
  for rows in _blocks(len(y), way.block):
    d = way.between(y[rows], x)
    on_reference |= (d <= y_reach[rows, None]).any(0)
    cover[rows] = d <= x_reach
  precision = bootstrap(lambda counts: counts @ on_reference / counts.sum(), len(x), resamples)
  recall = bootstrap(lambda counts: np.mean(cover @ counts.astype(np.float32) > 0), len(x), resamples)
  return precision, recall
