"""Plots as PNG, drawn without a display and without any state of matplotlib's."""

import io
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from gmm_diffusion import files

if TYPE_CHECKING:
  from matplotlib.figure import Figure


STRETCHES = 4  # of a training, whose errors are drawn apart


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


def training_curve(path: str, curve: list[dict[str, Any]]) -> None:
  """Loss against step; beside it, where rows have them, 'errors' against the noise level, as means
  over equal stretches of the training."""
  known = [row for row in curve if row.get('errors')]
  figure, axes = new(1, 1 + bool(known), (10, 3.4) if known else (6, 3))
  axes[0, 0].plot([row['step'] for row in curve], [row['loss'] for row in curve])
  axes[0, 0].set(xlabel='step', ylabel='loss', yscale='log')
  for n in range(STRETCHES):
    rows = known[n * len(known) // STRETCHES : (n + 1) * len(known) // STRETCHES]
    if not rows:
      continue
    levels = sorted({level for row in rows for level in row['errors']}, key=float)
    values = [[row['errors'][level] for row in rows if level in row['errors']] for level in levels]
    axes[0, 1].plot(
      [float(level) for level in levels], [sum(some) / len(some) for some in values], marker='.',
      color='C0', alpha=(n + 1) / STRETCHES,
      label=f'up to step {rows[-1]["step"]:,}',
    )  # fmt: skip
  if known:
    axes[0, 1].set(
      xlabel='noise level b / a', ylabel='mean squared error', xscale='log', yscale='log'
    )
    axes[0, 1].legend(fontsize=8)
  for axis in axes[0]:
    axis.grid(alpha=0.3, which='both')
  png(figure, path)
