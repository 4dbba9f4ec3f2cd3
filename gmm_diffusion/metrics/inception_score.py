"""Inception-style score: exp of the mean KL of p(y | x) to the marginal p(y) [Salimans et al. 2016].

One split over all samples. With a classifier other than Inception it is a score of that classifier.
"""

import numpy as np

from gmm_diffusion.metrics.estimates import Estimate, bootstrap


def inception_score(logits: np.ndarray, resamples: int) -> Estimate:
  """Score of logits [N, C], between 1 and C."""
  logits = np.asarray(logits, np.float64)
  log_p = logits - np.logaddexp.reduce(logits, 1, keepdims=True)
  p = np.exp(log_p)
  negative_entropy = (p * log_p).sum(1)

  def statistic(counts):
    weights = counts / counts.sum()
    marginal = weights @ p
    return np.exp(weights @ negative_entropy - marginal @ np.log(np.maximum(marginal, 1e-300)))

  return bootstrap(statistic, len(logits), resamples)
