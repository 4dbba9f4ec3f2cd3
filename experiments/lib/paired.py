"""Paired comparisons over seeds: both samplers start from the same noise, so that only their
difference is left."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Difference(NamedTuple):
  """Mean difference over seeds, its 95 % t interval, two-sided p of the t test and of the sign
  test."""

  value: float
  low: float
  high: float
  p: float
  sign_p: float

  def __str__(self) -> str:
    return f'{self.value:+.4f} ± {self.high - self.value:.4f}'


def difference(first: Sequence[float], second: Sequence[float]) -> Difference:
  """first - second, paired; at least two seeds. Without any spread p is 1 for equal values and 0
  for others."""
  d = np.asarray(first, np.float64) - np.asarray(second, np.float64)
  if len(d) < 2:
    raise ValueError(f'a paired comparison needs at least 2 seeds, got {len(d)}')
  mean, error = float(d.mean()), float(d.std(ddof=1) / np.sqrt(len(d)))
  half = float(stats.t.ppf(0.975, len(d) - 1)) * error
  p = float(2 * stats.t.sf(abs(mean) / error, len(d) - 1)) if error > 0 else float(mean == 0)
  signs = d[d != 0]
  sign_p = float(stats.binomtest(int(np.sum(signs > 0)), len(signs)).pvalue) if len(signs) else 1.0
  return Difference(mean, mean - half, mean + half, p, sign_p)


def holm(p: Sequence[float]) -> list[float]:
  """p values corrected for their number [Holm 1979]: the chance of any false alarm among all is at
  most the level."""
  p = np.asarray(p, np.float64)
  order = np.argsort(p)
  corrected = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
  out = np.empty(len(p))
  out[order] = np.minimum(corrected, 1)
  return out.tolist()
