"""Reverse kernels with the covariance of the denoiser's own posterior, and their controls.

The step of DDIM with deviation tau would keep all marginals if it took a draw x_0 of the posterior
p(x_0 | x_t) in place of its mean D(x_t), for any tau and any size of the step:

  (1) x_s = a_s x_0 + w (x_t - a_t x_0) / b_t + tau z,   w = sqrt(b_s^2 - tau^2)

With the mean it loses the covariance

  (2) g^2 Cov[x_0 | x_t],   g = a_s - w a_t / b_t

The residuals x_0 - D(x_t) of data have E[Cov[x_0 | x_t]] as second moment [the argument of
Analytic-DPM, arXiv 2201.06503, which takes the trace of it]. Of this matrix the m leading
eigenvectors u_k and eigenvalues v_k are measured (tune/posterior.py), at several noise levels, and
a step adds them back:

  posterior_gmm       g scale sqrt(m v_k) u_k with either sign, k uniform: 2 m components (axes); or
                      g scale sum_k +- sqrt(v_k) u_k: 2^m components (corners)
  posterior_gaussian  N(0, g^2 scale^2 sum_k v_k u_k u_k^T): the same covariance without modes
  posterior_noise     N(0, g^2 scale^2 sum_k v_k / D I): the same energy without directions

For Gaussian data and m = D the first two keep mean and covariance at every level, in steps of any
size. So what is better than DDIM by variance alone, by its directions, and by modes can be told
apart. With m = D and scale 1, posterior_noise is Analytic-DPM's variance. A step that ends at clean
data returns the mean.
"""

import functools
import os
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from gmm_diffusion import files
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import marginals
from gmm_diffusion.maths.noise import StepNoise
from gmm_diffusion.samplers import gaussian
from gmm_diffusion.samplers.base import Kernel, Plan, State
from gmm_diffusion.types import Array, StepGrid

_dot = functools.partial(jnp.matmul, precision='highest')
PLACES = ('axes', 'corners')
MOST_CORNERS = 20  # signs that one uniform number of single precision can decide


class Row(NamedTuple):
  """weight of eps in mu, tau, the deviations g scale sqrt(v_k) [m], and the number of the level
  whose directions u_k they belong to."""

  weight: Array
  tau: Array
  std: Array
  level: Array


class Measured(NamedTuple):
  """What is known of the residuals of a denoiser, at L noise levels from noisy to clean.

  Attributes:
    level: log(a^2 / b^2), float64 [L], rising.
    variances: v, the M largest eigenvalues, float32 [L, M], falling.
    vectors: u, float32 [L, M, D], orthonormal.
    total: the sum of all D eigenvalues, float32 [L].
    shape: of a sample.
    denoiser: what it and its weights are, as a hash.
    mark: hash of all numbers.
  """

  level: np.ndarray
  variances: np.ndarray
  vectors: np.ndarray
  total: np.ndarray
  shape: tuple[int, ...]
  denoiser: str
  mark: str


@functools.lru_cache(4)
def _read(path, stamp):
  del stamp
  try:
    with open(path, 'rb') as content, np.load(content) as file:
      found = dict(file)
    arrays = [
      np.asarray(found[name], kind)
      for name, kind in (
        ('level', np.float64),
        ('variances', np.float32),
        ('vectors', np.float32),
        ('total', np.float32),
      )
    ]
    shape = tuple(map(int, found['shape']))
    denoiser = str(found['denoiser'])
    levels, count = arrays[1].shape
    good = [part.shape for part in arrays] == [
      (levels,), (levels, count), (levels, count, int(np.prod(shape))), (levels,)
    ] and all(np.isfinite(part).all() for part in arrays)  # fmt: skip
  except (KeyError, TypeError, ValueError, OSError, EOFError, zipfile.BadZipFile):
    good = False
  if not good:
    raise UserError(
      f'{path} holds no residuals as --mode=posterior writes them; measure them again'
    )
  return Measured(*arrays, shape, denoiser, files.fingerprint(*arrays))


def read(path: str) -> Measured:
  """A file of --mode=posterior; raises UserError where it is not one."""
  if not path:
    raise UserError(
      'the samplers posterior_* need sampler.posterior, a file that --mode=posterior wrote'
    )
  if not os.path.isfile(path):
    raise UserError(
      f'there is no {path}; make it with --mode=posterior, or set sampler.posterior to one that is '
      f'there'
    )
  return _read(path, os.stat(path).st_mtime_ns)


def _known(path, directions, scale, eta):
  """What the file holds, after the options are checked."""
  gaussian.check_eta(eta)
  if not 0 <= scale < np.inf:
    raise UserError(f'scale must be >= 0, got {scale:g}')
  found = read(path)
  most = found.variances.shape[1]
  if not 1 <= directions <= most:
    raise UserError(
      f'directions must be in 1..{most}, as many as {path} has, got {directions}; '
      f'--mode=posterior measures posterior.directions of them'
    )
  return found


