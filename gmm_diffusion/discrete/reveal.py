"""Sampling of masked diffusion: tokens are revealed once each, in an order drawn beforehand.

Token l has a time u_l, uniform in [0, 1), at which it is revealed on the way from t = 1 to 0, and a
number w_l, uniform too, that says which value it takes: the inverse of the distribution function of
mu^l at w_l. One kernel has both samplers:

  (1) ancestral       a step from t to s reveals all l with s <= u_l < t
  (2) first hitting   the same with the rank of u_l among all in the place of u_l: L / N tokens a
                      step; with N = L steps, one at a time, it is exact [2409.02908]

Tokens that are revealed in one step do not know of each other: that is the whole error. Samples
may start from tokens that are known (inpainting), which is exact where (2) is.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gmm_diffusion.discrete.process import Predictor
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import noise
from gmm_diffusion.samplers.base import Kernel, Plan, State
from gmm_diffusion.samplers.run import Result, run
from gmm_diffusion.types import Array, Key, StepGrid

ORDERS = ('first_hitting', 'ancestral')


class Draw(NamedTuple):
  """The randomness of a sample: u and w [B, L]."""

  time: Array
  value: Array


def draws(keys: Key, tokens: int) -> Draw:
  """u and w of each key [B]."""
  each = lambda key: jax.random.uniform(key, (2, tokens))
  return Draw(*jnp.moveaxis(jax.vmap(each)(keys), 1, 0))


def grid(steps: int, counts: Array | None = None) -> StepGrid:
  """Steps that are equally long in t, the expected share of masks; or with so many tokens each as
  `counts` says, int [steps]."""
  if steps < 1 or (counts is not None and (len(counts) != steps or np.min(counts) < 1)):
    raise UserError(
      f'masked diffusion needs at least 1 step, and with counts one of at least 1 for each, got '
      f'{steps} steps' + ('' if counts is None else f' and counts {list(counts)}')
    )
  each = np.ones(steps) if counts is None else np.asarray(counts)
  t = 1 - np.concatenate([[0], np.cumsum(each)]) / np.sum(each)
  return StepGrid(t[:-1], t[1:], 1 - t[:-1], t[:-1], 1 - t[1:], t[1:])


def inverse(probabilities: Array, w: Array) -> Array:
  """Values [...] of distributions [..., V] at w [...] in [0, 1)."""
  edges = jnp.cumsum(probabilities, -1)
  index = jnp.sum(w[..., None] * edges[..., -1:] >= edges, -1)
  return jnp.minimum(index, probabilities.shape[-1] - 1)


def kernel(levels: int, order: str = 'first_hitting') -> Kernel:
  """(1) or (2), under the protocol of samplers.base with a Predictor in the place of the denoiser
  and a Draw in that of the noise."""
  if order not in ORDERS:
    raise UserError(f'unknown order {order!r}; valid: {", ".join(ORDERS)}')

  def step(state, row, extra, shared, denoise, noise):
    del extra, shared
    u, w = noise
    if order == 'first_hitting':
      u = (jnp.argsort(jnp.argsort(u, -1), -1) + 0.5) / u.shape[-1]
    now = (row.s <= u) & (u < row.t) & (state.x == levels)
    values = inverse(jnp.exp(denoise(state.x, row.now)), w)
    return State(jnp.where(now, values.astype(state.x.dtype), state.x)), ()

  return Kernel(lambda grid, shape: (Plan(()), []), State, step)


def sample(
  predictor: Predictor,
  levels: int,
  tokens: int,
  ids: Array,
  seed: int = 0,
  steps: int = 0,
  order: str = 'first_hitting',
  known: Array | None = None,
  cond: Any = None,
  counts: Array | None = None,
) -> Result:
  """Samples of ids [B]: Result.x is int32 [B, L]. Pure; a sample does not depend on the others.

  Args:
    predictor: a Predictor, as of discrete.predictors.
    levels: V.
    tokens: L.
    ids: numbers of the samples; (seed, id) decides a sample.
    seed: of the draws.
    steps: calls of the predictor; 0 is one for each token.
    order: a name in ORDERS.
    known: tokens to start from, [L] or [B, L], with V where they are to be drawn; None knows none.
    cond: passed to the predictor.
    counts: tokens of each call, in place of `steps`, for first_hitting: positive numbers with the
      sum L, as of discrete.counts; None is as many in each.
  """
  if counts is not None and (order != 'first_hitting' or np.sum(counts) != tokens):
    raise UserError(
      f"counts belong to order 'first_hitting' and have the sum {tokens}, got {order!r} and "
      f'{np.sum(counts)}'
    )
  found = draws(noise.sample_keys(seed, ids), tokens)
  x = jnp.full((len(ids), tokens), levels, jnp.int32)
  if known is not None:
    traced = isinstance(known, jax.core.Tracer)  # its values are not known yet
    out = not traced and (np.max(known) > levels or np.min(known) < 0)
    if np.shape(known)[-1] != tokens or out:
      raise UserError(
        f'known tokens must be {tokens} for each sample, in 0..{levels} where {levels} is the mask'
      )
    if not traced and not np.any(np.asarray(known) == levels):
      raise UserError(
        f'known tokens leave nothing to draw: none of them is the mask, {levels}; put it where '
        f'tokens are to be drawn'
      )
    x = jnp.broadcast_to(jnp.asarray(known, jnp.int32), x.shape)
  steps_ = grid(steps or tokens) if counts is None else grid(len(counts), counts)
  # the loop hands both on and looks into neither
  plain: Any = lambda x, time, cond: predictor(x, cond)
  same: Any = lambda n: found
  return run(kernel(levels, order), plain, steps_, Plan(()), x, same, cond)
