"""Kernel distance: unbiased squared MMD with the kernel (x . y / D + 1)^3 [Binkowski et al. 2018]."""

import numpy as np

from gmm_diffusion.metrics.estimates import Estimate, bootstrap


_BLOCK = 1024


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  return (x @ y.T / x.shape[1] + 1) ** 3


def _blocks(x: np.ndarray):
  return (x[start:start + _BLOCK] for start in range(0, len(x), _BLOCK))


def kernel_distance(sample: np.ndarray, reference: np.ndarray, resamples: int) -> Estimate:
  """Squared MMD of features [N, D] to features [M, D]; memory O(N^2 + N + M)."""
  x, y = np.asarray(sample, np.float64), np.asarray(reference, np.float64)
  within = _kernel(x, x)
  np.fill_diagonal(within, 0)
  across = np.concatenate([_kernel(rows, y).mean(1) for rows in _blocks(x)])
  diagonal = ((y**2).sum(1) / y.shape[1] + 1) ** 3
  constant = (sum(_kernel(rows, y).sum() for rows in _blocks(y)) - diagonal.sum()) / (len(y) * (len(y) - 1))

  def statistic(counts):
    total = counts.sum()
    pairs = total**2 - counts @ counts  # pairs of different samples
    return counts @ within @ counts / pairs - 2 * counts @ across / total + constant

  return bootstrap(statistic, len(x), resamples)
