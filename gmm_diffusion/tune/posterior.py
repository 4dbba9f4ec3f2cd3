"""The residuals x_0 - D(x_t) of a denoiser on data: their largest principal components at several
noise levels, for samplers/posterior.py."""

from typing import Any

import numpy as np
from tqdm import tqdm

from gmm_diffusion.maths.schedules import Schedule
from gmm_diffusion.tune.subject import Subject
from gmm_diffusion.types import Time


def levels(schedule: Schedule, count: int) -> np.ndarray:
  """`count` falling times, even in log(a^2 / b^2) between the ends of the schedule."""
  last = np.array(schedule.last, np.float64)
  if schedule.signal(last) == 0:  # there a residual is that of the mean of the data
    last = schedule.time_of_log_snr(np.array(-10.0))
  first = np.array(schedule.first, np.float64)
  noisy, clean = (float(schedule.log_snr(t)) for t in (last, first))
  inner = schedule.time_of_log_snr(np.linspace(noisy, clean, count)[1:-1])
  return np.concatenate([[last], inner, [first]])


def components(r: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, float]:
  """(eigenvalues [count], falling; eigenvectors [count, D]; sum of all) of the second moment of
  residuals [n, D], by the smaller of the two products."""
  r = np.asarray(r, np.float32)
  n, D = r.shape
  if D <= n:
    values, vectors = np.linalg.eigh((r.T @ r).astype(np.float64) / n)
    vectors = vectors[:, ::-1][:, :count].T
  else:
    values, own = np.linalg.eigh((r @ r.T).astype(np.float64) / n)
    vectors = own[:, ::-1][:, :count].T.astype(np.float32) @ r
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
  values = np.maximum(values[::-1], 0)
  return values[:count], vectors, float(values.sum())


def measure(
  subject: Subject, items: np.ndarray, count: int, directions: int, seed: int
) -> dict[str, Any]:
  """What samplers.posterior.read expects, but for the hash of the weights.

  Args:
    subject: the denoiser; its labels are those of the items.
    items: data in the range of the denoiser, [n, *shape].
    count: noise levels, at least 2.
    directions: of each, up to min(n, D).
    seed: of the noise.
  """
  random, ids = np.random.Generator(np.random.SFC64(seed)), np.arange(len(items))
  times = subject.times(levels(subject.schedule, count))
  out: dict[str, list[Any]] = {name: [] for name in ('level', 'variances', 'vectors', 'total')}
  for t in tqdm(times, desc='residuals', unit='level', dynamic_ncols=True):
    at = subject.schedule.at(t)
    a, b = np.float32(at.a), np.float32(at.b)
    x = a * items + b * random.standard_normal(items.shape, np.float32)
    r = items - subject.predict(x, Time(t, at.a, at.b), subject.labels(ids))
    found = components(r.reshape(len(r), -1), directions)
    row = (float(subject.schedule.log_snr(t)), *found)
    for name, value in zip(out, row, strict=True):
      out[name].append(value)
  arrays = {name: np.asarray(part, np.float32) for name, part in out.items()}
  return {**arrays, 'level': np.array(out['level']), 'shape': np.array(subject.shape)}
