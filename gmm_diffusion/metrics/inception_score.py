"""Inception-style score: exp of the mean KL of p(y | x) to the marginal p(y) [Salimans et al.
2016].

With a classifier other than Inception it is a score of that classifier. The score over all samples
has the least bias; published ones are means over parts, which are lower, and lower still where the
samples are sorted by class.
"""

import numpy as np

from gmm_diffusion.errors import UserError
from gmm_diffusion.metrics.estimates import Estimate, Spread, blocks, jackknife, spread

_BLOCK = 8192
SPLITS, ADM_SIZE = 10, 5000  # as published


def _log_softmax(logits):
  logits = np.asarray(logits, np.float64)
  return logits - np.logaddexp.reduce(logits, 1, keepdims=True)


def inception_score(logits: np.ndarray) -> Estimate:
  """Score of logits [N, C] over all samples, between 1 and C."""
  N, C = np.shape(logits)
  marginal, negative_entropy, cross = np.zeros(C), np.empty(N), np.empty(N)
  for rows in blocks(N, _BLOCK):
    log_p = _log_softmax(logits[rows])
    p = np.exp(log_p)
    marginal += p.sum(0) / N
    negative_entropy[rows] = (p * log_p).sum(1)
  log_marginal = np.log(np.maximum(marginal, 1e-300))
  for rows in blocks(N, _BLOCK):
    cross[rows] = np.exp(_log_softmax(logits[rows])) @ log_marginal
  score = float(np.exp(np.mean(negative_entropy) - marginal @ log_marginal))
  return jackknife(score, score * (negative_entropy - cross))


def _score(logits):
  log_p = _log_softmax(logits)
  p = np.exp(log_p)
  return float(np.exp((p * (log_p - np.log(np.maximum(p.mean(0), 1e-300)))).sum(1).mean()))


def around(mean: float, logits: np.ndarray) -> Estimate:
  """A mean over parts of logits [N, C], with the error of the score over all."""
  half = inception_score(logits).half
  return Estimate(mean, mean - half, mean + half)


def split_score(logits: np.ndarray, splits: int = SPLITS, seed: int | None = 2020) -> Spread:
  """Scores of `splits` equal parts of logits [N, C], shuffled with a seed or, if None, in order; as
  in torch-fidelity."""
  N = len(logits)
  if not 1 <= splits <= N:
    raise UserError(f'cannot split {N} samples into {splits} parts; valid: 1 to {N}')
  order = np.arange(N) if seed is None else np.random.RandomState(seed).permutation(N)
  return spread(
    [_score(logits[order[i * N // splits : (i + 1) * N // splits]]) for i in range(splits)]
  )


def adm_score(logits: np.ndarray, size: int = ADM_SIZE) -> float:
  """Mean score of parts of `size` samples in order, of which the last may be shorter; as in ADM's
  evaluator."""
  if size < 1:
    raise UserError(f'cannot split samples into parts of {size}; valid: 1 or more')
  return spread([_score(logits[rows]) for rows in blocks(len(logits), size)]).mean
