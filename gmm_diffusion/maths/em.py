"""Probabilistic attention: EM in a mixture over memory units [PA section 3].

Unit j has key zeta_j, value mu_j, precisions alpha_j (queries) and beta_j (values) and prior pi_ij
for query i:

  (1) p_i(q, v)  = sum_j pi_ij N(q; zeta_j, I / alpha_j) N(v; mu_j, I / beta_j)
  (2) w_ij       = softmax_j log [ pi_ij N(q_i; ...) N(v_i; ...)^h_i ]      E-step; h_i: v_i is held
  (3) v_i        = sum_j w_ij beta_j mu_j / sum_j w_ij beta_j               value MAP
  (4) zeta_j     = (theta_z zeta_j^0 + alpha_j sum_i w_ij q_i)              key adaptation
                   / (theta_z + alpha_j sum_i w_ij)
  (5) mu_j       = (theta_m mu_j^0 + beta_j sum_i w_ij h_i v_i)             value propagation
                   / (theta_m + beta_j sum_i w_ij h_i)
  (6) objective  = sum_i log p_i - theta_z/2 |zeta - zeta^0|^2              never falls
                   - theta_m/2 |mu - mu^0|^2
  (7) positions  : factors N(q_i; r^q_ij, I / alpha_j) N(zeta_j; r^k_ji, I / alpha_j);
                   (4) then also averages r^k
  (8) magnitudes : log pi_ij = alpha_j/2 (|zeta_j|^2 + |r^q_ij|^2 + |zeta_j|^2 + |r^k_ji|^2), as far
                   as the factors are there

With alpha = 1 / sqrt(C), beta = 0 and (8), (3) is dot-product attention, and with (7) relative
attention. The priors of (4) and (5) stay at the keys and values that came in, and so do the
magnitudes (8): otherwise (6) could fall. All functions are for one head of one item; `jax.vmap`
over the rest. Weights are computed in blocks (mixtures.py), so memory is linear in the numbers of
tokens and units.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gmm_diffusion.maths import mixtures
from gmm_diffusion.types import Array

BLOCK = 256


class Memory(NamedTuple):
  """Units: keys [J, C], values [J, V], precisions alpha > 0 and beta >= 0 [J], log-priors [J]
  (-inf: switched off)."""

  keys: Array
  values: Array
  alpha: Array
  beta: Array
  log_priors: Array


class Tokens(NamedTuple):
  """Queries [I, C]; values [I, V] where held [I] (float) is 1, and anything where it is 0; bias [I,
  J]: log pi_ij and masks (-inf); present [I] (float): 0 for a slot that is empty, which no unit
  learns from.

  values None: nothing is held. bias None: the priors are those of the units. present None: all are.
  """

  queries: Array
  values: Array | None = None
  held: Array | None = None
  bias: Array | None = None
  present: Array | None = None


class Positions(NamedTuple):
  """r^q and r^k of (7): absolute query [J, C], key [I, C], or relative query [I, J, C], key [J, I,
  C] (dense weights)."""

  query: Array | None = None
  key: Array | None = None


class Trust(NamedTuple):
  """theta_z and theta_m >= 0 of (4) and (5), anything that broadcasts to [J, C] and [J, V]."""

  keys: Array | float = 1.0
  values: Array | float = 1.0


class Inferred(NamedTuple):
  """values [I, V] of (3), and the memory after adaptation."""

  values: Array
  memory: Memory


def memory(
  keys: Array,
  values: Array,
  alpha: Array | float | None = None,
  beta: Array | float = 0.0,
  log_priors: Array | None = None,
) -> Memory:
  """Units with scalars spread out; alpha 1 / sqrt(C) and the magnitude priors (8) of the keys by
  default."""
  spread = lambda x: jnp.broadcast_to(jnp.asarray(x, keys.dtype), keys.shape[:1])
  alpha = spread(keys.shape[1] ** -0.5 if alpha is None else alpha)
  if log_priors is None:
    log_priors = 0.5 * alpha * jnp.sum(keys**2, 1)
  return Memory(keys, values, alpha, spread(beta), log_priors)


def magnitudes(memory_: Memory, positions: Positions) -> tuple[Array, Array | None]:
  """Equation (8): log-priors [J], and a bias [I, J] where positions are relative.

  |r^k_i|^2 of absolute positions is left out: with equal precisions it is the same for all units.
  """
  square = lambda x: jnp.sum(x**2, -1)
  half, bias = 0.5 * memory_.alpha, None
  out = half * square(memory_.keys) * (1 if positions.key is None else 2)
  if positions.query is not None and positions.query.ndim == 2:
    out = out + half * square(positions.query)
  if positions.query is not None and positions.query.ndim == 3:
    bias = half[None] * square(positions.query)
  if positions.key is not None and positions.key.ndim == 3:
    bias = (0 if bias is None else bias) + half[None] * square(positions.key).T
  return out, bias


def _log_normal(squares, precisions, dim):
  """C/2 log alpha_j - alpha_j/2 squares [I, J]."""
  return (0.5 * dim * jnp.log(precisions))[None] - 0.5 * precisions[None] * squares


def pairs(memory_: Memory, tokens: Tokens, positions: Positions = Positions()) -> mixtures.Pairs:
  """The logits of (2)."""
  keys, queries, bias = memory_.keys, tokens.queries, tokens.bias
  factors = [mixtures.Factor(queries, keys, memory_.alpha)]
  if positions.query is not None and positions.query.ndim == 2:
    factors.append(mixtures.Factor(queries, positions.query, memory_.alpha))
  elif positions.query is not None:
    term = _log_normal(
      jnp.sum((queries[:, None] - positions.query) ** 2, -1), memory_.alpha, keys.shape[1]
    )
    bias = term if bias is None else bias + term
  if positions.key is not None and positions.key.ndim == 2:
    factors.append(mixtures.Factor(positions.key, keys, memory_.alpha))
  elif positions.key is not None:
    term = _log_normal(
      jnp.sum((keys[:, None] - positions.key) ** 2, -1).T, memory_.alpha, keys.shape[1]
    )
    bias = term if bias is None else bias + term
  if tokens.values is not None and tokens.held is not None:
    values = jnp.where(tokens.held[:, None] > 0, tokens.values, 0)
    factors.append(mixtures.Factor(values, memory_.values, memory_.beta, tokens.held))
  return mixtures.Pairs(tuple(factors), memory_.log_priors, bias)


def e_step(pairs_: mixtures.Pairs, block: int = BLOCK) -> Array:
  """Log-normalisers [I] of (2); -inf for a token to which no unit is open."""
  nothing = jnp.zeros((len(pairs_.log_priors), 0), pairs_.log_priors.dtype)
  return mixtures.pair_posterior(pairs_, nothing, block).log_normaliser


def _e_step(pairs_, tokens, block):
  """e_step, with -inf for slots that are empty too."""
  z = e_step(pairs_, block)
  return z if tokens.present is None else jnp.where(tokens.present > 0, z, -jnp.inf)


def value_map(memory_: Memory, pairs_: mixtures.Pairs, block: int = BLOCK) -> Array:
  """Equation (3), [I, V]; sum_j w_ij mu_j where the beta of all open units are equal or zero. Zero
  for a token to which no unit is open."""
  on = jnp.isfinite(memory_.log_priors)
  largest = jax.lax.stop_gradient(jnp.max(jnp.where(on, memory_.beta, 0)))
  # units without precision count only for tokens that see no other
  share = jnp.where(
    largest > 0, jnp.maximum(memory_.beta / jnp.where(largest > 0, largest, 1), 1e-20), 1
  )[:, None]
  values = jnp.where(on[:, None], memory_.values, 0)
  mean = mixtures.pair_posterior(pairs_, jnp.concatenate([share * values, share], 1), block).mean
  return mean[:, :-1] / jnp.where(mean[:, -1:] > 0, mean[:, -1:], 1)


def _towards(prior, theta, scale, total, mass, now):
  """(theta prior + scale total) / (theta + scale mass); `now` where nothing pulls."""
  weight = theta + (scale * mass)[:, None]
  some = weight > jnp.finfo(now.dtype).tiny ** 0.5
  return jnp.where(some, (theta * prior + scale[:, None] * total) / jnp.where(some, weight, 1), now)


def adapt_keys(
  memory_: Memory,
  pairs_: mixtures.Pairs,
  tokens: Tokens,
  positions: Positions,
  prior: Array,
  theta: Array | float,
  block: int = BLOCK,
) -> Array:
  """Equations (2), by `pairs_`, and (4): keys [J, C] pulled from their prior [J, C] to the queries
  that they answer."""
  z = _e_step(pairs_, tokens, block)
  pull, count = tokens.queries, 1
  if positions.key is not None:
    count = 2
    pull = pull + positions.key if positions.key.ndim == 2 else pull
  mass, total = mixtures.pair_sums(pairs_, z, pull, block)
  if positions.key is not None and positions.key.ndim == 3:
    total = total + jnp.einsum(
      'ij,jic->jc', mixtures.pair_weights(pairs_, z), positions.key, precision='highest'
    )
  return _towards(prior, theta, memory_.alpha, total, count * mass, memory_.keys)


def propagate_values(
  memory_: Memory,
  pairs_: mixtures.Pairs,
  tokens: Tokens,
  prior: Array,
  theta: Array | float,
  block: int = BLOCK,
) -> Array:
  """Equations (2), by `pairs_`, and (5): values [J, V] pulled from their prior [J, V] to the held
  values."""
  assert tokens.values is not None and tokens.held is not None
  held = tokens.held[:, None]
  y = jnp.concatenate([jnp.where(held > 0, held * tokens.values, 0), held], 1)
  _, sums = mixtures.pair_sums(pairs_, _e_step(pairs_, tokens, block), y, block)
  return _towards(prior, theta, memory_.beta, sums[:, :-1], sums[:, -1], memory_.values)


def infer(
  memory_: Memory,
  tokens: Tokens,
  positions: Positions = Positions(),
  trust: Trust = Trust(),
  key_steps: int = 0,
  value_steps: int = 0,
  hold: bool = True,
  on: tuple[Array | bool, Array | bool] = (True, True),
  block: int = BLOCK,
) -> Inferred:
  """Key adaptation, then value propagation, then the values of all tokens.

  Args:
    memory_, tokens, positions: the problem, in any float dtype; computed in float32 or wider.
    trust: precision of the priors around the keys and values of `memory_`.
    key_steps, value_steps: iterations of (4) and (5). Without held values the second do nothing.
    hold: held tokens return their values as they are.
    on: scalars, traced or not, that switch key steps and value steps.
    block: tokens and units in flight.

  Returns:
    Inferred, values in the dtype of memory_.values.
  """
  dtype = memory_.values.dtype
  wide = jnp.result_type(jnp.float32, *jax.tree.leaves((memory_, tokens, positions)))
  memory_, tokens, positions, trust = jax.tree.map(
    lambda x: jnp.asarray(x, wide), (memory_, tokens, positions, trust)
  )
  first = memory_

  def key_step(now, _):
    keys = adapt_keys(
      now, pairs(now, tokens, positions), tokens, positions, first.keys, trust.keys, block
    )
    return now._replace(keys=jnp.where(on[0], keys, now.keys)), None

  def value_step(now, _):
    values = propagate_values(
      now, pairs(now, tokens, positions), tokens, first.values, trust.values, block
    )
    return now._replace(values=jnp.where(on[1], values, now.values)), None

  if key_steps:
    memory_, _ = jax.lax.scan(key_step, memory_, length=key_steps)
  if value_steps and tokens.values is not None:
    memory_, _ = jax.lax.scan(value_step, memory_, length=value_steps)
  values = value_map(memory_, pairs(memory_, tokens, positions), block)
  if hold and tokens.values is not None and tokens.held is not None:
    values = jnp.where(tokens.held[:, None] > 0, tokens.values, values)
  return Inferred(values.astype(dtype), memory_)


def log_posterior(
  memory_: Memory,
  tokens: Tokens,
  first: Memory,
  positions: Positions = Positions(),
  trust: Trust = Trust(),
  block: int = BLOCK,
) -> Array:
  """Equation (6), but for constants that no step changes; `first` has the keys and values of the
  priors."""
  z = _e_step(pairs(memory_, tokens, positions), tokens, block)
  prior = jnp.sum(trust.keys * (memory_.keys - first.keys) ** 2) + jnp.sum(
    trust.values * (memory_.values - first.values) ** 2
  )
  return jnp.sum(jnp.where(jnp.isfinite(z), z, 0)) - 0.5 * prior


def expected(before: mixtures.Pairs, after: mixtures.Pairs, block: int = BLOCK) -> Array:
  """What an M-step raises, but for the priors of keys and values and with all tokens present:
  sum_ij w_ij logit_ij, weights by `before`, logits of `after`, from sums over tokens alone."""
  z = e_step(before, block)
  out = jnp.zeros((), z.dtype)
  for factor in after.factors:
    x, h = (
      factor.points,
      jnp.ones((len(z), 1), z.dtype) if factor.weights is None else factor.weights[:, None],
    )
    _, s = mixtures.pair_sums(
      before, z, jnp.concatenate([h * x, h * jnp.sum(x**2, 1, keepdims=True), h], 1), block
    )
    p, m, total, square, mass = factor.precisions, factor.means, s[:, :-2], s[:, -2], s[:, -1]
    distance = square - 2 * jnp.sum(m * total, 1) + mass * jnp.sum(m**2, 1)
    out = out + jnp.sum(
      0.5 * x.shape[1] * jnp.log(jnp.where(p > 0, p, 1)) * mass - 0.5 * p * distance
    )
  mass, _ = mixtures.pair_sums(before, z, jnp.zeros((len(z), 0), z.dtype), block)
  out = out + jnp.sum(jnp.where(mass > 0, mass * after.log_priors, 0))
  if after.bias is not None:
    w = mixtures.pair_weights(before, z)
    out = out + jnp.sum(jnp.where(w > 0, w * after.bias, 0))
  return out
