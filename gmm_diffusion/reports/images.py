"""Sample grids as PNG."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from gmm_diffusion import files
from gmm_diffusion.reports import plots


def grid(images: np.ndarray, columns: int, least: int = 32) -> Image.Image:
  """uint8 images [N, H, W, 1 or 3] in rows; pixels are repeated until a side has `least`."""
  factor = max(1, -(-least // images.shape[1]))
  images = images.repeat(factor, 1).repeat(factor, 2)
  n, height, width, channels = images.shape
  columns = min(columns, n)
  rows = -(-n // columns)
  sheet = np.full((rows * (height + 2), columns * (width + 2), channels), 128, np.uint8)
  for i, image in enumerate(images):
    y, x = i // columns * (height + 2) + 1, i % columns * (width + 2) + 1
    sheet[y : y + height, x : x + width] = image
  return single(sheet)


def scatter(points: np.ndarray, reference: np.ndarray) -> Image.Image:
  """Points [N, 2] over a reference set."""
  figure, axes = plots.new(size=(4, 4))
  axes[0, 0].scatter(*reference[:2000].T, s=2, c='0.75', label='data')
  axes[0, 0].scatter(*points[:2000].T, s=2, c='tab:blue', label='samples')
  axes[0, 0].set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), aspect='equal')
  axes[0, 0].legend(loc='upper right', fontsize=8)
  return Image.open(io.BytesIO(plots.png(figure)))


def picture(
  samples: np.ndarray, reference: np.ndarray, columns: int = 10, most: int = 100
) -> Image.Image:
  """A grid of images, or a scatter plot of vectors (their first two coordinates)."""
  if samples.ndim == 4:
    return grid(samples[:most], columns)
  return scatter(samples[:, :2], reference[:, :2])


def save(path: str, image: Image.Image) -> None:
  files.write(path, lambda name: image.save(name, 'PNG'))


def single(image: np.ndarray) -> Image.Image:
  """One uint8 image [H, W, 1 or 3], pixel by pixel."""
  return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def save_gif(path: str, frames: Sequence[Image.Image]) -> None:
  """An endless animation of some four seconds that rests on its last frame."""
  times = [max(20, min(400, 4000 // len(frames)))] * len(frames)
  times[-1] += 1500
  files.write(
    path,
    lambda name: frames[0].save(
      name, 'GIF', save_all=True, append_images=frames[1:], duration=times, loop=0
    ),
  )


def png(image: Image.Image) -> bytes:
  buffer = io.BytesIO()
  image.save(buffer, 'PNG')
  return buffer.getvalue()
