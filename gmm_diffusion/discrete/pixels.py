"""Images as tokens: each channel of a pixel is one of V levels."""

import numpy as np

from gmm_diffusion.errors import UserError
from gmm_diffusion.types import Array


def tokens(images: Array, levels: int) -> Array:
  """The nearest of V levels: uint8 [N, H, W, C] -> int32 [N, H W C]."""
  if not 2 <= levels <= 256:
    raise UserError(f'levels must be in [2, 256], got {levels}')
  flat = images.reshape(len(images), -1).astype(np.float32)
  return (flat * np.float32((levels - 1) / 255)).round().astype(np.int32)


def pictures(x: np.ndarray, levels: int, shape: tuple[int, ...]) -> np.ndarray:
  """Tokens [N, L] -> uint8 images of a shape; masks are in the middle between black and white."""
  grey = np.where(x == levels, (levels - 1) / 2, x)
  return np.round(grey * 255 / (levels - 1)).astype(np.uint8).reshape(-1, *shape)
