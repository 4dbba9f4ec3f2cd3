"""Kernel distance: unbiased squared MMD with the kernel (x . y / D + 1)^3 [Binkowski et al. 2018]."""

import numpy as np

from gmm_diffusion.aliases import UserError
from gmm_diffusion.metrics.estimates import Estimate, Spread, bootstrap, spread

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


def kernel_subsets(sample: np.ndarray, reference: np.ndarray, subsets: int = 100, size: int = 1000, seed: int = 2020) -> Spread:
  """Squared MMD of random subsets of features [N, D] and [M, D], `size` of each without repeats; as in torch-fidelity.

  Its mean estimates what kernel_distance does, with more noise; published kernel distances are of this form.
  """
  x, y = np.asarray(sample, np.float64), np.asarray(reference, np.float64)
  if not 2 <= size <= min(len(x), len(y)):
    raise UserError(f'cannot draw subsets of {size} from {len(x)} samples and {len(y)} of reference; '
                    f'valid: 2 to {min(len(x), len(y))}')
  random = np.random.RandomState(seed)

  def within(z):
    kernel = _kernel(z, z)
    return (kernel.sum() - np.trace(kernel)) / (size * (size - 1))

  values = []
  for _ in range(subsets):
    a, b = x[random.choice(len(x), size, replace=False)], y[random.choice(len(y), size, replace=False)]
    values.append(within(a) + within(b) - 2 * _kernel(a, b).mean())
  return spread(values)
