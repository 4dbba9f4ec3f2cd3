"""How far a network looks: the size of d x_0(centre) / d x(pixel), by the pixel's place."""

import jax
import jax.numpy as jnp
import numpy as np

from gmm_diffusion.aliases import Array, Denoiser, Time


def sensitivity(denoiser: Denoiser, x: Array, time: Time, cond: Array | None = None) -> np.ndarray:
  """Root mean square over samples and channels of the gradient of the middle pixel's x_0, [H, W], with sum of squares 1."""
  H, W, C = x.shape[1:]

  def middle(x, channel):  # samples do not mix, so the sum over them has each one's gradient
    return jnp.sum(denoiser(x, time, cond).x0[:, H // 2, W // 2, channel])

  gradients = jax.jit(lambda x: jnp.stack([jax.grad(middle)(x, c) for c in range(C)]))(x)
  squares = np.mean(np.square(gradients, dtype=np.float64), (0, 1, 4))
  return np.sqrt(squares / max(squares.sum(), 1e-300))


def reach(sensitivity_map: np.ndarray, part: float = 0.95) -> int:
  """Side of the smallest centred square that holds `part` of the squared sensitivity."""
  H, W = sensitivity_map.shape
  y, x = np.indices((H, W))
  distance = np.maximum(np.abs(y - H // 2), np.abs(x - W // 2))
  return next(2 * r + 1 for r in range(max(H, W)) if np.sum(sensitivity_map[distance <= r] ** 2) >= part)
