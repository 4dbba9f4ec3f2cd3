"""Masked diffusion of tokens 0..V-1, where V is the mask [MD4, 2406.04329; 2409.02908].

  (1) forward      each of L tokens is masked by itself with probability t
  (2) bound        -log p(x) <= L E_n[mean over n masked tokens of -log mu^l(x_masked)[x^l]],
                   n uniform in 1..L, and which n is uniform too

mu^l is what a predictor says of token l, given the tokens that are not masked; no time is needed,
as how many are masked says it. (2) is an equality for the exact predictor, by the chain rule.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmm_diffusion.types import Array, Key

# (tokens int [B, L], cond) -> log-probabilities [B, L, V] of each token, the masked ones included
Predictor = Callable[[Array, Any], Array]


def masked(x: Array, places: Array, levels: int) -> Array:
  """Tokens x [B, L] with the mask where places [B, L] are True."""
  return jnp.where(places, levels, x)


def bound(
  predictor: Predictor, x: Array, keys: Key, levels: int, draws: int = 1, cond: Any = None
) -> Array:
  """Equation (2) in nats [B], without bias.

  Args:
    predictor: of tokens with this number of levels.
    x: tokens without masks, int [B, L].
    keys: one for each item, [B].
    levels: V.
    draws: of n and of the masked tokens, spread evenly over n; what is returned is their mean.
    cond: passed to the predictor.
  """
  B, L = x.shape

  def one(draw):
    def of_item(key):
      first, rest = jax.random.split(key)
      # u_0 + draw / draws mod 1: every range of n has its share of the draws
      u = (jax.random.uniform(first) + draw / draws) % 1
      order = jax.random.uniform(jax.random.fold_in(rest, draw), (L,))
      n = jnp.minimum(jnp.floor(u * L).astype(jnp.int32), L - 1) + 1
      return jnp.argsort(jnp.argsort(order)) < n, n

    places, n = jax.vmap(of_item)(keys)
    found = predictor(masked(x, places, levels), cond)
    own = jnp.take_along_axis(found, x[..., None], -1)[..., 0]
    return L * jnp.sum(jnp.where(places, -own, 0), 1) / n

  if draws == 1:  # on CPUs, gradients of convolutions take 30 times as long inside a loop
    return one(0)
  return jnp.mean(jax.lax.map(one, jnp.arange(draws)), 0)


def bits_per_token(nats: Any, tokens: int) -> np.ndarray:
  """Nats of whole items as bits of each of their tokens ("bits per dimension")."""
  return np.asarray(nats, np.float64) / (tokens * np.log(2))
