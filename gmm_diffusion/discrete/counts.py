"""How many tokens to reveal in each call, so that least is lost.

Tokens that are revealed together are drawn as if they did not know of each other. For tokens in a
random order x_1, x_2, ..., and n of them known, what that loses in a step to m known ones is the
divergence of their joint law from the product, their total correlation,

  (1) c(n, m) = E[sum_{n < l <= m} log mu(x_l | x_1 .. x_(l - 1)) - log mu(x_l | x_1 .. x_n)]

in nats. The sum over the steps is the divergence of the law of orders and tokens from that of one
token a call, and at least that of the tokens alone. It takes a predictor and no more, which is
asked L times. The counts with the least sum are found exactly:

  (2) V_1(m) = c(0, m),   V_N(m) = min_n V_(N - 1)(n) + c(n, m)

A published objective for the same choice [LSD, 2509.19962] compares scores of two different random
states, and is least where the steps are too small to arrive.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmm_diffusion.discrete.process import Predictor, masked
from gmm_diffusion.errors import UserError
from gmm_diffusion.types import Array, Key


def known(predictor: Predictor, x: Array, keys: Key, levels: int, cond: Any = None) -> Array:
  """log mu(x_l | x_1 .. x_n) of tokens in an order drawn from each key, [B, L, L] by n and l; 0
  where l <= n. Asks the predictor L times.

  Args:
    predictor: of tokens with this number of levels.
    x: tokens without masks, int [B, L]: of the data, or drawn by the predictor.
    keys: one for each item, [B].
    levels: V.
    cond: passed to the predictor.
  """
  B, L = x.shape
  order = jax.vmap(lambda key: jnp.argsort(jax.random.uniform(key, (L,))))(keys)
  rank = jnp.argsort(order, -1)

  def one(n):
    found = predictor(masked(x, rank >= n, levels), cond)
    own = jnp.take_along_axis(found, x[..., None], -1)[..., 0]
    return jnp.where(jnp.arange(L)[None] >= n, jnp.take_along_axis(own, order, -1), 0)

  return jnp.moveaxis(jax.lax.map(one, jnp.arange(L)), 0, 1)


def lost(found: Array) -> np.ndarray:
  """Equation (1) from `known` of items [B, L, L]: c [L + 1, L + 1] in nats, float64, by n and m;
  infinite where m <= n."""
  mean = np.mean(np.asarray(found, np.float64), 0)
  L = len(mean)
  sums = np.zeros((L, L + 1))
  sums[:, 1:] = np.cumsum(mean, 1)  # over l <= m, where l > n
  chain = np.concatenate([[0.0], np.cumsum(np.diagonal(mean))])
  out = np.full((L + 1, L + 1), np.inf)
  for n in range(L):
    out[n, n + 1 :] = chain[n + 1 :] - chain[n] - sums[n, n + 1 :]
  return out


def best(cost: np.ndarray, steps: int) -> np.ndarray:
  """Equation (2): the counts of `steps` steps that lose least, int64 [steps], from `lost`."""
  L = len(cost) - 1
  _check(steps, L)
  value, back = cost[0], []
  for _ in range(steps - 1):
    every = value[:, None] + cost
    back.append(np.argmin(every, 0))
    value = np.min(every, 0)
  at = [L]
  for before in back[::-1]:
    at.append(int(before[at[-1]]))
  return np.diff([0, *at[::-1]])


def total(cost: np.ndarray, each: np.ndarray) -> float:
  """What counts lose, in nats."""
  at = np.concatenate([[0], np.cumsum(each)])
  return float(np.sum(cost[at[:-1], at[1:]]))


def uniform(tokens: int, steps: int) -> np.ndarray:
  """Counts that differ by one at most."""
  _check(steps, tokens)
  return np.diff(np.round(np.linspace(0, tokens, steps + 1)).astype(int))


def cosine(tokens: int, steps: int) -> np.ndarray:
  """Few tokens first: the masked share falls as a cosine [MaskGIT, 2202.04200]; at least one a
  step."""
  _check(steps, tokens)
  at = np.round(tokens * (1 - np.cos(np.pi / 2 * np.arange(steps + 1) / steps))).astype(int)
  at = np.maximum.accumulate(np.maximum(at, np.arange(steps + 1)))
  return np.diff(np.minimum(at, tokens - np.arange(steps, -1, -1)))


def _check(steps, tokens):
  if not 1 <= steps <= tokens:
    raise UserError(f'{tokens} tokens can be revealed in 1 to {tokens} steps, got {steps}')
