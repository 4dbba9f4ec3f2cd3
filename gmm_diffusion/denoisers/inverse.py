"""Inverse problems without training: denoisers that also know a measurement y = A x_0 + sigma n.

With m = E[x_0 | x_t], its Jacobian J = dm/dx_t and the covariance C = Cov[x_0 | x_t] = (b^2 / a) J,
all methods add to m what the residual y - A m says, and differ in the matrix that weighs it:

  (1) dps     x_0 = m + C A^T (y - A m) / sigma^2                               [2209.14687]
  (2) pigdm   x_0 = m + C A^T (sigma^2 I + r^2 A A^T)^-1 (y - A m)              [PiGDM, ICLR 2023]
              r^2 = b^2 / (a^2 + b^2)
  (3) moment  x_0 = m + C A^T (sigma^2 I + A C A^T)^-1 (y - A m)                [2405.13712]
  (4) stsl    x_0 = (1) - (b^2 / a) grad_x tr(A C A^T) / (2 sigma^2)            [2312.00852]

(1) is eps - b grad log p(y | x_t) as in classifier guidance, with p(y | x_t) = N(y; A m, sigma^2 I)
and grad m = a C / b^2. (3) is exact for Gaussian data. There (2) is so too if their variance is 1,
and (1) is not. (4) is the gradient of Jensen's bound; of Gaussian data it is (1). None of them
samples the posterior of other data. Two are exact, for data that are known:

  (5) mixture    w_k proportional to pi_k N(x_t; a m_k, (a^2 v_k + b^2) I)
                                     N(y; A x_k, sigma^2 I + c_k A A^T)
                 x_0 = sum_k w_k (x_k + c_k A^T (sigma^2 I + c_k A A^T)^-1 (y - A x_k)),
                 x_k and c_k = v_k b^2 / (a^2 v_k + b^2): mean and variance of x_0 in component k
  (6) empirical  (5) with v_k = 0: the measurement is nothing but more coordinates of the query
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import marginals, mixtures
from gmm_diffusion.maths.marginals import match
from gmm_diffusion.types import Array, Denoiser

METHODS = ('dps', 'pigdm', 'moment', 'stsl')
STEP = 0.01  # of the finite difference in (4), in units of b


class Operator(NamedTuple):
  """A linear measurement A of samples [B, ...].

  Attributes:
    apply: x -> A x [B, ...].
    adjoint: y -> A^T y, of the shape of x.
    solve: (v, noise, r2) -> (noise I + r2 A A^T)^-1 v for v in the range of A; noise and r2 are
      numbers, or broadcast against v.
    spectrum: shape of one sample -> the eigenvalues of A A^T, in any order.
  """

  apply: Callable[[Array], Array]
  adjoint: Callable[[Array], Array]
  solve: Callable[[Array, Array | float, Array | float], Array]
  spectrum: Callable[[tuple[int, ...]], Array]


def identity() -> Operator:
  """The sample itself: denoising of an image with known noise."""
  return mask(np.ones(()))


def mask(known: Array) -> Operator:
  """The elements of a sample where `known` is 1, and 0 where it is 0: inpainting. `known`
  broadcasts against one sample."""
  known = np.asarray(known, np.float64)
  if not np.isin(known, (0, 1)).all():
    raise UserError('a mask must be 0 or 1 everywhere')
  keep = lambda x: x * jnp.asarray(known, x.dtype)[(None,) * (x.ndim - known.ndim)]
  solve = lambda v, noise, r2: keep(v) / (noise + r2)
  return Operator(keep, keep, solve, lambda shape: np.broadcast_to(known, shape).reshape(-1))


def box(factor: int) -> Operator:
  """Means of factor x factor pixels of images [B, H, W, C]: super-resolution."""

  def apply(x):
    B, H, W, C = x.shape
    if H % factor or W % factor:
      raise UserError(f'images of {H} x {W} cannot be divided into boxes of {factor} x {factor}')
    return x.reshape(B, H // factor, factor, W // factor, factor, C).mean((2, 4))

  adjoint = lambda y: jnp.repeat(jnp.repeat(y, factor, 1), factor, 2) / factor**2
  return Operator(
    apply,
    adjoint,
    lambda v, noise, r2: v / (noise + r2 / factor**2),
    lambda shape: np.full(int(np.prod(shape)) // factor**2, 1 / factor**2),
  )


def blur(width: float) -> Operator:
  """A Gaussian of this deviation in pixels, around the edges of images [B, H, W, C]."""
  if not width > 0:
    raise UserError(f'the width of a blur must be positive, got {width:g}')

  def gain(H, W):
    square = np.fft.fftfreq(H)[:, None] ** 2 + np.fft.fftfreq(W)[None] ** 2
    return np.exp(-2 * np.pi**2 * width**2 * square)

  def filtered(x, of):
    h = jnp.asarray(gain(*x.shape[1:3]), x.dtype)[None, ..., None]
    out = jnp.fft.ifft2(jnp.fft.fft2(x, axes=(1, 2)) * of(h), axes=(1, 2))
    return out.real.astype(x.dtype)

  def spectrum(shape):
    H, W, C = shape
    return np.repeat(gain(H, W).reshape(-1) ** 2, C)

  apply = lambda x: filtered(x, lambda h: h)
  solve = lambda v, noise, r2: filtered(v, lambda h: 1 / (noise + r2 * h**2))
  return Operator(apply, apply, solve, spectrum)


def matrix(A: Array) -> Operator:
  """Any matrix [M, D], for vectors [B, D]."""
  A = np.asarray(A, np.float64)
  values, vectors = np.linalg.eigh(A @ A.T)
  values = np.maximum(values, 0)

  def solve(v, noise, r2):
    U = jnp.asarray(vectors, v.dtype)
    return (v @ U / (noise + r2 * jnp.asarray(values, v.dtype)[None])) @ U.T

  return Operator(
    lambda x: x @ jnp.asarray(A.T, x.dtype),
    lambda y: y @ jnp.asarray(A, y.dtype),
    solve,
    lambda shape: values,
  )


def _mean(found):
  """What is differentiated, and what the network says of the variance beside it."""
  return found.x0, found.share


def posterior(
  denoiser: Denoiser,
  operator: Operator,
  y: Array,
  noise: float,
  method: str = 'pigdm',
  iterations: int = 8,
  seed: int = 0,
) -> Denoiser:
  """Equations (1) to (4): guides a denoiser by a measurement; any sampler runs on it.

  One call of the denoiser and one backward pass through it; `moment` takes `iterations` more
  backward passes, `stsl` one more of both. Clip x_0 outside, not inside: what is clipped has no
  derivative.

  Args:
    denoiser: of the data without a measurement, differentiable by x.
    operator: A.
    y: [B, ...], a measurement for each sample, or [1, ...], one for all.
    noise: sigma >= 0, the deviation of the noise in y; dps and stsl need it above 0.
    method: a name in METHODS.
    iterations: moment: of conjugate gradients, which are exact after as many as y has elements.
    seed: stsl: of the one direction in which the trace is estimated (Hutchinson), the same for all
      samples and times.

  Raises:
    UserError: on a method that does not exist, a sigma that it cannot have, and, when it is called,
      a measurement of another shape than A x.
  """
  if method not in METHODS:
    raise UserError(f'unknown method {method!r}; valid: {", ".join(METHODS)}')
  if not (np.isfinite(noise) and noise >= 0) or (noise == 0 and method in ('dps', 'stsl')):
    valid = 'above 0' if method in ('dps', 'stsl') else 'at least 0'
    raise UserError(f'the noise of a measurement must be {valid} for {method!r}, got {noise:g}')

  def denoise(x, time, cond):
    seen = _seen(operator, y, x)
    a, b = match(time.a, x), match(time.b, x)
    m, pull, share = jax.vjp(lambda x: _mean(denoiser(x, time, cond)), x, has_aux=True)
    covariance = lambda v: b**2 / a * pull(v)[0]
    residual = seen - operator.apply(m)
    if method == 'pigdm':
      u = operator.solve(residual, noise**2, b**2 / (a**2 + b**2))
    elif method == 'moment':
      product = lambda u: noise**2 * u + operator.apply(covariance(operator.adjoint(u)))
      u = _conjugate_gradients(product, residual, iterations)
    else:
      u = residual / noise**2
    x0 = m + covariance(operator.adjoint(u))
    if method == 'stsl':
      x0 = x0 - b**2 / a * jax.grad(functools.partial(trace, time, cond))(x) / (2 * noise**2)
    return marginals.from_x0(x, x0, time)._replace(share=share)

  def trace(time, cond, x):
    """An estimate of the sum of tr(A C A^T) over the batch."""
    w = jax.random.rademacher(jax.random.key(seed), (1, *y.shape[1:]), x.dtype)
    direction = jnp.broadcast_to(operator.adjoint(w), x.shape)
    a, b = match(time.a, x), match(time.b, x)
    mean = lambda x: denoiser(x, time, cond).x0
    slope = (mean(x + STEP * b * direction) - mean(x)) / (STEP * b)
    return jnp.sum(b**2 / a * direction * slope)

  return denoise


def _seen(operator, y, x):
  """The measurement in the dtype of the samples; raises UserError unless it is one of them."""
  wanted = jax.eval_shape(operator.apply, x).shape
  if y.shape[1:] != wanted[1:] or y.shape[0] not in (1, wanted[0]):
    raise UserError(
      f'a measurement must have the shape {list(wanted)}, or {[1, *wanted[1:]]} for all samples, '
      f'got {list(y.shape)}'
    )
  return jnp.asarray(y, x.dtype)


def _conjugate_gradients(product, right, iterations):
  """Solves product(u) = right [B, ...] for each item of the batch on its own."""
  dot = lambda x, y: jnp.sum(x * y, tuple(range(1, x.ndim)), keepdims=True)
  # an item that is solved stays as it is
  ratio = lambda x, y: jnp.where(y > 0, x / jnp.where(y > 0, y, 1), 0)

  def step(_, state):
    u, r, p = state
    q = product(p)
    length = ratio(dot(r, r), dot(p, q))
    left = r - length * q
    return u + length * p, left, left + ratio(dot(left, left), dot(r, r)) * p

  return jax.lax.fori_loop(0, iterations, step, (jnp.zeros_like(right), right, right))[0]


def mixture(
  means: Array,
  variances: Array | float,
  operator: Operator,
  y: Array,
  noise: float,
  log_priors: Array | None = None,
) -> Denoiser:
  """Equation (5), E[x_0 | x_t, y] of an isotropic mixture; exact, all pairs of samples and
  components at once.

  Args:
    means: [K, ...], samples' shape after the first axis.
    variances: [K] or a number.
    operator: A.
    y: [B, ...] or [1, ...].
    noise: sigma > 0.
    log_priors: [K]; uniform if None.
  """
  log_priors = np.zeros(len(means)) if log_priors is None else log_priors
  components = means, np.broadcast_to(variances, (len(means),)), log_priors

  def denoise(x, time, cond):
    del cond
    seen = _seen(operator, y, x)
    a, b, spectrum = (
      jnp.asarray(z, x.dtype) for z in (time.a, time.b, operator.spectrum(x.shape[1:]))
    )
    total = lambda z: jnp.sum(z**2, tuple(range(1, z.ndim)))

    def component(mean, v, log_prior):
      V = a**2 * v + b**2
      c, inside = v * b**2 / V, mean[None] + a * v / V * (x - a * mean[None])
      residual = seen - operator.apply(inside)
      solved = operator.solve(residual, noise**2, c)
      logit = log_prior - total(x - a * mean[None]) / (2 * V) - mean.size / 2 * jnp.log(V)
      quadratic = jnp.sum(residual * solved, tuple(range(1, residual.ndim)))
      logit -= (quadratic + jnp.sum(jnp.log(noise**2 + c * spectrum))) / 2
      return logit, inside + c * operator.adjoint(solved)

    each = tuple(jnp.asarray(z, x.dtype) for z in components)
    logits, found = jax.lax.map(lambda k: component(*k), each)
    weights = jax.nn.softmax(logits, 0).reshape(logits.shape + (1,) * (x.ndim - 1))
    return marginals.from_x0(x, jnp.sum(weights * found, 0), time)

  return denoise


def empirical(
  data: Array, operator: Operator, y: Array, noise: float, block: int = 1024
) -> Denoiser:
  """Equation (6) for data [J, ...], in blocks: the exact posterior of a data set."""
  flat = lambda x: x.reshape(len(x), -1)

  def denoise(x, time, cond):
    del cond
    known, seen = jnp.asarray(data, x.dtype), flat(_seen(operator, y, x)) / noise
    a, b = jnp.asarray(time.a, x.dtype), jnp.asarray(time.b, x.dtype)
    means = jnp.concatenate([a / b * flat(known), flat(operator.apply(known)) / noise], 1)
    queries = jnp.concatenate([flat(x) / b, jnp.broadcast_to(seen, (len(x), seen.shape[1]))], 1)
    found = mixtures.posterior(queries, mixtures.units(means), flat(known), block).mean
    return marginals.from_x0(x, found.reshape(x.shape), time)

  return denoise
