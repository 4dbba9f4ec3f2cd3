"""What the Jacobian of a denoiser says about its model [2402.03845], and models with the same
marginals whose scores are not gradients.

The exact E[x_0 | x_t] has the Jacobian

  (1) K = d x_0 / d x_t = (a / b^2) Cov[x_0 | x_t]                       symmetric, no eigenvalue < 0

  (2) asymmetry  |K - K^T|^2 / (4 |K|^2), in [0, 1]        0: the score is the gradient of something
  (3) dimension  a tr K; with falling b it tends to the dimension of what the data lie on
  (4) largest    the largest singular value of K           how much an error of x_t grows in x_0

(2) and (3) are means over probes z ~ N(0, I): E |K z|^2 = |K|^2 and E z . K z = tr K. (4) is a power
iteration, so it errs to the low side. K^T z is one vjp, and K z the vjp of that one: a jvp does not
pass through the streaming posteriors of the exact denoisers.

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
from gmm_diffusion.maths.marginals import match
from gmm_diffusion.types import Array, Denoiser, Prediction, Time

PROBES = 4
ITERATIONS = 8


class Products(NamedTuple):
  """x_0 [B, ...] and the products of each item's Jacobian with vectors of the same shape: K v and
  K^T v."""

  x0: Array
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
  x0, pullback = jax.vjp(lambda y: denoiser(y, time, cond).x0, x)
  left = lambda v: pullback(v)[0]
  _, back = jax.vjp(left, jnp.zeros_like(x))  # v -> K^T v is linear: any point will do
  return Products(x0, lambda v: back(v)[0], left)


def jacobians(denoiser: Denoiser, x: Array, time: Time, cond: Any = None) -> Array:
  """K of each item [B, D, D], for small D."""
  B, shape = len(x), x.shape[1:]
  D = int(np.prod(shape))
  _, _, left = products(denoiser, x, time, cond)

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
  """
  _, right, left = products(denoiser, x, time, cond)
  keys, inner = noise.sample_keys(seed, ids), tuple(range(1, x.ndim))
  dot = lambda u, v: jnp.sum(u * v, inner)

  def probed(step):
    z = noise.at_step(keys, step, x.shape[1:], x.dtype).normal
    after, before = right(z), left(z)
    return dot(after - before, after - before) / 4, dot(after, after), dot(z, after)

  skew, size, trace = (jnp.mean(part, 0) for part in jax.lax.map(probed, jnp.arange(PROBES)))

  def unit(v):
    return v / match(jnp.maximum(jnp.sqrt(dot(v, v)), jnp.finfo(x.dtype).tiny), v)

  start = unit(noise.at_step(keys, PROBES, x.shape[1:], x.dtype).normal)
  v, _ = jax.lax.scan(lambda v, _: (unit(left(right(v))), None), start, None, ITERATIONS)
  grown = right(v)
  return Geometry(skew, size, jnp.asarray(time.a, x.dtype) * trace, jnp.sqrt(dot(grown, grown)))


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
    flat = denoiser(x, time, cond).eps.reshape(len(x), -1)
    if flat.shape[1] != len(J):
      raise UserError(f'J is of {len(J)} elements, and a sample has {flat.shape[1]}')
    turned = flat + c * jnp.dot(flat, jnp.asarray(J.T, x.dtype), precision='highest')
    return marginals.from_eps(x, turned.reshape(x.shape), time)

  return denoise
