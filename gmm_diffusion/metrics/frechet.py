"""Frechet distance between Gaussians fitted to features [Heusel et al. 2017, eq. 6].

  |m_1 - m_2|^2 + tr S_1 + tr S_2 - 2 tr (S_1 S_2)^(1/2)

The last trace is the sum of the square roots of the eigenvalues of S_1^(1/2) S_2 S_1^(1/2), which
is symmetric: no matrix square root of a non-symmetric product, no complex numbers, and exact for
rank-deficient covariances.
"""

from typing import NamedTuple

import numpy as np

from gmm_diffusion.metrics.estimates import Estimate, bootstrap


class Statistics(NamedTuple):
  """Mean [D] and covariance [D, D], float64."""

  mean: np.ndarray
  covariance: np.ndarray


def statistics(features: np.ndarray, counts: np.ndarray | None = None) -> Statistics:
  """Mean and unbiased covariance of features [N, D], each taken counts[i] times."""
  features = np.asarray(features, np.float64)
  counts = np.ones(len(features)) if counts is None else counts
  total = counts.sum()
  mean = counts @ features / total
  centred = features - mean
  return Statistics(mean, (centred * counts[:, None]).T @ centred / (total - 1))


def _sqrt(values: np.ndarray) -> np.ndarray:
  """Square roots of eigenvalues; those below the rounding of the largest count as zero."""
  return np.sqrt(np.where(values > len(values) * np.finfo(float).eps * values.max(), values, 0))


def _root(covariance: np.ndarray) -> np.ndarray:
  values, vectors = np.linalg.eigh(covariance)
  return (vectors * _sqrt(values)) @ vectors.T


def distance(first: Statistics, second: Statistics, root: np.ndarray | None = None) -> float:
  """Frechet distance; `root` is the square root of the first covariance, if it is at hand."""
  root = _root(first.covariance) if root is None else root
  values = np.linalg.eigvalsh(root @ second.covariance @ root)
  gap = first.mean - second.mean
  traces = np.trace(first.covariance) + np.trace(second.covariance)
  return float(gap @ gap + traces - 2 * _sqrt(values).sum())


def frechet_distance(sample: np.ndarray, reference: np.ndarray, resamples: int) -> Estimate:
  """Frechet distance of features [N, D] to features [M, D], with an interval over the N."""
  target = statistics(reference)
  root = _root(target.covariance)
  return bootstrap(lambda counts: distance(target, statistics(sample, counts), root), len(sample), resamples)
