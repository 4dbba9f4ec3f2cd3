"""Frechet distance between Gaussians fitted to features [Heusel et al. 2017, eq. 6].

  |m_1 - m_2|^2 + tr S_1 + tr S_2 - 2 tr (S_1 S_2)^(1/2)

With S_i = L_i L_i^T the last trace is the sum of the singular values of L_1^T L_2. The factors come
from a Cholesky decomposition with pivots, which stops at the rank: no root of a non-symmetric
product, no complex numbers, and exact for rank-deficient covariances. sFID is the same distance on
other features [Nash et al. 2021].

With N samples the distance is too large, by about 1/N: compare values of equal N only, or
extrapolate [Chong & Forsyth 2020].
"""

from typing import NamedTuple

import numpy as np
from scipy import linalg

from gmm_diffusion.errors import UserError
from gmm_diffusion.metrics.estimates import Estimate, blocks, jackknife, within

_BLOCK = 2048  # rows in float64 at a time
FEWEST = (
  1 / 8
)  # samples per dimension, below which a distance says more about their number than about them


class Statistics(NamedTuple):
  """Mean [D] and covariance [D, D], float64."""

  mean: np.ndarray
  covariance: np.ndarray


class Accumulator:
  """Statistics of features that arrive in batches [Chan et al. 1979]; keeps [D, D]."""

  def __init__(self):
    self.count, self.mean, self.scatter = 0, np.zeros(()), np.zeros(())

  def add(self, features: np.ndarray) -> None:
    """Adds features [N, D] of any floating dtype."""
    for rows in blocks(len(features), _BLOCK):
      x = np.asarray(features[rows], np.float64)
      mean = x.mean(0)
      x = x - mean
      gap, total = mean - self.mean, self.count + len(x)
      self.scatter = self.scatter + x.T @ x + np.outer(gap, gap) * (self.count * len(x) / total)
      self.mean, self.count = self.mean + gap * (len(x) / total), total

  def statistics(self) -> Statistics:
    """Mean and unbiased covariance of at least two samples."""
    return Statistics(self.mean, self.scatter / (self.count - 1))


def statistics(features: np.ndarray) -> Statistics:
  """Mean and unbiased covariance of features [N, D]."""
  out = Accumulator()
  out.add(features)
  return out.statistics()


def _factor(covariance: np.ndarray) -> np.ndarray:
  """L [D, rank] with L L^T = covariance [D, D], up to rounding."""
  packed, pivots, rank, _ = linalg.lapack.dpstrf(covariance, lower=1)
  out = np.empty((len(covariance), rank))
  out[pivots - 1] = np.tril(packed)[:, :rank]
  return out


def distance(first: Statistics, second: Statistics, factor: np.ndarray | None = None) -> float:
  """Frechet distance; `factor` is that of the first covariance, if it is at hand."""
  factor = _factor(first.covariance) if factor is None else factor
  values = linalg.svdvals(factor.T @ _factor(second.covariance))
  gap = first.mean - second.mean
  traces = np.trace(first.covariance) + np.trace(second.covariance)
  return float(gap @ gap + traces - 2 * values.sum())


def check_count(
  samples: int, dimensions: int, fewest: float = FEWEST, what: str = 'samples'
) -> None:
  """Raises UserError for fewer than `fewest` samples per dimension, or fewer than two."""
  least = max(2, int(np.ceil(fewest * dimensions)))
  if samples < least:
    raise UserError(
      f'{samples} {what} are too few for a Frechet distance on {dimensions} features: their '
      f'covariance has at most {max(samples - 1, 0)} directions, and the distance would mostly say '
      f'how few they are; use at least {least}, better more than {dimensions} (published values: '
      f'50000)'
    )


def _target(reference):
  if isinstance(reference, Statistics):
    return reference
  check_count(*np.shape(reference), what='reference samples')
  return statistics(reference)


def influence(
  sample: np.ndarray, own: Statistics, target: Statistics, factor: np.ndarray
) -> np.ndarray:
  """Influence [N] of each row of features [N, D] with statistics `own` on its distance to the
  target with this factor.

  The gradient of the distance is 2 (m - m_2) in the mean and I - T in the covariance S, where T = L
  (L^T S L)^(-1/2) L^T is the optimal transport map to the target L L^T [Dowson & Landau 1982].
  Where S has lower rank, so has T, with the pseudo-inverse: that is the exact gradient in the
  weights of the samples, which do not leave their span.
  """
  values, vectors = linalg.eigh(factor.T @ own.covariance @ factor)
  kept = values > np.finfo(float).eps * len(own.mean) * values[-1:].sum()
  root = factor @ (vectors[:, kept] * values[kept] ** -0.25)  # root root^T = T
  out = np.empty(len(sample))
  for rows in blocks(len(sample), _BLOCK):
    x = sample[rows] - own.mean
    out[rows] = 2 * x @ (own.mean - target.mean) + (x**2).sum(1) - ((x @ root) ** 2).sum(1)
  return out


def frechet_distance(sample: np.ndarray, reference: np.ndarray | Statistics) -> Estimate:
  """Frechet distance of features [N, D] to features [M, D] or their statistics, with an interval
  over the N.

  Raises:
    UserError: fewer than D / 8 samples. Up to D the covariance is rank deficient: the value is
      exact, its bias large.
  """
  check_count(*np.shape(sample))
  target, own = _target(reference), statistics(sample)
  factor = _factor(target.covariance)
  return jackknife(distance(target, own, factor), influence(sample, own, target, factor))


def frechet_infinity(
  sample: np.ndarray,
  reference: np.ndarray | Statistics,
  points: int = 15,
  smallest: int = 0,
  seed: int = 0,
) -> Estimate:
  """Frechet distance extrapolated to infinitely many samples: the intercept of a line through
  distance over 1/n.

  n runs over `points` sizes from `smallest` to N in equal steps, each a random subset without
  repeats [Chong & Forsyth 2020, section 3]. The bias of the reference, which has M samples, stays.
  The interval is that of the distance at N, widened by the error of the intercept; it knows nothing
  of the curve that the bias is at small n.

  Args:
    sample: [N, D].
    reference: [M, D] or its statistics.
    points: at least 3.
    smallest: 0 for N / 10, but at least 2 D; for less the bias is far from a line.
    seed: of the subsets.

  Raises:
    UserError: fewer than 3 D samples, or sizes that give no line.
  """
  N, D = np.shape(sample)
  check_count(N, D, 3)
  smallest = smallest or max(N // 10, 2 * D)
  if points < 3 or not 2 <= smallest < N:
    raise UserError(
      f'cannot fit a line to distances at {points} sizes from {smallest} to {N}; '
      f'valid: 3 sizes or more, from 2 to {N - 1} on'
    )
  target = _target(reference)
  factor, random = _factor(target.covariance), np.random.RandomState(seed)
  sizes = np.linspace(smallest, N, points).astype(int)
  values = [
    distance(target, statistics(sample[random.choice(N, n, replace=False)]), factor) for n in sizes
  ]
  design = np.stack([np.ones(points), 1 / sizes], 1)
  line, rest, *_ = np.linalg.lstsq(design, values, rcond=None)
  error = np.sqrt(rest[0] / (points - 2) * np.linalg.inv(design.T @ design)[0, 0])
  return within(line[0], np.hypot(frechet_distance(sample, target).half / 1.96, error))
