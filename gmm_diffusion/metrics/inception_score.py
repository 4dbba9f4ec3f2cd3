"""Inception-style score: exp of the mean KL of p(y | x) to the marginal p(y) [Salimans et al. 2016].

With a classifier other than Inception it is a score of that classifier. The score over all samples has the least bias;
published ones are means over parts, which are lower, and lower still where the samples are sorted by class.
"""

import numpy as np

from gmm_diffusion.aliases import UserError
from gmm_diffusion.metrics.estimates import Estimate, Spread, bootstrap, spread


def _log_softmax(logits):
  logits = np.asarray(logits, np.float64)
  return logits - np.logaddexp.reduce(logits, 1, keepdims=True)


def inception_score(logits: np.ndarray, resamples: int) -> Estimate:
  """Score of logits [N, C] over all samples, between 1 and C."""
  log_p = _log_softmax(logits)
  p = np.exp(log_p)
  negative_entropy = (p * log_p).sum(1)

  def statistic(counts):
    weights = counts / counts.sum()
    marginal = weights @ p
    return np.exp(weights @ negative_entropy - marginal @ np.log(np.maximum(marginal, 1e-300)))

  return bootstrap(statistic, len(logits), resamples)


def _score(log_p):
  p = np.exp(log_p)
  return float(np.exp((p * (log_p - np.log(np.maximum(p.mean(0), 1e-300)))).sum(1).mean()))


def split_score(logits: np.ndarray, splits: int = 10, seed: int | None = 2020) -> Spread:
  """Scores of `splits` equal parts of logits [N, C], shuffled with a seed or, if None, in order; as in torch-fidelity."""
  log_p, N = _log_softmax(logits), len(logits)
  if not 1 <= splits <= N:
    raise UserError(f'cannot split {N} samples into {splits} parts; valid: 1 to {N}')
  if seed is not None:
    log_p = log_p[np.random.RandomState(seed).permutation(N)]
  return spread([_score(log_p[i * N // splits:(i + 1) * N // splits]) for i in range(splits)])


def adm_score(logits: np.ndarray, size: int = 5000) -> float:
  """Mean score of parts of `size` samples in order, of which the last may be shorter; as in ADM's evaluator."""
  log_p = _log_softmax(logits)
  if size < 1:
    raise UserError(f'cannot split samples into parts of {size}; valid: 1 or more')
  return spread([_score(log_p[start:start + size]) for start in range(0, len(log_p), size)]).mean
