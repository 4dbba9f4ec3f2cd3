"""Posteriors of a mixture of isotropic Gaussians, in blocks.

Unit j has mean m_j, precision alpha_j and log-prior log pi_j. For a query x of C entries,

  (1) logit_j = log pi_j + C/2 log alpha_j - alpha_j/2 |x - m_j|^2     [PA section 3, E-step]
  (2) w_j     = softmax_j logit_j                                      responsibilities
  (3) log p   = logsumexp_j logit_j - C/2 log(2 pi)
  (4) E[f|x]  = sum_j w_j f_j                                          posterior mean
  (5) n_j = sum_i w_ij,  s_j = sum_i w_ij y_i                          sums of the M-step

An exact denoiser, a score machine and an attention layer are all (4). `Pairs` has the general
logit: a product of such Gaussians, each observed for some queries only, and a bias for each pair.
Weights exist for one block of queries and one block of units at a time, forward and backward (they
are computed again from the log-normaliser), so memory is linear in their numbers.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gmm_diffusion.maths import noise
from gmm_diffusion.types import Array, Key

_HIGHEST = jax.lax.Precision.HIGHEST


class Units(NamedTuple):
  """Means [J, C], precisions [J] > 0, log-priors [J] (-inf switches a unit off)."""

  means: Array
  precisions: Array
  log_priors: Array


class Factor(NamedTuple):
  """One Gaussian of the logit: points x [Q, C], weights h [Q] of the points, means m [J, C],
  precisions [J].

  h_i multiplies the log-density: 1 observed, 0 not; None is 1 for all. Precision 0 is a flat
  factor, 0.
  """

  points: Array
  means: Array
  precisions: Array
  weights: Array | None = None


class Pairs(NamedTuple):
  """What all logits follow from: factors, log-priors [J], and a bias [Q, J] or None (-inf closes a
  pair)."""

  factors: tuple[Factor, ...]
  log_priors: Array
  bias: Array | None = None


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


def _pairs(queries: Array, units_: Units) -> Pairs:
  return Pairs((Factor(queries, units_.means, units_.precisions),), units_.log_priors)


class _Rows(NamedTuple):
  """What belongs to queries: points and weights of each factor."""

  points: tuple
  weights: tuple


class _Columns(NamedTuple):
  """What belongs to units: means and precisions of each factor, log-priors."""

  means: tuple
  precisions: tuple
  log_priors: Array


def _sides(pairs: Pairs) -> tuple[_Rows, _Columns]:
  points, means, precisions, weights = zip(*pairs.factors)
  return _Rows(points, weights), _Columns(means, precisions, pairs.log_priors)


def _logits(rows: _Rows, columns: _Columns, bias: Array | None, flip: bool = False) -> Array:
  """Equation (1), [Q, J], or [J, Q] if `flip`. Distances are taken about the centre of the open
  units, where cancellation is least."""
  of_unit, of_query = (
    (lambda x: x[:, None], lambda x: x[None]) if flip else (lambda x: x[None], lambda x: x[:, None])
  )
  out = of_unit(columns.log_priors)
  if bias is not None:
    out = out + (bias.T if flip else bias)
  on = (
    jnp.isfinite(columns.log_priors) if bias is None else jnp.any(jnp.isfinite(out), int(flip))
  )[:, None]
  for points, h, means, precisions in zip(
    rows.points, rows.weights, columns.means, columns.precisions
  ):
    centre = jnp.sum(jnp.where(on, means, 0), 0, keepdims=True) / jnp.maximum(jnp.sum(on), 1)
    centre = jax.lax.stop_gradient(centre)  # distances do not depend on it
    q, m = points - centre, jnp.where(on, means, centre) - centre
    product = (
      jnp.matmul(m, q.T, precision=_HIGHEST) if flip else jnp.matmul(q, m.T, precision=_HIGHEST)
    )
    squares = of_query(jnp.sum(q**2, 1)) + of_unit(jnp.sum(m**2, 1)) - 2 * product
    scale = 0.5 * points.shape[1] * jnp.log(jnp.where(precisions > 0, precisions, 1))
    term = of_unit(scale) - 0.5 * of_unit(precisions) * jnp.maximum(squares, 0)
    out = out + (term if h is None else of_query(h) * term)
  return out


def _weights(logits: Array, log_normaliser: Array) -> Array:
  """Equation (2) from logits and log-normalisers that broadcast; zero for queries to which no unit
  is open.

  Rounding of huge logits cannot lift a weight above 1.
  """
  none = jnp.where(jnp.isfinite(log_normaliser), log_normaliser, jnp.inf)
  return jnp.exp(jnp.minimum(logits - none, 0))


def pair_weights(pairs: Pairs, log_normaliser: Array) -> Array:
  """All responsibilities at once, [Q, J]: for small problems."""
  rows, columns = _sides(pairs)
  return _weights(_logits(rows, columns, pairs.bias), log_normaliser[:, None])


def _split(tree: Any, n: int, size: int, fill: float = 0) -> Any:
  """Splits leading axes of length n into blocks of `size`, the last one padded with `fill`."""
  count = -(-n // size)

  def split(x):
    x = jnp.pad(x, [(0, count * size - n)] + [(0, 0)] * (x.ndim - 1), constant_values=fill)
    return x.reshape((count, size) + x.shape[1:])

  return jax.tree.map(split, tree)


def _split_columns(columns: _Columns, n: int, size: int) -> _Columns:
  """Units in blocks; those that pad are switched off."""
  return _Columns(
    _split(columns.means, n, size),
    _split(columns.precisions, n, size, 1),
    _split(columns.log_priors, n, size, -jnp.inf),
  )


def _split_bias(bias: Array | None, size: tuple[int, int]) -> Array | None:
  """[Q, J] -> [row blocks, column blocks, q, j]."""
  if bias is None:
    return None
  (Q, J), (q, j) = bias.shape, size
  bias = jnp.pad(bias, ((0, -Q % q), (0, -J % j)), constant_values=-jnp.inf)
  return bias.reshape(-(-Q // q), q, -(-J // j), j).transpose(0, 2, 1, 3)


def _join(tree: Any, n: int) -> Any:
  """Undoes _split."""
  return jax.tree.map(lambda x: x.reshape((x.shape[0] * x.shape[1],) + x.shape[2:])[:n], tree)


def _scan(body, carry: Any, parts: Any) -> tuple[Any, Any]:
  """jax.lax.scan, without a loop where there is one block only: that compiles faster."""
  return jax.lax.scan(body, carry, parts, unroll=len(jax.tree.leaves(parts)[0]) == 1 or 1)


class Stream(NamedTuple):
  """A posterior in the making, for logits that come from elsewhere (patches, Fourier transforms),
  block by block.

  top is the largest logit so far, [...]; sums [V + 1, ...] are those of exp(logit - top) times the
  values, and times 1.
  """

  top: Array
  sums: Array


def start(shape: tuple[int, ...], entries: int, dtype) -> Stream:
  """The Stream of no units, for queries of any `shape` and values of `entries` entries."""
  return Stream(jnp.full(shape, -jnp.inf, dtype), jnp.zeros((entries + 1, *shape), dtype))


def absorb(stream: Stream, logits: Array, weigh: Callable[[Array], Array]) -> Stream:
  """Adds units with logits [J, ...]; weigh(weights [J, ...]) -> the weighted sums [V + 1, ...] of
  their values and of 1."""
  top = jnp.maximum(stream.top, jnp.max(logits, 0))
  return Stream(
    top, stream.sums * _relative(stream.top, top)[None] + weigh(_relative(logits, top[None]))
  )


def _relative(logits, top):
  """exp(logits - top), 0 where all units so far are switched off."""
  return jnp.exp(logits - jnp.where(jnp.isfinite(top), top, 0))


def merge(
  stream: Stream, largest: Callable[[Array], Array], total: Callable[[Array], Array]
) -> Stream:
  """One Stream of those of several devices, by their collective maximum and sum."""
  top = largest(stream.top)
  return Stream(top, total(stream.sums * _relative(stream.top, top)[None]))


def means(stream: Stream) -> Posterior:
  """Posterior with mean [V, ...] and log_normaliser [...]; mean 0 where no unit is open."""
  total = stream.sums[-1]
  return Posterior(
    stream.sums[:-1] / jnp.where(total > 0, total, 1)[None], stream.top + jnp.log(total)
  )


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
  return pair_posterior(_pairs(queries, units_), values, block)


def pair_posterior(pairs: Pairs, values: Array, block: int = 1024) -> Posterior:
  """`posterior` for any logits."""
  return _posterior(block, *_sides(pairs), pairs.bias, values)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _posterior(block, rows, columns, bias, values):
  Q, J = len(rows.points[0]), len(columns.log_priors)
  size = min(block, Q), min(block, J)
  ones = jnp.ones((J, 1), values.dtype)
  parts = (
    _split_columns(columns, J, size[1]),
    _split(jnp.concatenate([values, ones], 1), J, size[1]),
  )

  def of_rows(args):
    row, row_bias = args

    def body(stream, part):
      (column, value), b = part
      logits = _logits(row, column, b, flip=True)
      return absorb(
        stream, logits, lambda weights: jnp.matmul(value.T, weights, precision=_HIGHEST)
      ), None

    stream, _ = _scan(body, start(size[:1], values.shape[1], values.dtype), (parts, row_bias))
    out = means(stream)
    return out._replace(mean=out.mean.T)

  _, out = _scan(
    lambda _, part: (None, of_rows(part)), None, (_split(rows, Q, size[0]), _split_bias(bias, size))
  )
  return _join(out, Q)


def _pull(block, rows, columns, bias, log_normaliser, row_side, column_side, gradient):
  """The backward pass of (4) and (5): weights again, block by block, and what d logits and d w do.

  gradient(w, row_side, column_side) -> (d logits, d row_side, d column_side) for a block.
  """
  Q, J = len(rows.points[0]), len(columns.log_priors)
  size = min(block, Q), min(block, J)
  column_parts = _split_columns(columns, J, size[1]), _split(column_side, J, size[1])
  zero = functools.partial(jax.tree.map, jnp.zeros_like)
  add = functools.partial(jax.tree.map, jnp.add)

  def of_rows(carry, part):
    (row, z, side), row_bias = part

    def of_columns(total, part):
      (column, other), b = part
      logits, pull = jax.vjp(_logits, row, column, b)
      d_logits, d_side, d_other = gradient(_weights(logits, z[:, None]), side, other)
      d_row, d_column, d_bias = pull(d_logits)
      return add(total, (d_row, d_side)), (d_column, d_other, d_bias)

    total, (d_column, d_other, d_bias) = _scan(
      of_columns, zero((row, side)), (column_parts, row_bias)
    )
    return add(carry, (d_column, d_other)), (total, d_bias)

  row_parts = _split((rows, row_side), Q, size[0]), _split_bias(bias, size)
  row_parts = (
    (row_parts[0][0], _split(log_normaliser, Q, size[0], -jnp.inf), row_parts[0][1]),
    row_parts[1],
  )
  d_columns, (d_rows, d_bias) = _scan(of_rows, zero(column_parts), row_parts)
  if bias is not None:
    d_bias = d_bias.transpose(0, 2, 1, 3).reshape(d_bias.shape[0] * size[0], -1)[:Q, :J]
  return *_join(d_rows, Q), *_join(d_columns, J), d_bias


def _posterior_forward(block, rows, columns, bias, values):
  out = _posterior(block, rows, columns, bias, values)
  return out, (rows, columns, bias, values, out)


def _posterior_backward(block, saved, cotangent):
  rows, columns, bias, values, out = saved
  offset = cotangent.log_normaliser - jnp.sum(cotangent.mean * out.mean, 1)

  def gradient(w, side, value):  # d mean_i / d logit_ij = w_ij (f_j - mean_i)
    mean, offset = side
    d_logits = w * (jnp.matmul(mean, value.T, precision=_HIGHEST) + offset[:, None])
    return d_logits, jax.tree.map(jnp.zeros_like, side), jnp.matmul(w.T, mean, precision=_HIGHEST)

  d_rows, _, d_columns, d_values, d_bias = _pull(
    block, rows, columns, bias, out.log_normaliser, (cotangent.mean, offset), values, gradient
  )
  return d_rows, d_columns, d_bias, d_values


_posterior.defvjp(_posterior_forward, _posterior_backward)


def transposed_sums(
  queries: Array, units_: Units, log_normaliser: Array, values: Array, block: int = 1024
) -> tuple[Array, Array]:
  """Equation (5): n [J] and s [J, V] for values y [Q, V] carried by the queries.

  `log_normaliser` [Q] is that of `posterior`; queries with -inf carry no weight.
  """
  return pair_sums(_pairs(queries, units_), log_normaliser, values, block)


def pair_sums(
  pairs: Pairs, log_normaliser: Array, values: Array, block: int = 1024
) -> tuple[Array, Array]:
  """`transposed_sums` for any logits."""
  sums = _sums(
    block,
    *_sides(pairs),
    pairs.bias,
    log_normaliser,
    jnp.concatenate([values, jnp.ones((len(values), 1), values.dtype)], 1),
  )
  return sums[:, -1], sums[:, :-1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sums(block, rows, columns, bias, log_normaliser, values):
  Q, J = len(values), len(columns.log_priors)
  size = min(block, Q), min(block, J)
  parts = (
    _split(rows, Q, size[0]),
    _split(log_normaliser, Q, size[0], -jnp.inf),
    _split(values, Q, size[0]),
  )
  row_bias = _split_bias(bias, size)

  def of_column(args):
    column, column_bias = args

    def body(total, part):
      (row, z, y), b = part
      weights = _weights(
        _logits(row, column, b, flip=True), z[None]
      )  # in the layout that the product wants: 1.8 times faster
      return total + jnp.matmul(weights, y, precision=_HIGHEST), None

    return _scan(body, jnp.zeros((size[1], values.shape[1]), values.dtype), (parts, column_bias))[0]

  column_bias = None if bias is None else row_bias.swapaxes(0, 1)
  _, out = _scan(
    lambda _, part: (None, of_column(part)),
    None,
    (_split_columns(columns, J, size[1]), column_bias),
  )
  return _join(out, J)


def _sums_forward(block, rows, columns, bias, log_normaliser, values):
  return _sums(block, rows, columns, bias, log_normaliser, values), (
    rows,
    columns,
    bias,
    log_normaliser,
    values,
  )


def _sums_backward(block, saved, cotangent):
  rows, columns, bias, log_normaliser, values = saved

  def gradient(w, side, d_sum):
    y, _ = side
    d_logits = w * jnp.matmul(y, d_sum.T, precision=_HIGHEST)
    return (
      d_logits,
      (jnp.matmul(w, d_sum, precision=_HIGHEST), -jnp.sum(d_logits, 1)),
      jnp.zeros_like(d_sum),
    )

  d_rows, (d_values, d_log_normaliser), d_columns, _, d_bias = _pull(
    block,
    rows,
    columns,
    bias,
    log_normaliser,
    (values, jnp.zeros_like(log_normaliser)),
    cotangent,
    gradient,
  )
  return d_rows, d_columns, d_bias, d_log_normaliser, d_values


_sums.defvjp(_sums_forward, _sums_backward)


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
