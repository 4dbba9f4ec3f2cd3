"""Plots as PNG, drawn without a display and without any state of matplotlib's."""

import io
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from gmm_diffusion import files

if TYPE_CHECKING:
  from matplotlib.figure import Figure


def new(
  rows: int = 1, columns: int = 1, size: tuple[float, float] = (6, 3)
) -> tuple['Figure', Any]:
  """(figure, its axes as an array [rows, columns]); `size` is in units of 100 pixels."""
  from matplotlib.figure import Figure  # slow to import, and only needed here

  figure = Figure(figsize=size, dpi=100, layout='tight')
  return figure, figure.subplots(rows, columns, squeeze=False)


def png(figure: 'Figure', path: str = '') -> bytes:
  """The figure as PNG, also written to `path` where one is given."""
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png')
  if path:
    files.write(path, lambda name: figure.savefig(name, format='png'))
  return buffer.getvalue()


def over_calls(axis: Any, calls: Iterable[int]) -> None:
  """An axis over numbers of calls, each of them marked."""
  axis.set(xscale='log', xlabel='calls')
  axis.set_xticks(sorted(set(calls)), [str(n) for n in sorted(set(calls))])
  axis.set_xticks([], minor=True)
  axis.grid(alpha=0.3)


def training_curve(path: str, curve: list[dict[str, float]]) -> None:
  """Loss against step."""
  figure, axes = new()
  axes[0, 0].plot([row['step'] for row in curve], [row['loss'] for row in curve])
  axes[0, 0].set(xlabel='step', ylabel='loss', yscale='log')
  axes[0, 0].grid(alpha=0.3, which='both')
  png(figure, path)
