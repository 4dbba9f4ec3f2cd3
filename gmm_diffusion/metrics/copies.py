"""Whether samples are copies of training images: they lie nearer to them than new images do
[Meehan, Chaudhuri & Dasgupta 2020].

With d(x) the distance to the nearest training image, the measure is P(d(sample) < d(new image)),
half of it where they are equal: 1/2 where samples are new images, 1 where all are copies. Its
standard error is that of [DeLong, DeLong & Clarke-Pearson 1988].
"""

import numpy as np

from gmm_diffusion.metrics.estimates import Estimate, blocks, within

_BLOCK = 2048


def nearest(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(distance, index) of the row of y [M, D] that is nearest to each row of x [N, D], float64."""
  x = np.asarray(x, np.float64)
  square, index = np.full(len(x), np.inf), np.zeros(len(x), int)
  for rows in blocks(len(y), _BLOCK):
    part = np.asarray(y[rows], np.float64)
    found = (part**2).sum(1)[None] - 2 * x @ part.T
    best = found.argmin(1)
    value = found[np.arange(len(x)), best]
    index = np.where(value < square, best + rows.start, index)
    square = np.minimum(square, value)
  return np.linalg.norm(x - np.asarray(y[index], np.float64), axis=1), index


def nearer(samples: np.ndarray, new: np.ndarray) -> Estimate:
  """P(d(sample) < d(new image)) from the distances [N] of samples and [M] of new images."""
  order = np.sort(new)
  below = lambda d, other: (
    (np.searchsorted(other, d, 'left') + np.searchsorted(other, d, 'right')) / (2 * len(other))
  )
  of_samples, of_new = 1 - below(samples, order), below(new, np.sort(samples))
  error = np.sqrt(of_samples.var(ddof=1) / len(samples) + of_new.var(ddof=1) / len(new))
  return within(of_samples.mean(), error)
