"""How near restored images are to the true ones, image by image.

(1) PSNR = 10 log10(255^2 / mean square difference)
(2) SSIM = mean of (2 m_x m_y + c1)(2 s_xy + c2) / ((m_x^2 + m_y^2 + c1)(s_x^2 + s_y^2 + c2)),
    means and (co)variances under a Gaussian of deviation 1.5 pixels, c1 = (0.01 * 255)^2,
    c2 = (0.03 * 255)^2                                                   [Wang et al. 2004]
"""

import numpy as np
from scipy import ndimage

from gmm_diffusion.errors import UserError


def _pair(x, y):
  if x.shape != y.shape or x.ndim != 4:
    raise UserError(
      f'images must have one shape [N, H, W, C], got {list(x.shape)} and {list(y.shape)}'
    )
  return np.asarray(x, np.float64), np.asarray(y, np.float64)


def psnr(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Equation (1) in decibels, [N], of uint8 images [N, H, W, C]; infinite where they are equal.

  Raises:
    UserError: on images of different shapes.
  """
  x, y = _pair(x, y)
  with np.errstate(divide='ignore'):
    return 10 * np.log10(255**2 / np.mean((x - y) ** 2, (1, 2, 3)))


def ssim(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Equation (2), [N], of uint8 images [N, H, W, C]: the mean over pixels and channels.

  Raises:
    UserError: on images of different shapes.
  """
  return np.mean(ssim_map(x, y), (1, 2, 3))


def ssim_map(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """What `ssim` averages, [N, H, W, C]. The window has 11 pixels, mirrored at the edges: small
  images depend on that."""
  x, y = _pair(x, y)
  local = lambda z: ndimage.gaussian_filter(z, (0, 1.5, 1.5, 0), mode='reflect', truncate=3.34)
  mx, my = local(x), local(y)
  covariance = lambda p, q, mp, mq: local(p * q) - mp * mq
  c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
  above = (2 * mx * my + c1) * (2 * covariance(x, y, mx, my) + c2)
  below = (mx**2 + my**2 + c1) * (covariance(x, x, mx, mx) + covariance(y, y, my, my) + c2)
  return above / below
