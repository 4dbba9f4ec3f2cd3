"""How far a network looks: the size of d x_0(centre) / d x(pixel), by the pixel's place."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from gmm_diffusion.types import Array, Denoiser, Time


def sensitivity(denoiser: Denoiser) -> Callable[[Array, Time, Array | None], np.ndarray]:
  """(x [B, H, W, C], time, cond) -> root mean square over samples and channels of the gradient of
  the middle pixel's x_0.

  The result is [H, W], with sum of squares 1.
  """

  def middle(
    x, channel, time, cond
  ):  # samples do not mix, so the sum over them has each one's gradient
    x0 = denoiser(x, time, cond).x0
    return jnp.sum(x0[:, x.shape[1] // 2, x.shape[2] // 2, channel])

  gradients = jax.jit(
    lambda x, time, cond: jnp.stack(
      [jax.grad(middle)(x, c, time, cond) for c in range(x.shape[-1])]
    )
  )

  def at(x, time, cond=None):
    squares = np.mean(np.square(gradients(x, time, cond), dtype=np.float64), (0, 1, 4))
    return np.sqrt(squares / max(squares.sum(), 1e-300))

  return at


def reach(sensitivity_map: np.ndarray, part: float = 0.95) -> int:
  """Side of the smallest centred square that holds `part` of the squared sensitivity; 0 where
  nothing is seen."""
  H, W = sensitivity_map.shape
  y, x = np.indices((H, W))
  distance = np.maximum(np.abs(y - H // 2), np.abs(x - W // 2))
  return next(
    (2 * r + 1 for r in range(max(H, W)) if np.sum(sensitivity_map[distance <= r] ** 2) >= part), 0
  )
