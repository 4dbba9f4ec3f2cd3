"""Which images are rare in the eyes of a model: minority score and labels [2301.12334].

  (1) l(x_0) = E_eps d(x_0, x0(a_t x_0 + b_t eps)) at one noisy time t
  (2) label  = the quantile of l among K classes, by rank

What a model has seen often it restores from far away; a rare image comes back as a common one. The
source takes LPIPS for d, and b / a near 6. Guidance towards a label is guidance.classifier with a
classifier of noisy images that was trained on the labels, or exact.log_responsibility of a known
mixture.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import marginals, noise
from gmm_diffusion.types import Array, Denoiser, Time


def mean_square(x: Array, y: Array) -> Array:
  """[B] of [B, ...]."""
  return jnp.mean((x - y) ** 2, tuple(range(1, x.ndim)))


def score(
  denoiser: Denoiser,
  x0: Array,
  time: Time,
  ids: Array,
  draws: int = 5,
  seed: int = 0,
  cond: Any = None,
  distance: Callable[[Array, Array], Array] = mean_square,
) -> Array:
  """Equation (1), [B]: large for rare items.

  Args:
    denoiser: of the model.
    x0: items [B, ...], in the range of the model.
    time: t, with scalar levels.
    ids: numbers of the items [B], on which the noise depends.
    draws: of eps. A score of few draws is noisy, so that neighbouring labels overlap.
    seed: of the noise.
    cond: passed to the denoiser.
    distance: (x0, prediction) -> [B].
  """
  keys = noise.sample_keys(seed, ids)

  def one(total, step):
    eps = noise.at_step(keys, step, x0.shape[1:], x0.dtype).normal
    found = denoiser(marginals.diffuse(x0, eps, time), time, cond).x0
    return total + distance(x0, found), None

  total, _ = jax.lax.scan(one, jnp.zeros(len(x0), x0.dtype), jnp.arange(draws))
  return total / draws


def labels(scores: np.ndarray, classes: int) -> np.ndarray:
  """Equation (2): int32 [N] from 0, common, to classes - 1, rare, as many items in each as the
  number allows; equal scores have one label, the higher one.

  Raises:
    UserError: on more classes than items, or scores that are not finite.
  """
  scores = np.asarray(scores)
  if not 1 <= classes <= len(scores) or not np.isfinite(scores).all():
    raise UserError(
      f'{classes} classes need at least as many items with finite scores, got {len(scores)}'
    )
  not_above = np.searchsorted(np.sort(scores), scores, side='right')  # rank; ties go up
  return np.minimum((not_above - 1) * classes // len(scores), classes - 1).astype(np.int32)
