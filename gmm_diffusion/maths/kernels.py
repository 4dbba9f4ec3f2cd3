"""The squared maximum mean discrepancy of features, and the kernels that it is measured with.

  (1) [sum_{i != j} k(x_i, x_j) + sum_{i != j} k(y_i, y_j)] / (n (n - 1)) - 2 mean_ij k(x_i, y_j)

is 0 on average where samples x and data y have one law. Features have D numbers, of mean square
about one: the three sums nearly cancel, and float32 would not do for much larger ones.
"""

from collections.abc import Callable

import jax.numpy as jnp

from gmm_diffusion.types import Array

Kernel = Callable[[Array, Array], Array]


def polynomial(x: Array, y: Array) -> Array:
  """(x . y / D + 1)^3, [n, m]: blind to all but the first three moments [Binkowski et al. 2018]."""
  return (x @ y.T / x.shape[1] + 1) ** 3


def gaussian(x: Array, y: Array) -> Array:
  """exp(-|x - y|^2 / D), [n, m]."""
  return jnp.exp(-squares(x, y) / x.shape[1])


def energy(x: Array, y: Array) -> Array:
  """-|x - y|, [n, m], with which (1) is the energy distance [Szekely & Rizzo 2013]."""
  return -distances(x, y)


KERNELS = {'polynomial': polynomial, 'gaussian': gaussian, 'energy': energy}


def squares(x: Array, y: Array) -> Array:
  """|x_i - y_j|^2, [n, m]; a rounding below 0 at worst."""
  return jnp.sum(x**2, 1)[:, None] + jnp.sum(y**2, 1)[None] - 2 * x @ y.T


def distances(x: Array, y: Array) -> Array:
  """|x_i - y_j|, [n, m]; differentiable where the two are equal."""
  return jnp.sqrt(jnp.maximum(squares(x, y), 1e-6))


def mmd(kernel: Kernel, x: Array, y: Array) -> Array:
  """Equation (1) of features [n, D] and [n, D]; n at least 2."""
  n, diagonal = len(x), jnp.eye(len(x), dtype=bool)
  within = lambda z: jnp.sum(jnp.where(diagonal, 0, kernel(z, z)))
  return (within(x) + within(y)) / (n * (n - 1)) - 2 * jnp.mean(kernel(x, y))
