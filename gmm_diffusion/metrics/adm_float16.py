"""Squared distances in float16 as ADM's evaluator has them, whose precision and recall differ by
about 0.005 from exact ones.

The order of additions is that of its TensorFlow on a CPU, where norms are summed in float16 and
products rounded once; on another device its own values differ too. Blocks that overflow are done
again in float32, as there.
"""

import numpy as np

from gmm_diffusion.metrics.estimates import blocks

BLOCK = 10000  # rows and columns that overflow together
_LANES, _UNROLL, _LEAF = 8, 4, 1600  # of Eigen's sums


def _sum(x: np.ndarray) -> np.ndarray:
  """Sums of float16 [N, D] over D: [N]. Rounds after every addition, in Eigen's order (exactly so
  where 8 divides D)."""
  N, D = x.shape
  if D > _LEAF:
    split = -(-D // 2 // _LANES) * _LANES
    return _sum(x[:, :split]) + _sum(x[:, split:])
  step = _LANES * _UNROLL
  sums = np.zeros((N, _UNROLL, _LANES), np.float16)
  for start in range(0, D - step + 1, step):
    sums += x[:, start : start + step].reshape(sums.shape)
  lanes = ((sums[:, 0] + sums[:, 1]) + sums[:, 2]) + sums[:, 3]
  for start in range(D // step * step, D - _LANES + 1, _LANES):
    lanes += x[:, start : start + _LANES]
  tail = np.zeros(N, np.float16)
  for start in range(D // _LANES * _LANES, D):
    tail += x[:, start]
  return tail + lanes.astype(np.float32).sum(1).astype(np.float16)


def _distances(x, y, x_norms, y_norms):
  out = np.empty((len(x), len(y)), x.dtype)
  for rows in blocks(len(x), 1024):
    products = (x[rows].astype(np.float64) @ y.astype(np.float64).T).astype(
      x.dtype
    )  # float64: the same rounding on every machine
    out[rows] = np.maximum(
      x_norms[rows, None] - x.dtype.type(2) * products + y_norms, x.dtype.type(0)
    )
  return out


def distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Squared distances of features [n, D] and [m, D], one block: float32 [n, m]; those of a row to
  itself need not be zero."""
  x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
  with np.errstate(over='ignore', invalid='ignore'):
    a, b = x.astype(np.float16), y.astype(np.float16)
    found = _distances(a, b, _sum(np.square(a)), _sum(np.square(b)))
    if not np.all(np.isfinite(found)):
      found = _distances(x, y, np.square(x).sum(1), np.square(y).sum(1))
  return found.astype(np.float32)
