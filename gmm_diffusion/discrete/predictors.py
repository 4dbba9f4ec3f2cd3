"""What masked tokens may be: exactly, for data that are known, and by a network.

The data are a mixture of products, one for each item j with tokens y_j:

  (1) p(x) = sum_j pi_j prod_l theta(x^l | y_j^l),   theta(v | k) = (1 - e) K(v | k) + e / V
  (2) W_j proportional to pi_j prod_{l not masked} theta(x^l | y_j^l)
      mu^l = sum_j W_j theta(. | y_j^l)

K is one where v = k, or falls off as a Gaussian of the difference of the levels. With the one-hot
vector h_j of y_j, and q^l = log theta(x^l | .) where l is seen and 0 where not, the logarithm of
the product is q . h_j: (2) is the posterior of a Gaussian mixture at h_j, since all h_j are equally
long.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gmm_diffusion.discrete.process import Predictor
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import mixtures
from gmm_diffusion.types import Array


class Exact(NamedTuple):
  """predictor: (2). log_prob: tokens [B, L], any of them masked -> log of (1) over those that are
  not, [B]."""

  predictor: Predictor
  log_prob: Callable[[Array], Array]


def table(levels: int, epsilon: float, width: float = 0.0) -> np.ndarray:
  """theta(v | k) as [k, v], float64.

  Args:
    levels: V, at least 2.
    epsilon: e, in (0, 1]: at 0 a token that no item has would leave nothing possible.
    width: of K, in levels; 0 is one where v = k.

  Raises:
    UserError: a value is out of range.
  """
  if levels < 2 or not 0 < epsilon <= 1 or width < 0:
    raise UserError(
      f'masked data need levels >= 2, epsilon in (0, 1] and width >= 0, got {levels}, '
      f'{epsilon:g} and {width:g}'
    )
  apart = np.subtract.outer(np.arange(levels), np.arange(levels))
  K = np.exp(-(apart**2) / (2 * width**2)) if width else (apart == 0).astype(np.float64)
  return (1 - epsilon) * K / K.sum(1, keepdims=True) + epsilon / levels


def exact(
  items: Array, levels: int, epsilon: float = 0.05, width: float = 0.0, block: int = 1024
) -> Exact:
  """(2) for items [J, L] of tokens, all equally likely; see `table` for the rest.

  Raises:
    UserError: a token is out of range.
  """
  traced = isinstance(items, jax.core.Tracer)  # its values are not known yet
  if not traced and (np.min(items) < 0 or np.max(items) >= levels):
    raise UserError(f'tokens must be in 0..{levels - 1}, got {np.min(items)}..{np.max(items)}')
  theta = table(levels, epsilon, width)
  J, L = items.shape
  log_theta = np.log(theta)

  def posterior(x, values):
    like = jnp.asarray(np.vstack([log_theta.T, np.zeros(levels)]), jnp.result_type(float))
    q = like[x]  # [B, L, k]
    middle = jnp.mean(q, -1, keepdims=True)  # is the same for all items
    hot = jax.nn.one_hot(items, levels, dtype=q.dtype).reshape(J, -1)
    q = (q - middle).reshape(len(x), -1)
    found = mixtures.posterior(q, mixtures.units(hot), values(hot), block)
    # q . h - |q - h|^2 / 2 is (|q|^2 + L) / 2
    offset = (jnp.sum(q**2, 1) + L) / 2 + jnp.sum(middle, (1, 2))
    return found.mean, found.log_normaliser + offset

  def predictor(x, cond=None):
    del cond
    mean, _ = posterior(x, lambda hot: hot)
    by_level = mean.reshape(*x.shape, levels)
    return jnp.log(
      jnp.einsum('blk,kv->blv', by_level, jnp.asarray(theta, mean.dtype), precision='highest')
    )

  return Exact(predictor, lambda x: posterior(x, lambda hot: hot[:, :1])[1])


def network(apply: Callable[[Array, Array, Any], Array], shape: tuple[int, ...], levels: int):
  """A Predictor of apply(one-hot images [B, H, W, C (V + 1)], 1000 times the masked share [B],
  cond) -> logits [B, H, W, C V], for tokens of images of a shape (H, W, C)."""
  H, W, C = shape

  def predictor(x, cond=None):
    hot = jax.nn.one_hot(x.reshape(-1, H, W, C), levels + 1).reshape(-1, H, W, C * (levels + 1))
    logits = apply(hot, 1000 * jnp.mean(x == levels, 1), cond)
    return jax.nn.log_softmax(logits.reshape(*x.shape, levels))

  return predictor
