"""A value with its interval, by the bootstrap over generated samples.

The reference set is fixed, as it is wherever numbers are compared. The interval is value +- 1.96
standard errors, not bootstrap percentiles: resampling with repeats shifts Frechet and kernel
distances upwards, while their spread is right.
"""

import math
from typing import Callable, NamedTuple

import numpy as np


class Estimate(NamedTuple):
  """A value and its 95 % interval."""

  value: float
  low: float
  high: float

  def __str__(self) -> str:
    half = self.high - self.value
    digits = max(0, 1 - math.floor(math.log10(half))) if half > 0 else 4
    return f'{self.value:.{digits}f} ± {half:.{digits}f}'


class Spread(NamedTuple):
  """Mean and standard deviation (that of a population) over splits or subsets. The second is no standard error."""

  mean: float
  std: float


def spread(values: list[float]) -> Spread:
  """Mean and standard deviation of values."""
  return Spread(float(np.mean(values)), float(np.std(values)))


def bootstrap(statistic: Callable[[np.ndarray], float], n: int, resamples: int, seed: int = 0) -> Estimate:
  """Estimate of statistic(counts), where counts [n] says how often each sample is taken.

  statistic(ones) is the value itself.
  """
  random = np.random.RandomState(seed)
  value = float(statistic(np.ones(n)))
  draws = [statistic(random.multinomial(n, np.full(n, 1 / n)).astype(np.float64)) for _ in range(resamples)]
  half = 1.96 * float(np.std(draws, ddof=1))
  return Estimate(value, value - half, value + half)
