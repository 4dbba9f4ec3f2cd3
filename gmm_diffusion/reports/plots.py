"""Plots as PNG files."""

import matplotlib

matplotlib.use('Agg')
from matplotlib import pyplot  # noqa: E402  (the backend comes first)

from gmm_diffusion import files


def training_curve(path: str, curve: list[dict[str, float]]) -> None:
  """Loss against step."""
  figure, axes = pyplot.subplots(figsize=(6, 3), dpi=100)
  axes.plot([row['step'] for row in curve], [row['loss'] for row in curve])
  axes.set(xlabel='step', ylabel='loss', yscale='log')
  axes.grid(alpha=0.3, which='both')
  figure.tight_layout()
  files.write(path, lambda name: figure.savefig(name))
  pyplot.close(figure)
