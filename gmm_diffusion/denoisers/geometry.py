"""What the Jacobian of a denoiser says about its model [2402.03845], and models with the same
marginals whose scores are not gradients.

The exact E[x_0 | x_t] has the Jacobian

  (1) K = d x_0 / d x_t = (a / b^2) Cov[x_0 | x_t]       symmetric, no eigenvalue < 0

  (2) asymmetry  |K - K^T|^2 / (4 |K|^2), in [0, 1]        0: the score is the gradient of something
  (3) dimension  a tr K; with falling b it tends to the dimension of what the data lie on
  (4) largest    the largest singular value of K           how much an error of x_t grows in x_0

They are means over independent z, w ~ N(0, I): E (w . K^T z - z . K^T w)^2 = |K - K^T|^2,
E (w . K^T z)^2 = |K|^2, and E z . K^T z = tr K. (4) is a power iteration, so it errs to the low
side. K^T v is one vjp, and K v the vjp of that one: a jvp does not pass through the streaming
posteriors of the exact denoisers.

A constant J with J^T = -J turns the noise without changing any marginal p_t, since
div(p_t J grad log p_t) = 0:

  (5) eps' = eps + c J eps
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import marginals, noise
from gmm_diffusion.types import Array, Denoiser, Prediction, Time

PROBES = 8
ITERATIONS = 6


class Products(NamedTuple):
  """The products of each item's Jacobian with vectors of the shape of x: K v and K^T v."""

  right: Callable[[Array], Array]
  left: Callable[[Array], Array]


class Geometry(NamedTuple):
  """Of each item [B]; (2) is the mean of `skew` over the mean of `size`, of as many items as there
  are.

  Attributes:
    skew: |K - K^T|^2 / 4.
    size: |K|^2.
    dimension: (3).
    largest: (4).
  """

  skew: Array
  size: Array
  dimension: Array
  largest: Array


def products(denoiser: Denoiser, x: Array, time: Time, cond: Any = None) -> Products:
  """The Jacobians of x_0 at x [B, ...], which must not depend on each other's items."""
  _, pullback = jax.vjp(lambda y: denoiser(y, time, cond).x0, x)
  left = lambda v: pullback(v)[0]
  _, back = jax.vjp(left, jnp.zeros_like(x))  # v -> K^T v is linear: any point will do
  return Products(lambda v: back(v)[0], left)


def jacobians(denoiser: Denoiser, x: Array, time: Time, cond: Any = None) -> Array:
  """K of each item [B, D, D], for small D."""
  B, shape = len(x), x.shape[1:]
  D = int(np.prod(shape))
  _, left = products(denoiser, x, time, cond)

  def row(unit):
    return left(jnp.broadcast_to(unit.reshape(shape), x.shape)).reshape(B, D)

  return jnp.moveaxis(jax.lax.map(row, jnp.eye(D, dtype=x.dtype)), 0, 1)


def measure(
  denoiser: Denoiser, x: Array, time: Time, ids: Array, cond: Any = None, seed: int = 0
) -> Geometry:
  """Equations (2) to (4) at x [B, ...].

  Args:
    denoiser: whose items do not depend on each other. It should not clip, which cuts rows out of K.
    x: noisy items.
    time: their time; one for all, or [B].
    ids: numbers of the items [B], on which the probes depend.
    cond: passed to the denoiser.
    seed: of the probes.

  Raises:
    UserError: the time is that of clean data.
  """
  if not isinstance(time.b, jax.core.Tracer) and not np.all(np.asarray(time.b) > 0):
    raise UserError(
      'the Jacobian of a denoiser is that at noisy items, and b is 0; take a time that is not clean'
    )
  right, left = products(denoiser, x, time, cond)
  keys, inner = noise.sample_keys(seed, ids), tuple(range(1, x.ndim))
  dot = lambda u, v: jnp.sum(u * v, inner)

  def probed(step):
    z = noise.at_step(keys, step, x.shape[1:], x.dtype).normal
    return z, left(z)

  z, found = (part.reshape(PROBES, len(x), -1) for part in jax.lax.map(probed, jnp.arange(PROBES)))
  pairs = jnp.einsum('pbd,qbd->bpq', z, found, precision='highest')  # z_p . K^T z_q
  apart = 1 - jnp.eye(PROBES, dtype=x.dtype)[None]
  over_pairs = lambda y: jnp.sum(y**2 * apart, (1, 2)) / (PROBES * (PROBES - 1))
  skew, size = over_pairs(pairs - pairs.swapaxes(1, 2)) / 4, over_pairs(pairs)
  trace = jnp.trace(pairs, axis1=1, axis2=2) / PROBES

  def powered(v, _):
    grown = right(v)
    after, factor = left(grown), jnp.sqrt(dot(grown, grown))
    return unit(after), factor

  def unit(v):
    least = jnp.finfo(x.dtype).tiny
    v = v / jnp.maximum(jnp.max(jnp.abs(v), inner, keepdims=True), least)  # squares do not vanish
    return v / jnp.maximum(jnp.sqrt(jnp.sum(v * v, inner, keepdims=True)), least)

  start = unit(z[0].reshape(x.shape))
  _, factors = jax.lax.scan(powered, start, None, ITERATIONS)
  return Geometry(skew, size, jnp.asarray(time.a, x.dtype) * trace, factors[-1])


def gauge(denoiser: Denoiser, J: Array, c: float = 1.0) -> Denoiser:
  """Equation (5): the same marginals in the limit of small steps, if the score is exact; rotating
  costs steps.

  Args:
    denoiser: of samples with D elements.
    J: antisymmetric [D, D].
    c: how fast it turns.

  Raises:
    UserError: J is not antisymmetric, or not of the samples' size.
  """
  J = np.asarray(J, np.float64)
  if J.ndim != 2 or J.shape[0] != J.shape[1] or not np.allclose(J, -J.T, atol=1e-12):
    raise UserError(f'J must be an antisymmetric matrix, J^T = -J, got one of shape {J.shape}')

  def denoise(x, time, cond) -> Prediction:
    found = denoiser(x, time, cond)
    flat = found.eps.reshape(len(x), -1)
    if flat.shape[1] != len(J):
      raise UserError(f'J is of {len(J)} elements, and a sample has {flat.shape[1]}')
    turned = flat + c * jnp.dot(flat, jnp.asarray(J.T, x.dtype), precision='highest')
    return marginals.from_eps(x, turned.reshape(x.shape), time)._replace(share=found.share)

  return denoise
