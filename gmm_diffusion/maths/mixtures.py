"""Posteriors of a mixture of isotropic Gaussians, in blocks.

Unit j has mean m_j, precision alpha_j and log-prior log pi_j. For a query x of C entries,

  (1) logit_j = log pi_j + C/2 log alpha_j - alpha_j/2 |x - m_j|^2     [PA section 3, E-step]
  (2) w_j     = softmax_j logit_j                                      responsibilities
  (3) log p   = logsumexp_j logit_j - C/2 log(2 pi)
  (4) E[f|x]  = sum_j w_j f_j                                          posterior mean
  (5) n_j = sum_i w_ij,  s_j = sum_i w_ij y_i                          sums of the M-step

An exact denoiser, a score machine and an attention layer are all (4). Weights exist for
one block of queries and one block of units at a time, so memory is linear in their numbers.
"""

from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp

from gmm_diffusion.aliases import Array, Key
from gmm_diffusion.maths import noise

_HIGHEST = jax.lax.Precision.HIGHEST


class Units(NamedTuple):
  """Means [J, C], precisions [J] > 0, log-priors [J] (-inf switches a unit off)."""

  means: Array
  precisions: Array
  log_priors: Array


class Posterior(NamedTuple):
  """mean [Q, V] of equation (4) and log_normaliser [Q], the logsumexp of (3)."""

  mean: Array
  log_normaliser: Array


def units(means: Array, precisions: Array | float = 1.0, log_priors: Array | None = None) -> Units:
  """Units with scalar arguments spread out; uniform priors by default."""
  n = len(means)
  if log_priors is None:
    log_priors = jnp.full((n,), -jnp.log(float(n)), means.dtype)
  return Units(means, jnp.broadcast_to(jnp.asarray(precisions, means.dtype), (n,)), log_priors)


def _logits(queries: Array, block: Units) -> Array:
  """Equation (1), [Q, J]. Distances are taken about the block's centre, where cancellation is least."""
  centre = jnp.mean(block.means, 0, keepdims=True)
  q, m = queries - centre, block.means - centre
  squares = jnp.sum(q**2, 1)[:, None] + jnp.sum(m**2, 1)[None] - 2 * jnp.matmul(q, m.T, precision=_HIGHEST)
  scale = 0.5 * queries.shape[1] * jnp.log(block.precisions)
  return (block.log_priors + scale)[None] - 0.5 * block.precisions[None] * jnp.maximum(squares, 0)


