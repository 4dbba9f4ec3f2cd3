"""The costs of GITS [arXiv 2405.11326], whose grid has the least local errors on this model.

Along trajectories of a fine sampler, at times t_0 > ... > t_{M-1} and t_M, clean data, a step of
DDIM from the state at t_i to t_j misses the state there by

  (1) c_ij = mean over samples of |a_j m_i + b_j e_i - x_j| / (a_j sqrt(D))

where m_i and e_i are the model's x_0 and noise at (x_i, t_i). The source has the distance to the
straight line between the ends of a trajectory, which needs a_0 > 0. `maths.grid_search.gits` finds
the path of N steps with the least costs.
"""

import numpy as np

from gmm_diffusion.maths import grid_search, grids
from gmm_diffusion.tune import fit
from gmm_diffusion.tune.subject import Subject
from gmm_diffusion.types import Time

FINE = 60  # M


def costs(subject: Subject, seed: int, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(times [M], costs (1) [M + 1, M + 1] for j > i) with the noise of (seed, ids).

  It asks the denoiser 2 M times for each sample.
  """
  schedule = subject.schedule
  steps = min(FINE, len(schedule.training_times))
  t = subject.times(np.asarray(grids.make(schedule, steps, 'log_snr').t))
  grid = grids.from_times(schedule, t)
  path = subject.path(*fit.TEACHER, grid, subject.start(float(grid.b_t[0]), seed, ids), ids)
  a, b = np.append(grid.a_t, 1.0), np.append(grid.b_t, 0.0)
  out = np.zeros((steps + 1, steps + 1))
  for i in range(steps):
    m = subject.predict(path[i], Time(t[i], a[i], b[i]), subject.labels(ids))
    noise = (path[i] - a[i] * m) / b[i]
    for j in range(i + 1, steps + 1):
      missed = (a[j] * m + b[j] * noise - path[j]).reshape(len(ids), -1)
      out[i, j] = np.mean(np.linalg.norm(missed, axis=1)) / (a[j] * missed.shape[1] ** 0.5)
  return t, out


def best(t: np.ndarray, costs: np.ndarray, calls: int) -> np.ndarray:
  """The times of the grid of `calls` steps, at most M."""
  return t[grid_search.gits(costs, calls)[:-1]]