def deviations(
  found: Measured, grid: StepGrid, tau: np.ndarray, directions: int, scale: float
) -> tuple[np.ndarray, np.ndarray]:
  """(2) for each step: g scale sqrt(v_k), float64 [N, m], and the index of the level that is
  nearest to the step's, [N]; zero where the step ends at clean data."""
  with np.errstate(divide='ignore'):
    level = 2 * (np.log(grid.a_t) - np.log(grid.b_t))
  nearest = np.argmin(np.abs(np.maximum(level, -1e3)[:, None] - found.level), 1)
  g = np.where(grid.b_s > 0, marginals.x0_weight(grid, tau), 0)
  return scale * g[:, None] * np.sqrt(np.float64(found.variances[nearest, :directions])), nearest


def _directed(
  eta: float,
  path: str,
  directions: int,
  scale: float,
  kick: Callable[[Row, Array, StepNoise, Array], tuple[Array, Any]],
) -> Kernel:
  """kick(row, directions [m, D], noise, z) -> (x_s - mu [B, D], info), where z [B, D] are the unit
  normal numbers."""
  found = _known(path, directions, scale, eta)

  def plan(grid, shape):
    if tuple(shape) != found.shape:
      raise UserError(
        f'{path} was measured for samples of shape {list(found.shape)}, these are {list(shape)}; '
        f'measure this model with --mode=posterior'
      )
    tau = marginals.posterior_std(grid, eta)
    std, nearest = deviations(found, grid, tau, directions, scale)
    rows = Row(marginals.noise_weight(grid, tau), tau, std, nearest.astype(np.int32))
    return Plan(rows, found.vectors[:, :directions]), []

  def step(state, row, extra, shared, denoise, noise):
    mean = marginals.reverse_mean(denoise(state.x, row.now), row.a_s, extra.weight)
    moved, info = kick(extra, shared[extra.level], noise, noise.normal.reshape(len(mean), -1))
    return State(mean + moved.reshape(mean.shape).astype(mean.dtype)), info

  return Kernel(plan, State, step)


def posterior_gmm(
  eta: float = 0.0,
  posterior: str = '',
  directions: int = 8,
  scale: float = 1.0,
  places: str = 'axes',
) -> Kernel:
  """The mixture with the measured covariance.

  Args:
    eta: as of DDIM.
    posterior: file of --mode=posterior.
    directions: m, up to those of the file.
    scale: factor of the deviations; 1 is as measured, 0 is DDIM.
    places: of the components, 'axes' or 'corners'.
  """
  if places not in PLACES:
    raise UserError(f'unknown places {places!r}; valid: {", ".join(PLACES)}')
  if places == 'corners' and directions > MOST_CORNERS:
    raise UserError(
      f"places 'corners' takes up to {MOST_CORNERS} directions, got {directions}; use 'axes'"
    )
  count = 2 * directions if places == 'axes' else 2**directions

  def kick(row, vectors, noise, z):
    k = jnp.minimum((noise.uniform * count).astype(jnp.int32), count - 1)
    if places == 'axes':
      at = k // 2
      length = directions**0.5 * row.std[at] * (1 - 2 * (k % 2))
      moved = length[:, None] * vectors[at]
    else:
      signs = 1 - 2 * ((k[:, None] >> jnp.arange(directions)[None]) & 1)
      moved = _dot(signs * row.std[None], vectors)
    return moved + row.tau * z if eta else moved, {'component': k}

  return _directed(eta, posterior, directions, scale, kick)


def posterior_gaussian(
  eta: float = 0.0, posterior: str = '', directions: int = 8, scale: float = 1.0
) -> Kernel:
  """The Gaussian with the mean and covariance of posterior_gmm, whose options it has."""

  def kick(row, vectors, noise, z):
    del noise
    along = _dot(z, vectors.T) * (jnp.sqrt(row.tau**2 + row.std**2) - row.tau)[None]
    return row.tau * z + _dot(along, vectors), ()

  return _directed(eta, posterior, directions, scale, kick)


def posterior_noise(
  eta: float = 0.0, posterior: str = '', directions: int = 8, scale: float = 1.0
) -> Kernel:
  """The control: isotropic noise with the total variance of posterior_gmm, whose options it has."""

  def kick(row, vectors, noise, z):
    del vectors, noise
    return jnp.sqrt(row.tau**2 + jnp.sum(row.std**2) / z.shape[1]) * z, ()

  return _directed(eta, posterior, directions, scale, kick)
