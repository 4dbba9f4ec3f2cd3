"""Metrics of a sample set against a reference, on any features: the one table of them, and what
each needs."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from gmm_diffusion.errors import UserError
from gmm_diffusion.metrics import frechet, inception_score, kernel, precision_recall, references
from gmm_diffusion.metrics.estimates import Estimate
from gmm_diffusion.metrics.features import Extracted, Features
from gmm_diffusion.metrics.references import Reference, Source

SUBSET = 1000  # of kernel_subsets, as published


class Metric(NamedTuple):
  """A metric.

  Attributes:
    compute: (sample, reference, neighbours) -> Estimates by name; metrics with the same function
      share one call.
    lower: whether a lower value is better.
    sample: the field of Extracted that it reads.
    reference: what it reads of the reference: 'moments', 'features', 'spatial', or '' for none.
    check: (samples, reference images or None, width, neighbours); raises UserError where they are
      too few.
  """

  compute: Callable[[Extracted, Reference, int], dict[str, Estimate]]
  lower: bool
  sample: str
  reference: str
  check: Callable[[int, int | None, int, int], None]


def _enough(n, least, what):
  if n < least:
    raise UserError(f'{n} {what} are too few, it needs at least {least}')


def _frechet_check(least):
  def check(N, M, D, k):
    del k
    frechet.check_count(N, D, least)
    if M is not None:
      frechet.check_count(M, D, what='reference images')

  return check


def _least(samples, both=True):
  """A check of at least samples(k) samples, and as many reference images."""

  def check(N, M, D, k):
    del D
    _enough(N, samples(k), 'samples')
    if both:
      _enough(M, samples(k), 'reference images')

  return check


def _precision_recall(suffix, distances):
  def compute(sample, reference, k):
    found = precision_recall.improved_precision_recall(
      sample.features, reference.features, k, distances
    )
    return {'precision' + suffix: found[0], 'recall' + suffix: found[1]}

  return compute


def _one(name, fn):
  return lambda sample, reference, k: {name: fn(sample, reference)}


def _table():
  is_frechet, any_number = _frechet_check(frechet.FEWEST), _least(lambda k: 3)
  exact, adm, near = (
    _precision_recall('', 'float64'),
    _precision_recall('_adm', 'adm_float16'),
    _least(lambda k: max(3, k + 1)),
  )
  score = lambda fn: (
    lambda sample, reference: inception_score.around(fn(sample.logits), sample.logits)
  )
  rows = {
    'frechet': (
      lambda s, r: frechet.frechet_distance(s.features, r.moments),
      True,
      'features',
      'moments',
      is_frechet,
    ),
    'frechet_infinity': (
      lambda s, r: frechet.frechet_infinity(s.features, r.moments),
      True,
      'features',
      'moments',
      _frechet_check(3),
    ),
    'spatial_frechet': (
      lambda s, r: frechet.frechet_distance(s.spatial, r.spatial),
      True,
      'spatial',
      'spatial',
      is_frechet,
    ),
    'kernel': (
      lambda s, r: kernel.kernel_distance(s.features, r.features),
      True,
      'features',
      'features',
      any_number,
    ),
    'kernel_subsets': (
      lambda s, r: kernel.kernel_subsets_distance(s.features, r.features, size=SUBSET),
      True,
      'features',
      'features',
      _least(lambda k: SUBSET),
    ),
    'precision': (exact, False, 'features', 'features', near),
    'recall': (exact, False, 'features', 'features', near),
    'precision_adm': (adm, False, 'features', 'features', near),
    'recall_adm': (adm, False, 'features', 'features', near),
    'score': (
      lambda s, r: inception_score.inception_score(s.logits),
      False,
      'logits',
      '',
      _least(lambda k: 3, False),
    ),
    'score_splits': (
      score(lambda x: inception_score.split_score(x).mean),
      False,
      'logits',
      '',
      _least(lambda k: 10, False),
    ),
    'score_adm': (
      score(inception_score.adm_score),
      False,
      'logits',
      '',
      _least(lambda k: 3, False),
    ),
  }
  return {
    name: Metric(row[0] if row[0] in (exact, adm) else _one(name, row[0]), *row[1:])
    for name, row in rows.items()
  }


METRICS = _table()
STANDARD = ('frechet', 'spatial_frechet', 'kernel', 'precision', 'recall', 'score')
LOWER_IS_BETTER = {name: metric.lower for name, metric in METRICS.items()}


def check(name: str, features: Features, source: Source, count: int, neighbours: int) -> None:
  """Raises UserError where a metric cannot be had of `count` samples on these features against this
  reference."""
  metric = METRICS[name]
  if metric.sample not in features.dimensions:
    raise UserError(
      f'metric {name!r} needs {metric.sample}, which features {features.name} do not have'
    )
  part = metric.reference
  if source.images is None and part and references.FIELDS.get(part) not in source.known:
    raise UserError(
      f'metric {name!r} needs reference images, and {source.what} has only their mean and '
      f'covariance'
    )
  try:
    metric.check(count, source.size(part), features.dimensions[metric.sample], neighbours)
  except UserError as error:
    raise UserError(f'metric {name!r}: {error}') from error


def check_names(names: Sequence[str]) -> None:
  """Raises UserError for a name that is not in the table."""
  unknown = [name for name in names if name not in METRICS]
  if unknown:
    raise UserError(
      f'unknown evaluate.metrics {", ".join(map(repr, unknown))}; valid: {", ".join(METRICS)}'
    )


def choose(
  names: Sequence[str], features: Features, source: Source, count: int, neighbours: int
) -> tuple[list[str], list[str]]:
  """(names of metrics to compute, reasons why others are left out), before anything slow.

  Names that are given must all be possible. None given are those of STANDARD that these features
  have and that are possible.

  Raises:
    UserError: unknown, or not possible.
  """
  check_names(names)
  chosen, reasons = [], []
  for name in names or [name for name in STANDARD if METRICS[name].sample in features.dimensions]:
    try:
      check(name, features, source, count, neighbours)
      chosen.append(name)
    except UserError as error:
      if names:
        raise
      reasons.append(str(error))
  if not chosen:
    raise UserError(f'none of the metrics can be computed; {reasons[0]}')
  return chosen, reasons


def kinds(names: Sequence[str]) -> tuple[set[str], set[str]]:
  """What metrics read: (fields of Extracted, parts of Reference)."""
  return {METRICS[name].sample for name in names}, {
    METRICS[name].reference for name in names if METRICS[name].reference
  }


def compare(
  sample: Extracted, reference: Reference, names: Sequence[str], neighbours: int
) -> dict[str, Estimate]:
  """Metrics by name, in their order, of what `choose` allows; UserError where one is not finite."""
  compute = functools.cache(lambda fn: fn(sample, reference, neighbours))
  out = {name: compute(METRICS[name].compute)[name] for name in names}
  for name, estimate in out.items():
    if not np.all(np.isfinite(estimate)):
      raise UserError(
        f'metric {name!r} is {estimate.value}, [{estimate.low}, {estimate.high}]; its samples or '
        f'reference {reference.what} are too large to compare, or damaged'
      )
  return out
