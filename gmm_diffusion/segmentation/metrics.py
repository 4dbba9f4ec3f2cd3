"""Quality against clicks: IoU curves, numbers of clicks, failures, with bootstrap intervals over images."""

import numpy as np

from gmm_diffusion.metrics import estimates
from gmm_diffusion.metrics.estimates import Estimate
from gmm_diffusion.segmentation.data import BACKGROUND, OBJECT

AT = (1, 2, 3, 5, 10, 20)


def iou(predicted: np.ndarray, mask: np.ndarray) -> float:
  """Intersection over union of bool `predicted` with the object of `mask`; ignored pixels count nowhere."""
  union = (predicted & (mask == BACKGROUND)) | (mask == OBJECT)
  return float((predicted & (mask == OBJECT)).sum() / max(1, union.sum()))


def clicks_needed(curves: np.ndarray, level: float) -> np.ndarray:
  """First click at which each curve [N, K] reaches `level`, K where it never does (NoC)."""
  reached = curves >= level
  return np.where(reached.any(1), reached.argmax(1) + 1, curves.shape[1])


def summary(curves: np.ndarray) -> dict[str, Estimate]:
  """Means over objects (one per image) of curves [N, K], IoU after 1..K clicks."""
  mean = lambda values: estimates.bootstrap(lambda counts: np.sum(counts * values) / np.sum(counts), len(values))
  out = {f'IoU@{k}': mean(curves[:, k - 1]) for k in AT if k <= curves.shape[1]}
  for level in (85, 90):
    out[f'NoC@{level}'] = mean(clicks_needed(curves, level / 100))
  for level in (85, 90):
    out[f'failures@{level}'] = mean((curves.max(1) < level / 100).astype(float))
  return out


def pooled(curves: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(mean, low, high) [K] of curves [N, K], for a plot."""
  found = [estimates.bootstrap(lambda counts, v=values: np.sum(counts * v) / np.sum(counts), len(values)) for values in curves.T]
  return tuple(np.array(part) for part in zip(*found))
