"""Attention with a Gaussian kernel and no softmax, in linear time [SOFT, 2110.11945].

Queries are the keys. With m landmarks l of N queries q, and a scale alpha,

  (1) S_ij = exp(-alpha / 2 |q_i - q_j|^2)
  (2) S^ = P A^+ P^T,  A = k(l, l) [m, m],  P = k(q, l) [N, m]               O(N m + T m^3)
  (3) X_0 = c A', X_{n+1} = 2 X_n - X_n A' X_n,  A' = A + rho I,  c = 1.8 / |A'|_1^2
      X_T = U f(lambda) U^T,  f(lambda) = (1 - (1 - c lambda^2)^(2^T)) / lambda
  (4) S^ v                                  'none'
      P D X_T D P^T v, D = diag(A 1)^(-1/2)  'landmarks'
      S^ v / max(S^ 1, 1)                    'rows', ours

S_ij are responsibilities of a mixture with equal priors that were not divided by their sum: `rows`
divides by it where it is at least 1, as the true sum always is, which is attention by posterior
means. f <= 1 / lambda, so S - S^ has no negative eigenvalue; as S_ii = 1, each token's error
1 - S^_ii is in [0, 1] and known for free.

The published backward pass of (3) holds only where (3) has converged; here it is differentiated
step by step.
"""

import functools

import jax
import jax.numpy as jnp

from gmm_diffusion.errors import UserError
from gmm_diffusion.types import Array

ITERATIONS = 20
RIDGE = 0.01
NORMALISE = ('none', 'landmarks', 'rows')
_dot = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def kernel(x: Array, y: Array, alpha: float) -> Array:
  """Equation (1) of [..., N, C] and [..., M, C]: [..., N, M], at least float32."""
  x, y = (part.astype(jnp.promote_types(part.dtype, jnp.float32)) for part in (x, y))
  square = lambda z: jnp.sum(z**2, -1)
  apart = square(x)[..., :, None] + square(y)[..., None, :] - 2 * _dot('...nc,...mc->...nm', x, y)
  return jnp.exp(-alpha / 2 * jnp.maximum(apart, 0))


def inverse(A: Array, iterations: int = ITERATIONS, ridge: float = RIDGE) -> Array:
  """Equation (3) of symmetric A [..., m, m] without negative eigenvalues.

  Raises:
    UserError: iterations is below 1, or ridge below 0.
  """
  if iterations < 1 or not ridge >= 0:
    raise UserError(
      f'the inverse of linear attention needs iterations >= 1 and ridge >= 0, got {iterations} and '
      f'{ridge:g}'
    )
  A = A + ridge * jnp.eye(A.shape[-1], dtype=A.dtype).reshape((1,) * (A.ndim - 2) + A.shape[-2:])
  largest = jnp.max(jnp.sum(jnp.abs(A), -2), -1)[..., None, None]

  def step(X, _):
    return 2 * X - _dot('...ij,...jk,...kl->...il', X, A, X), None

  return jax.lax.scan(step, 1.8 / largest**2 * A, None, iterations)[0]


def attend(
  q: Array,
  v: Array,
  landmarks: Array,
  alpha: float,
  normalise: str = 'rows',
  iterations: int = ITERATIONS,
  ridge: float = RIDGE,
) -> Array:
  """Equation (4).

  Args:
    q: queries, and keys, [..., N, C].
    v: values [..., N, V].
    landmarks: [..., m, C].
    alpha: positive scale.
    normalise: a name in NORMALISE.
    iterations: T, at least 1.
    ridge: rho, at least 0.

  Returns:
    [..., N, V], in the dtype of v.
  """
  P, A = kernel(q, landmarks, alpha), kernel(landmarks, landmarks, alpha)
  middle = inverse(A, iterations, ridge)
  if normalise == 'landmarks':
    D = jnp.sum(A, -1) ** -0.5
    middle = D[..., :, None] * middle * D[..., None, :]
  values = v.astype(P.dtype)
  if normalise == 'rows':
    values = jnp.concatenate([values, jnp.ones_like(values[..., :1])], -1)
  out = _dot('...nm,...mv->...nv', P, _dot('...ij,...nj,...nv->...iv', middle, P, values))
  if normalise == 'rows':
    out = out[..., :-1] / jnp.maximum(out[..., -1:], 1)
  return out.astype(v.dtype)


def errors(
  q: Array, landmarks: Array, alpha: float, iterations: int = ITERATIONS, ridge: float = RIDGE
) -> Array:
  """1 - S^_ii of each token [..., N], in [0, 1]: how much of it the landmarks do not see."""
  P, A = kernel(q, landmarks, alpha), kernel(landmarks, landmarks, alpha)
  return 1 - _dot('...ni,...ij,...nj->...n', P, inverse(A, iterations, ridge), P)
