"""Metrics of a sample set against a reference set, on any features."""

import numpy as np

from gmm_diffusion.aliases import UserError
from gmm_diffusion.metrics import frechet, inception_score, kernel, precision_recall
from gmm_diffusion.metrics.estimates import Estimate

# Name -> whether a lower value is better.
LOWER_IS_BETTER = {'frechet': True, 'kernel': True, 'precision': False, 'recall': False, 'score': False}


def compare(sample: np.ndarray, reference: np.ndarray, logits: np.ndarray | None,
            neighbours: int, resamples: int) -> dict[str, Estimate]:
  """All metrics of features [N, D] against features [M, D]; the score where there are logits."""
  if not np.all(np.isfinite(sample)):
    raise UserError(f'{np.sum(~np.isfinite(sample).all(1))} of {len(sample)} samples have non-finite features')
  if len(sample) < 2:
    raise UserError(f'metrics need at least 2 samples, got {len(sample)}')
  out = {'frechet': frechet.frechet_distance(sample, reference, resamples),
         'kernel': kernel.kernel_distance(sample, reference, resamples)}
  out['precision'], out['recall'] = precision_recall.improved_precision_recall(
      sample, reference, neighbours, resamples)
  if logits is not None:
    out['score'] = inception_score.inception_score(logits, resamples)
  return out
