"""Kernel distance: unbiased squared MMD with the kernel (x . y / D + 1)^3 [Binkowski et al.
2018]."""

import numpy as np

from gmm_diffusion.errors import UserError
from gmm_diffusion.metrics.estimates import Estimate, Spread, blocks, jackknife, spread, within

_BLOCK = 2048  # rows of a block of the kernel, in float64


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  base = x @ y.T
  base /= x.shape[1]
  base += 1
  cube = base * base  # a power is many times slower
  cube *= base
  return cube


def _block(x, rows):
  return np.asarray(x[rows], np.float64)


def _within(x: np.ndarray) -> np.ndarray:
  """Sums over the other rows of the kernel of x [N, D] with itself: [N]."""
  out = np.zeros(len(x))
  for rows in blocks(len(x), _BLOCK):
    for columns in blocks(rows.stop, _BLOCK):  # the lower triangle
      kernel = _kernel(_block(x, rows), _block(x, columns))
      if rows == columns:
        np.fill_diagonal(kernel, 0)
      else:
        out[columns] += kernel.sum(0)
      out[rows] += kernel.sum(1)
  return out


def kernel_distance(sample: np.ndarray, reference: np.ndarray) -> Estimate:
  """Squared MMD of features [N, D] to features [M, D], over all pairs; N and M at least 3."""
  x, y, N, M = sample, reference, len(sample), len(reference)
  within_x, constant = _within(x), _within(y).sum() / (M * (M - 1))
  across = np.zeros(N)
  for rows in blocks(N, _BLOCK):
    for columns in blocks(M, _BLOCK):
      across[rows] += _kernel(_block(x, rows), _block(y, columns)).sum(1) / M
  value = within_x.sum() / (N * (N - 1)) - 2 * across.mean() + constant
  without = (
    (within_x.sum() - 2 * within_x) / ((N - 1) * (N - 2))
    - 2 * (across.sum() - across) / (N - 1)
    + constant
  )
  return jackknife(value, (N - 1) * (value - without))


def kernel_subsets(
  sample: np.ndarray, reference: np.ndarray, subsets: int = 100, size: int = 1000, seed: int = 2020
) -> Spread:
  """Squared MMD of random subsets of features [N, D] and [M, D], `size` of each without repeats; as
  in torch-fidelity.

  Its mean estimates what kernel_distance does, with more noise; published kernel distances are of
  this form.
  """
  x, y = sample, reference
  if not 2 <= size <= min(len(x), len(y)):
    raise UserError(
      f'cannot draw subsets of {size} from {len(x)} samples and {len(y)} of reference; '
      f'valid: 2 to {min(len(x), len(y))}'
    )
  random = np.random.RandomState(seed)

  def within_mean(z):
    kernel = _kernel(z, z)
    return (kernel.sum() - np.trace(kernel)) / (size * (size - 1))

  values = []
  for _ in range(subsets):
    a, b = (_block(z, random.choice(len(z), size, replace=False)) for z in (x, y))
    values.append(within_mean(a) + within_mean(b) - 2 * _kernel(a, b).mean())
  return spread(values)


def kernel_subsets_distance(
  sample: np.ndarray, reference: np.ndarray, subsets: int = 100, size: int = 1000
) -> Estimate:
  """Mean over subsets, with the error of having few subsets and that of having N samples, at most
  size / N of their variance.

  Up to twice too wide, as the variance of subsets has a part from drawing of the reference.
  """
  mean, std = kernel_subsets(sample, reference, subsets, size)
  return within(mean, std * np.sqrt(1 / subsets + size / len(sample)))
