"""Two sets of images of the same noise, image by image; novelty and memorisation. All with
intervals over the images.

Published tables of "r^2" between machines and networks hold Pearson's r, never squared; here both
stand under their own names.
"""

import numpy as np

from gmm_diffusion.metrics.estimates import Estimate, bootstrap, of_share


def _rows(images: np.ndarray) -> np.ndarray:
  return np.asarray(images, np.float64).reshape(len(images), -1)


def pearson(one: np.ndarray, other: np.ndarray) -> np.ndarray:
  """Correlation of the values of each pair of images [N, ...], [N]; 0 where an image is
  constant."""
  centred = lambda x: x - x.mean(1, keepdims=True)
  return cosine(centred(_rows(one)), centred(_rows(other)))


def cosine(one: np.ndarray, other: np.ndarray) -> np.ndarray:
  """Cosine of each pair [N, ...], [N]; 0 where one is zero."""
  one, other = _rows(one), _rows(other)
  norm = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
  return np.sum(one * other, 1) / np.where(norm > 0, norm, 1)


def nearest(
  images: np.ndarray, known: np.ndarray, block: int = 256
) -> tuple[np.ndarray, np.ndarray]:
  """Index of the nearest of `known` and the root mean square distance to it, for each image, [N]
  each."""
  x, y = _rows(images), _rows(known)
  norms = np.sum(y**2, 1)
  index, squares = [], []
  for start in range(0, len(x), block):
    part = x[start : start + block]
    found = norms[None] - 2 * part @ y.T
    best = np.argmin(found, 1)
    index.append(best)
    squares.append(np.sum((part - y[best]) ** 2, 1))
  return np.concatenate(index), np.sqrt(np.concatenate(squares) / x.shape[1])


def median(
  values: np.ndarray, resamples: int = 1000, low: float = -np.inf, high: float = np.inf
) -> Estimate:
  """Median with a 95 % interval by the bootstrap over the values, cut where values cannot be."""
  out = bootstrap(
    lambda counts: np.median(np.repeat(values, counts.astype(int))), len(values), resamples
  )
  return Estimate(out.value, max(low, out.low), min(high, out.high))


def agreement(machine: np.ndarray, network: np.ndarray) -> dict[str, Estimate]:
  """Medians of Pearson's r, of its square, and of the cosine, between images of the same noise."""
  r = pearson(machine, network)
  return {
    'r': median(r, low=-1, high=1),
    'r2': median(r**2, low=0, high=1),
    'cosine': median(cosine(machine, network), low=-1, high=1),
  }


def baselines(network: np.ndarray, known: np.ndarray) -> dict[str, Estimate]:
  """What r has to be compared with: the nearest training image, and another sample of the
  network."""
  index, _ = nearest(network, known)
  return {
    'nearest training image': median(pearson(known[index], network), low=-1, high=1),
    'random pair': median(pearson(np.roll(network, 1, 0), network), low=-1, high=1),
  }


def memorised(images: np.ndarray, known: np.ndarray, held_out: np.ndarray) -> dict[str, Estimate]:
  """Distance to the nearest training image beside that of held-out data, and the share nearer than
  95 % of these."""
  _, distance = nearest(images, known)
  _, usual = nearest(held_out, known)
  return {
    'distance': median(distance, low=0),
    'held-out distance': median(usual, low=0),
    'memorised': of_share(distance < np.quantile(usual, 0.05)),
  }
