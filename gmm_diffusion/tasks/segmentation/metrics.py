"""Quality against clicks: IoU curves, numbers of clicks, failures, with bootstrap intervals over
images.

Objects of one image are no independent samples: `images` [N] says of which image each object is,
and whole images are drawn again.
"""

import numpy as np

from gmm_diffusion.metrics import estimates
from gmm_diffusion.metrics.estimates import Estimate
from gmm_diffusion.tasks.segmentation.scenes import BACKGROUND, OBJECT

AT = (1, 2, 3, 5, 10, 20)
LEVELS = (85, 90)  # % of IoU
DIFFERENCE = ' minus none'


def iou(predicted: np.ndarray, mask: np.ndarray) -> float:
  """Intersection over union of bool `predicted` with the object of `mask`; ignored pixels count
  nowhere."""
  union = (predicted & (mask == BACKGROUND)) | (mask == OBJECT)
  return float((predicted & (mask == OBJECT)).sum() / max(1, union.sum()))


def clicks_needed(curves: np.ndarray, level: float) -> np.ndarray:
  """First click at which each curve [N, K] reaches `level`, K where it never does (NoC)."""
  reached = curves >= level
  return np.where(reached.any(1), reached.argmax(1) + 1, curves.shape[1])


def _of_objects(curves: np.ndarray) -> dict[str, np.ndarray]:
  """What is averaged, [N] each."""
  out = {f'IoU@{k}': curves[:, k - 1] for k in AT if k <= curves.shape[1]}
  for level in LEVELS:
    out[f'NoC@{level}'] = clicks_needed(curves, level / 100)
  for level in LEVELS:
    out[f'failures@{level}'] = (curves.max(1) < level / 100).astype(float)
  return out


def _mean(values: np.ndarray, images: np.ndarray) -> Estimate:
  _, index = np.unique(images, return_inverse=True)
  return estimates.bootstrap(
    lambda counts: np.sum(counts[index] * values) / np.sum(counts[index]), index.max() + 1
  )


def summary(curves: np.ndarray, images: np.ndarray) -> dict[str, Estimate]:
  """Means over objects of curves [N, K], IoU after 1..K clicks."""
  return {name: _mean(values, images) for name, values in _of_objects(curves).items()}


def differences(curves: np.ndarray, others: np.ndarray, images: np.ndarray) -> dict[str, Estimate]:
  """Means over objects of curves [N, K] minus others [N, K] of the same objects: what differs
  between objects drops out."""
  return {
    name: _mean(mine - theirs, images)
    for (name, mine), theirs in zip(_of_objects(curves).items(), _of_objects(others).values())
  }


def table(rows: dict[str, np.ndarray], images: np.ndarray) -> dict[str, dict[str, Estimate]]:
  """{row: metric: mean} of curves [N, K] by name, and differences from the row 'none'."""
  out = {name: summary(curves, images) for name, curves in rows.items()}
  for name, curves in rows.items():
    if name != 'none':
      out[name + DIFFERENCE] = differences(curves, rows['none'], images)
  return out


def pooled(curves: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(mean, low, high) [K] of curves [N, K], for a plot."""
  mean, low, high = np.array([_mean(values, images) for values in curves.T]).T
  return mean, low, high
