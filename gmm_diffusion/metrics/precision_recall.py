"""Improved precision and recall [Kynkaanniemi et al. 2019], float64.

A point lies on a set's manifold if it is within the distance of some member to that member's
k-th neighbour. Precision: share of samples on the reference manifold; recall: the reverse.
"""

import numpy as np

from gmm_diffusion.aliases import UserError
from gmm_diffusion.metrics.estimates import Estimate, bootstrap

_BLOCK = 1024


def _distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  squares = (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T
  return np.sqrt(np.maximum(squares, 0))


def _blocks(n):
  return [slice(start, min(start + _BLOCK, n)) for start in range(0, n, _BLOCK)]


def radii(x: np.ndarray, k: int) -> np.ndarray:
  """Distance of each row of x [N, D] to its k-th neighbour, itself excluded: [N]."""
  if len(x) <= k:
    raise UserError(f'{len(x)} samples have no neighbour number {k}; use more samples or fewer neighbours')
  out = np.empty(len(x))
  for rows in _blocks(len(x)):
    d = _distances(x[rows], x)
    d[np.arange(len(d)), np.arange(rows.start, rows.stop)] = 0  # not 1e-8: rounding would reorder
    out[rows] = np.partition(d, k, axis=1)[:, k]
  return out


def _hits(points: np.ndarray, members: np.ndarray, reach: np.ndarray) -> np.ndarray:
  """[P, M] booleans: point p lies within the reach of member m."""
  return np.concatenate([_distances(points[rows], members) <= reach for rows in _blocks(len(points))])


def improved_precision_recall(sample: np.ndarray, reference: np.ndarray, k: int, resamples: int) -> tuple[Estimate, Estimate]:
  """(precision, recall) of features [N, D] against features [M, D].

  In the bootstrap of recall the radii of the samples stay those of the whole set.
  """
  x, y = np.asarray(sample, np.float64), np.asarray(reference, np.float64)
  on_reference = _hits(x, y, radii(y, k)).any(1).astype(np.float64)
  cover = _hits(y, x, radii(x, k)).astype(np.float32)
  precision = bootstrap(lambda counts: counts @ on_reference / counts.sum(), len(x), resamples)
  recall = bootstrap(lambda counts: np.mean(cover @ counts.astype(np.float32) > 0), len(x), resamples)
  return precision, recall
