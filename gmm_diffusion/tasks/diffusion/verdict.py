"""What a comparison of samplers shows, in words.

All samplers start from the same noise, so their metrics are compared sample by sample. A difference
is shown where it is outside its 95 % interval, widened for the number of comparisons [Bonferroni];
everything else is not shown to differ. The intervals hold the spread over samples, and not that
over training seeds or draws of offsets.
"""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from gmm_diffusion.metrics.estimates import Estimate, difference
from gmm_diffusion.samplers.base import Report


class Row(NamedTuple):
  """One kernel, or stored images.

  Attributes:
    names: of the samplers that are this kernel; several draw the same samples.
    kind: 'sampler', 'control' or 'data'.
    control: name of its isotropic control, or ''.
    nfe: denoiser calls per sample; 0 for images that were not drawn here.
    metrics: name -> Estimate; a row without any is shown, but not in the table.
    strip: PNG of the seeds that all samplers share.
    report: moment report; empty for what is no mixture.
  """

  names: tuple[str, ...]
  kind: str
  control: str
  nfe: int
  metrics: dict[str, Estimate]
  strip: bytes
  report: Report = []

  @property
  def name(self) -> str:
    """All names."""
    return ' = '.join(self.names)


def merged(first: Row, second: Row) -> Row:
  """One row of two samplers that drew the same samples."""
  kind = 'sampler' if 'sampler' in (first.kind, second.kind) else first.kind
  return first._replace(
    names=first.names + second.names,
    kind=kind,
    control=first.control or second.control,
    report=first.report or second.report,
  )


class Verdict(NamedTuple):
  """metric: the one that decides; best: the row shown to be better than every other, or None;
  first: that with the best value; words: sentences."""

  metric: str
  best: Row | None
  first: Row
  words: list[str]


def _differs(found: Estimate, comparisons: int) -> bool:
  wider = statistics.NormalDist().inv_cdf(1 - 0.025 / comparisons) / 1.96
  return abs(found.value) > wider * found.half


def listed(names: Sequence[str]) -> str:
  """a, b and c."""
  return ' and '.join(filter(None, [', '.join(names[:-1]), names[-1]]))


def control_of(row: Row, rows: Sequence[Row]) -> Row | None:
  """The row of its control, if it is another kernel."""
  found = next((other for other in rows if row.control in other.names), None)
  return None if found is row else found


def stands_out(found: Verdict, rows: Sequence[Row]) -> bool:
  """Whether there is a best row whose interval no other one overlaps."""
  if found.best is None:
    return False
  own = found.best.metrics[found.metric]
  others = [
    row.metrics[found.metric]
    for row in rows
    if row.kind != 'data' and row.metrics and row is not found.best
  ]
  return all(other.high < own.low or own.high < other.low for other in others)


def called(metric: str) -> str:
  """A metric in a sentence."""
  words = metric.replace('frechet', 'Frechet distance').replace('kernel', 'kernel distance')
  return words.replace('_', ' ')


def judge(rows: Sequence[Row], lower: dict[str, bool]) -> Verdict:
  """The verdict on rows that were drawn, by the first of the metrics in `lower` (metric -> whether
  lower is better) that they have."""
  rows = [row for row in rows if row.kind != 'data' and row.metrics]
  metric = next(name for name in lower if name in rows[0].metrics)
  ordered = sorted(rows, key=lambda row: (1 if lower[metric] else -1) * row.metrics[metric].value)
  first, others = ordered[0], ordered[1:]
  away = lambda row: difference(row.metrics[metric], first.metrics[metric])
  tied = [row.name for row in others if not _differs(away(row), len(others))]
  best = None if tied else first
  superlative = 'lowest' if lower[metric] else 'highest'
  value = f'the {superlative} {called(metric)}, {first.metrics[metric]}'
  if not others:
    words = [f'{first.name} has a {called(metric)} of {first.metrics[metric]}.']
  elif best:
    nearest = min(others, key=lambda row: abs(away(row).value))
    gap = away(nearest)
    words = [
      f'{first.name} is best here: it has {value}. On the same noise every other sampler is worse; '
      f'the nearest, {nearest.name}, differs by {gap._replace(value=abs(gap.value))}.'
    ]
  else:
    verb = 'is' if len(tied) == 1 else 'are'
    rest = ' All others are worse.' if len(tied) < len(others) else ''
    words = [
      f'No sampler is shown to be best. {first.name} has {value}; {listed(tied)} {verb} not shown '
      f'to differ from it.{rest}'
    ]
  return Verdict(metric, best, first, words + _of_mixtures(rows, metric, lower[metric]))


def _keeps_moments(step: dict[str, Any]) -> bool:
  """Whether a step has the mean and covariance that it should, up to rounding of the offsets."""
  return max(step['mean_residual'], step['covariance_residual']) < 1e-6


def _of_mixtures(rows, metric, lower):
  pairs = [(row, control_of(row, rows)) for row in rows if row.control]
  pairs = [(row, control) for row, control in pairs if control]
  words, alike = [], []
  for row, control in pairs:
    found = difference(row.metrics[metric], control.metrics[metric])
    if _differs(found, len(pairs)):
      word = 'better' if (found.value < 0) == lower else 'worse'
      words.append(
        f'{row.name} is {word} than its control {control.name}: the difference is {found}.'
      )
    else:
      alike.append(row.name)
  if pairs and not words:
    words = ['No mixture is shown to differ from its control.']
  elif alike:
    words.append(f'{listed(alike)} {"is" if len(alike) == 1 else "are"} not shown to differ.')
  kept = [row.name for row in rows if row.report and all(map(_keeps_moments, row.report))]
  if kept:
    keep = 'keeps' if len(kept) == 1 else 'keep'
    words.append(f'{listed(kept)} {keep} the mean and the variance of every step.')
  return words
