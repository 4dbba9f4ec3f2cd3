"""A value with its interval, by the infinitesimal or delete-one jackknife over generated samples
[Efron & Stein 1981].

The influence of a sample is, to first order, N times the change of the value when it is left out;
the standard error is the standard deviation of the influences over sqrt(N). It needs one pass,
holds where samples are fewer than dimensions, and errs towards wide. (A bootstrap repeats samples,
which lowers the rank of covariances and the number of points that cover a set: of Frechet distances
it made the error up to 3.6 times too large in tests, and of recall up to 1.8 times too small.) The
reference set is fixed, as it is wherever numbers are compared. The interval says nothing of the
bias, which falls with N.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy import special

INTERVAL = '95 %, jackknife over the samples, reference fixed'


class Estimate(NamedTuple):
  """A value and its 95 % interval."""

  value: float
  low: float
  high: float

  @property
  def half(self) -> float:
    """Half the width of the interval."""
    return (self.high - self.low) / 2

  def record(self) -> dict[str, Any]:
    """As records have it, JSON."""
    return {'value': float(self.value), 'interval': [float(self.low), float(self.high)]}

  def __str__(self) -> str:
    digits = max(0, 1 - math.floor(math.log10(self.half))) if self.half > 0 else 4
    return f'{self.value:.{digits}f} ± {self.half:.{digits}f}'


class OfSamples(Estimate):
  """An Estimate from a jackknife, with the influence [N] of each sample."""

  influence: np.ndarray


class Spread(NamedTuple):
  """Mean and standard deviation (that of a population) over splits or subsets. The second is no
  standard error."""

  mean: float
  std: float


def spread(values: list[float]) -> Spread:
  """Mean and standard deviation of values."""
  return Spread(float(np.mean(values)), float(np.std(values)))


def within(value: float | np.floating | np.ndarray, error: float | np.floating) -> Estimate:
  """Estimate of a value with a standard error."""
  return Estimate(float(value), float(value - 1.96 * error), float(value + 1.96 * error))


def of_mean(values: Any) -> Estimate:
  """Mean of independent values with a 95 % t interval; one value has none (nan)."""
  x = np.asarray(values, np.float64)
  if len(x) < 2:
    return Estimate(float(x.mean()), np.nan, np.nan)
  half = special.stdtrit(len(x) - 1, 0.975) * x.std(ddof=1) / np.sqrt(len(x))
  return Estimate(float(x.mean()), float(x.mean() - half), float(x.mean() + half))


def of_share(flags: Any) -> Estimate:
  """Share of true flags with Wilson's 95 % interval, which holds near 0 and 1 too."""
  n, p, z = len(flags), float(np.mean(flags)), 1.96
  centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
  half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
  return Estimate(p, max(0.0, centre - half), min(1.0, centre + half))  # rounding leaves [0, 1]


def p_of_mean(values: Any) -> float:
  """The p-value of a mean of independent values by a two-sided t test against 0; 1 where they do
  not vary."""
  x = np.asarray(values, np.float64)
  if len(x) < 2 or np.ptp(x) == 0:
    return 1.0
  t = x.mean() / (x.std(ddof=1) / np.sqrt(len(x)))
  return float(2 * special.stdtr(len(x) - 1, -abs(t)))


def jackknife(value: float | np.floating | np.ndarray, influence: np.ndarray) -> OfSamples:
  """Estimate of a value from the influence [N] of each sample; N is at least 2."""
  out = OfSamples(*within(value, np.std(influence, ddof=1) / np.sqrt(len(influence))))
  out.influence = influence
  return out


def of_ratio(above: Any, below: Any) -> OfSamples:
  """mean(above) / mean(below), of pairs [N]; nan where the means below are 0."""
  top, bottom = np.asarray(above, np.float64), np.asarray(below, np.float64)
  with np.errstate(invalid='ignore', divide='ignore'):
    value = top.mean() / bottom.mean()
    return jackknife(value, (top - value * bottom) / bottom.mean())


def difference(first: Estimate, second: Estimate) -> Estimate:
  """first - second, for two sets of samples with the same ids and noise.

  Sample by sample, where both come from a jackknife: what two samples of the same noise have in
  common then widens nothing. Otherwise the error is the sum of both, which is never too small.
  """
  a, b = (getattr(one, 'influence', None) for one in (first, second))
  value = first.value - second.value
  if a is not None and b is not None and len(a) == len(b):
    return jackknife(value, a - b)
  return within(value, (first.half + second.half) / 1.96)


def bootstrap(
  statistic: Callable[[np.ndarray], float], n: int, resamples: int = 1000, seed: int = 0
) -> Estimate:
  """Estimate of statistic(counts), where counts [n] says how often each item is taken: for medians,
  where a jackknife fails, and means."""
  random = np.random.RandomState(seed)
  draws = [
    statistic(random.multinomial(n, np.full(n, 1 / n)).astype(np.float64)) for _ in range(resamples)
  ]
  return within(statistic(np.ones(n)), float(np.std(draws, ddof=1)))


def blocks(n: int, size: int) -> list[slice]:
  """Slices of at most `size` that cover range(n)."""
  return [slice(start, min(start + size, n)) for start in range(0, n, size)]
