"""Mixture kernels that keep the first two moments of the forward marginals [GMM].

Given a mean mu, a deviation tau and K components with priors pi, the kernel is

  (1) x_s ~ sum_k pi_k N(mu + delta_k, tau^2 I - Delta_k)                  [GMM eq. 7]
  (2) sum_k pi_k delta_k = 0                                               [GMM eq. 8]
  (A) Delta_k = delta_k delta_k^T                                          [GMM eq. 8]
  (B) Delta_k = 1 / (K pi_k) sum_l pi_l delta_l delta_l^T                  [GMM eq. 8]

Offsets are kept at unit scale: delta_k = scale u_k. What is subtracted from tau^2 I is, in
each covariance handling, scale^2 r_kj along m orthogonal directions and nothing elsewhere:

  handling  form  directions                 r_kj
  diagonal  A     the D coordinates          u_kj^2
  diagonal  B     the D coordinates          sum_l pi_l u_lj^2 / (K pi_k)
  vub       B     the first K coordinates    pi_(j) / (K pi_k), pi sorted    [GMM eq. 12, 34]
  exact     A     u_k / |u_k|                |u_k|^2
  exact     B     eigenvectors q_j of        eigenvalue g_j / (K pi_k)
                  sum_l pi_l u_l u_l^T

so that (3) the kernel exists while scale <= tau / sqrt(max r_kj), and the deviation along a
direction is (4) sqrt(max(tau^2 - scale^2 r_kj, 0)), where the maximum clips what is infeasible.
`exact` is not in the source: Delta_k has rank at most K, so no approximation is needed. The
eigenvectors are never formed: with rows sqrt(pi_l) u_l in A and A A^T = V diag(g) V^T, they are
A^T V / sqrt(g), and a matrix function of Delta_k costs O(D K).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gmm_diffusion.errors import UserError
from gmm_diffusion.types import Array, Key

_dot = functools.partial(
  jnp.matmul, precision='highest'
)  # accelerators round to bfloat16 or TF32 otherwise

OFFSETS = ('rand', 'rand_centred', 'ortho')
COVARIANCES = {'A': ('diagonal', 'exact'), 'B': ('diagonal', 'vub', 'exact')}
INFEASIBLE = ('clip', 'shrink', 'error')


class Mixture(NamedTuple):
  """The mixture of one step, at unit scale.

  Attributes:
    offsets: u, [K, D].
    priors: pi, [K].
    base: the part of r that all components share, [m]; empty in form A.
    vectors: V, [K, K], for exact B; otherwise empty.
  """

  offsets: Array
  priors: Array
  base: Array
  vectors: Array


def check_priors(priors, K: int) -> np.ndarray:
  """Priors as float64 [K]; uniform where none are given. They must be positive and sum to one."""
  if priors is None or len(priors) == 0:
    return np.full(K, 1 / K)
  priors = np.asarray(priors, np.float64)
  if len(priors) != K:
    raise UserError(f'priors must have one entry per component ({K}), got {len(priors)}')
  if np.any(priors <= 0) or abs(priors.sum() - 1) > 1e-6:
    raise UserError(
      f'priors must be positive and sum to 1, got sum {priors.sum():.6g}, smallest '
      f'{priors.min():.6g}'
    )
  return priors / priors.sum()


def draw_offsets(key: Key, kind: str, priors: Array, dim: int) -> Array:
  """Unit-scale offsets u [K, D].

  rand          rows ~ N(0, I), minus their weighted mean, each normalised   [GMM eq. 9]
  rand_centred  the same with the mean removed last, so that (2) holds exactly
  ortho         orthonormal rows, minus their weighted mean                  [GMM eq. 10]

  For ortho the source takes left singular vectors of a Gaussian matrix. The Q of a QR
  decomposition with positive diagonal has the same law (Haar) in a third of the time.
  Rows are drawn one at a time: drawing all at once would triple the peak memory.
  """
  K = len(priors)
  # With x64 on, offsets are as precise as the rest of the run.
  dtype = priors.dtype
  rows = jax.lax.map(
    lambda k: jax.random.normal(jax.random.fold_in(key, k), (dim,), dtype), jnp.arange(K)
  )
  centre = lambda u: u - _dot(priors, u)[None]
  unit = lambda u: u / jnp.maximum(jnp.linalg.norm(u, axis=1, keepdims=True), jnp.finfo(dtype).tiny)
  if kind == 'rand':
    return unit(centre(rows))
  if kind == 'rand_centred':
    return centre(unit(rows))
  q, r = jnp.linalg.qr(rows.T)
  return centre((q * jnp.sign(jnp.diagonal(r))[None]).T)


def build(offsets: Array, priors: Array, form: str, covariance: str) -> Mixture:
  """Adds to the offsets what the covariance handling needs of them."""
  none = jnp.zeros((0,), offsets.dtype)
  if form == 'A':
    return Mixture(offsets, priors, none, none)
  if covariance == 'diagonal':
    return Mixture(offsets, priors, _dot(priors, offsets**2), none)
  if covariance == 'vub':
    return Mixture(offsets, priors, -jnp.sort(-priors), none)
  rows = jnp.sqrt(priors)[:, None] * offsets
  values, vectors = jnp.linalg.eigh(_dot(rows, rows.T))
  return Mixture(offsets, priors, jnp.maximum(values, 0), vectors)


def removed(mixture: Mixture, form: str, covariance: str, k: Array) -> Array:
  """r_kj of the table above for component indices k [B]: [B, m]."""
  if form == 'B':
    return mixture.base[None] / (len(mixture.priors) * mixture.priors[k])[:, None]
  squares = mixture.offsets[k] ** 2
  return squares if covariance == 'diagonal' else jnp.sum(squares, 1, keepdims=True)


def deviations(tau: Array, scale: Array, r: Array) -> Array:
  """Equation (4)."""
  return jnp.sqrt(jnp.maximum(tau**2 - scale**2 * r, 0))


def sample(
  mixture: Mixture, form: str, covariance: str, tau: Array, scale: Array, k: Array, z: Array | None
) -> Array:
  """x_s - mu of equation (1) for components k [B] and unit normal z [B, D]: [B, D].

  `z` is None where tau = 0 is known beforehand; then only the offset is left.
  """
  delta = scale * mixture.offsets[k]
  if z is None:
    return delta
  r = removed(mixture, form, covariance, k)
  std = deviations(tau, scale, r)
  if covariance == 'diagonal':
    return delta + std * z
  if covariance == 'vub':
    K = r.shape[1]
    return delta + jnp.concatenate([std * z[:, :K], tau * z[:, K:]], 1)
  # (std - tau) / r, written so that a direction with r = 0 gives no 0 / 0
  open_ = std + tau > 0
  stretch = jnp.where(
    std > 0, -(scale**2) / jnp.where(open_, std + tau, 1), -tau / jnp.where(r > 0, r, 1)
  )
  if form == 'A':
    u = mixture.offsets[k]
    along = jnp.sum(u * z, 1, keepdims=True)
    return delta + tau * z + u * stretch * along
  weight = 1 / (len(mixture.priors) * mixture.priors[k])[:, None]  # r = base * weight
  root = jnp.sqrt(mixture.priors)[None]
  along = _dot(_dot(z, mixture.offsets.T) * root, mixture.vectors)
  back = _dot(along * stretch * weight, mixture.vectors.T) * root
  return delta + tau * z + _dot(back, mixture.offsets)


class Summary(NamedTuple):
  """What the moment report needs of one mixture, float64 on the host.

  Attributes:
    largest: largest feasible scale for tau = 1, equation (3); infinite for zero offsets.
    mean: |sum_k pi_k u_k|, the residual of (2).
    squares: |u_k|^2, [K].
    gram: u_k . u_l, [K, K].
    diagonal: sum_k pi_k u_kj^2, [D].
  """

  largest: float
  mean: float
  squares: np.ndarray
  gram: np.ndarray
  diagonal: np.ndarray


@functools.partial(jax.jit, static_argnums=(1, 2))
def _summarise(mixture, form, covariance):
  most = lambda k: jnp.max(removed(mixture, form, covariance, k[None]))
  return (
    jax.lax.map(most, jnp.arange(len(mixture.priors))),
    jnp.linalg.norm(_dot(mixture.priors, mixture.offsets)),
    _dot(mixture.offsets, mixture.offsets.T),
    _dot(mixture.priors, mixture.offsets**2),
  )


def summarise(mixture: Mixture, form: str, covariance: str) -> Summary:
  """Summary of a mixture; one component at a time, memory O(D + K^2)."""
  removed_most, mean, gram, diagonal = (
    np.asarray(part, np.float64) for part in _summarise(mixture, form, covariance)
  )
  most = float(removed_most.max())
  largest = most**-0.5 if most > 0 else np.inf
  return Summary(largest, float(mean), np.diagonal(gram), gram, diagonal)


@functools.partial(jax.jit, static_argnums=(1, 2))
def removed_variance(
  mixture: Mixture, form: str, covariance: str, tau: Array, scale: Array
) -> Array:
  """Prior-weighted variance that (4) takes from tau^2 I along each direction.

  Shape [m]; [K] for exact A, whose direction differs between components.
  """
  index = jnp.arange(len(mixture.priors))

  def take(k):
    r = removed(mixture, form, covariance, k[None])[0]
    return mixture.priors[k] * (tau**2 - deviations(tau, scale, r) ** 2)

  if form == 'A' and covariance == 'exact':
    return jax.lax.map(lambda k: take(k)[0], index)
  start = jnp.zeros_like(take(index[0]))
  return jax.lax.scan(lambda total, k: (total + take(k), None), start, index)[0]


def residual(
  mixture: Mixture, summary: Summary, form: str, covariance: str, tau: float, scale: float
) -> tuple[float, float]:
  """Frobenius norm and trace of R = (second moment of the kernel about mu) - tau^2 I.

  R = scale^2 sum_k pi_k u_k u_k^T minus `removed_variance` along its directions; zero where the
  moments match.
  """
  taken = np.asarray(removed_variance(mixture, form, covariance, tau, scale), np.float64)
  priors = np.asarray(mixture.priors, np.float64)
  trace = scale**2 * priors @ summary.squares - taken.sum()
  if form == 'B' and covariance == 'exact':  # both parts are diagonal in the eigenbasis
    return float(np.linalg.norm(scale**2 * np.float64(mixture.base) - taken)), float(trace)
  if form == 'A' and covariance == 'exact':
    weights = scale**2 * priors - taken / np.maximum(summary.squares, np.finfo(float).tiny)
    return float(np.sqrt(max(weights @ summary.gram**2 @ weights, 0))), float(trace)
  norm2 = (
    scale**4 * priors @ summary.gram**2 @ priors
    - 2 * scale**2 * summary.diagonal[: len(taken)] @ taken
    + taken @ taken
  )
  return float(np.sqrt(max(norm2, 0))), float(trace)


def precision(mixture: Mixture, form: str, covariance: str, tau: float, scale: float) -> float:
  """sum_k pi_k / nu_k of [GMM eq. 40], nu_k the smallest variance of component k; inf if
  infeasible."""
  nu = tau**2 - scale**2 * np.float64(_summarise(mixture, form, covariance)[0])
  return float(np.sum(np.float64(mixture.priors) / nu)) if nu.min() > 0 else np.inf