def _blocks(tree, n: int, size: int, fill: dict):
  """Splits leading axes of length n into blocks of `size`, the last one padded with fill[field]."""
  count = -(-n // size)
  pad = count * size - n

  def split(x, value):
    x = jnp.pad(x, [(0, pad)] + [(0, 0)] * (x.ndim - 1), constant_values=value)
    return x.reshape((count, size) + x.shape[1:])

  return {name: split(x, fill.get(name, 0)) for name, x in tree.items()}


def posterior(queries: Array, units_: Units, values: Array, block: int = 1024) -> Posterior:
  """Posterior means of `values` [J, V] under queries [Q, C], with a streaming log-sum-exp.

  Args:
    queries: [Q, C].
    units_: the mixture, J units.
    values: [J, V], what to average.
    block: number of queries and of units in flight; memory is O(block^2 + (Q + J)(C + V)).

  Returns:
    Posterior. A query to which no unit is open (all log-priors -inf) has mean 0 and
    log-normaliser -inf.
  """
  J = len(units_.means)
  size = min(block, J)
  parts = _blocks(dict(units_._asdict(), values=values), J, size, {'precisions': 1, 'log_priors': -jnp.inf})

  def rows(q):
    def body(carry, part):
      top, total, mean = carry
      logits = _logits(q, Units(part['means'], part['precisions'], part['log_priors']))
      new_top = jnp.maximum(top, jnp.max(logits, 1))
      safe = jnp.where(jnp.isfinite(new_top), new_top, 0)  # all units so far switched off
      shrink = jnp.exp(top - safe)
      weights = jnp.exp(logits - safe[:, None])
      total = total * shrink + jnp.sum(weights, 1)
      mean = mean * shrink[:, None] + jnp.matmul(weights, part['values'], precision=_HIGHEST)
      return (new_top, total, mean), None

    start = (jnp.full(len(q), -jnp.inf, q.dtype), jnp.zeros(len(q), q.dtype),
             jnp.zeros((len(q), values.shape[1]), q.dtype))
    (top, total, mean), _ = jax.lax.scan(body, start, parts)
    return Posterior(mean / jnp.where(total > 0, total, 1)[:, None], top + jnp.log(total))

  return _over_queries(rows, queries, block)


def _over_queries(rows, queries, block):
  """Applies rows([q, C]) to blocks of queries and joins the results."""
  Q = len(queries)
  if Q <= block:
    return rows(queries)
  parts = _blocks({'q': queries}, Q, block, {})['q']
  return jax.tree.map(lambda x: x.reshape((x.shape[0] * x.shape[1],) + x.shape[2:])[:Q], jax.lax.map(rows, parts))


def transposed_sums(queries: Array, units_: Units, log_normaliser: Array, values: Array,
                    block: int = 1024) -> tuple[Array, Array]:
  """Equation (5): n [J] and s [J, V] for values y [Q, V] carried by the queries.

  `log_normaliser` [Q] is that of `posterior`; queries with -inf carry no weight.
  """
  Q, J = len(queries), len(units_.means)
  size = min(block, Q)
  parts = _blocks({'q': queries, 'z': log_normaliser, 'y': values}, Q, size, {'z': -jnp.inf})
  columns = _blocks(units_._asdict(), J, min(block, J), {'precisions': 1, 'log_priors': -jnp.inf})

  def column(unit_block):
    def body(carry, part):
      open_ = jnp.isfinite(part['z'])
      logits = _logits(part['q'], Units(**unit_block)) - jnp.where(open_, part['z'], 0)[:, None]
      weights = jnp.where(open_[:, None], jnp.exp(logits), 0)
      mass, total = carry
      return (mass + jnp.sum(weights, 0), total + jnp.matmul(weights.T, part['y'], precision=_HIGHEST)), None

    n = unit_block['precisions'].shape[0]
    start = (jnp.zeros(n, queries.dtype), jnp.zeros((n, values.shape[1]), queries.dtype))
    return jax.lax.scan(body, start, parts)[0]

  mass, total = jax.lax.map(column, columns)
  return mass.reshape(-1)[:J], total.reshape(mass.size, values.shape[1])[:J]


def log_prob(queries: Array, units_: Units, block: int = 1024) -> Array:
  """Equation (3), natural log-density [Q]; log-priors must be normalised."""
  nothing = jnp.zeros((len(units_.means), 0), queries.dtype)
  log_normaliser = posterior(queries, units_, nothing, block).log_normaliser
  return log_normaliser - 0.5 * queries.shape[1] * jnp.log(2 * jnp.pi)


def sample(keys: Key, units_: Units) -> Array:
  """One draw per key: [B, C] from keys [B]."""
  draws = noise.at_step(keys, 0, units_.means.shape[1:], units_.means.dtype)
  index = noise.categorical(draws.uniform, jax.nn.softmax(units_.log_priors))
  return units_.means[index] + draws.normal / jnp.sqrt(units_.precisions[index])[:, None]


class Stream(NamedTuple):
  """A posterior in the making, for logits that come from elsewhere (patches, Fourier transforms), block by block.

  top is the largest logit so far, [...]; sums [V + 1, ...] are those of exp(logit - top) times the values, and times 1.
  """

  top: Array
  sums: Array


def start(shape: tuple[int, ...], entries: int, dtype) -> Stream:
  """The Stream of no units, for queries of any `shape` and values of `entries` entries."""
  return Stream(jnp.full(shape, -jnp.inf, dtype), jnp.zeros((entries + 1, *shape), dtype))


def absorb(stream: Stream, logits: Array, weigh: Callable[[Array], Array]) -> Stream:
  """Adds units with logits [J, ...]; weigh(weights [J, ...]) -> the weighted sums [V + 1, ...] of their values and of 1."""
  top = jnp.maximum(stream.top, jnp.max(logits, 0))
  return Stream(top, stream.sums * _relative(stream.top, top)[None] + weigh(_relative(logits, top[None])))


def _relative(logits, top):
  """exp(logits - top), 0 where all units so far are switched off."""
  return jnp.exp(logits - jnp.where(jnp.isfinite(top), top, 0))


def merge(stream: Stream, largest: Callable[[Array], Array], total: Callable[[Array], Array]) -> Stream:
  """One Stream of those of several devices, by their collective maximum and sum."""
  top = largest(stream.top)
  return Stream(top, total(stream.sums * _relative(stream.top, top)[None]))


def means(stream: Stream) -> Posterior:
  """Posterior with mean [V, ...] and log_normaliser [...]; mean 0 where no unit is open."""
  total = stream.sums[-1]
  return Posterior(stream.sums[:-1] / jnp.where(total > 0, total, 1)[None], stream.top + jnp.log(total))
