"""Plots of the answers of mixture_questions: Frechet distances with what the paired test says of
them."""

from typing import Any

import matplotlib

matplotlib.use('Agg')
import numpy as np  # noqa: E402
from matplotlib import pyplot, ticker  # noqa: E402  (the backend comes first)
from scipy import stats  # noqa: E402

from gmm_diffusion import files

COLORS = {'ddim': '0.45', 'mixture': 'C0', 'control': 'C1'}


def _mean(values):
  """Mean over seeds and half its 95 % t interval."""
  values = np.asarray(values)
  return values.mean(), stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(
    len(values)
  )


def _write(figure, path):
  files.write(path, lambda name: figure.savefig(name))
  pyplot.close(figure)


def differences(path: str, rows: list[dict[str, Any]]) -> None:
  """For each setting, mixture and control minus DDIM with their intervals; filled where p < 0.05
  after correction."""
  settings = list(dict.fromkeys(row['setting'] for row in rows))
  names = [
    key
    for key in rows[0]
    if key not in ('setting', 'scale', 'scale_chosen', 'frechet') and ' - ' not in key
  ]
  most = max(sum(row['setting'] == setting for row in rows) for setting in settings)
  figure, axes = pyplot.subplots(
    1,
    len(settings),
    figsize=(1.5 + 4.6 * len(settings), 1.3 + 0.34 * most),
    dpi=100,
    squeeze=False,
    layout='constrained',
  )
  for axis, setting in zip(axes[0], settings):
    mine = [row for row in rows if row['setting'] == setting]
    for shift, pair in ((-0.13, 'mixture - ddim'), (0.13, 'control - ddim')):
      for i, row in enumerate(mine):
        one, color = row[pair], COLORS[pair.split()[0]]
        axis.errorbar(
          one['value'],
          i + shift,
          xerr=one['high'] - one['value'],
          color=color,
          marker='o',
          markersize=5,
          capsize=2,
          markerfacecolor=color if one['p_holm'] < 0.05 else 'white',
          label=pair if i == 0 else None,
        )
    axis.set_yticks(
      range(len(mine)),
      [
        ', '.join(f'{key} {row[key]}' for key in names)
        + (f' ({row["scale"]:g})' if row['scale_chosen'] else '')
        for row in mine
      ],
      fontsize=8,
    )
    axis.invert_yaxis()
    axis.axvline(0, color='0.6', linewidth=0.8)
    axis.set(title=setting)
    axis.locator_params(axis='x', nbins=6)
    axis.grid(alpha=0.3, axis='x')
  figure.supxlabel(
    'difference of Frechet distances, below 0: better than DDIM; filled: p < 0.05', fontsize=9
  )
  figure.legend(
    *axes[0, 0].get_legend_handles_labels(), loc='outside upper right', fontsize=8, ncols=2
  )
  _write(figure, path)


def scales(path: str, rows: list[dict[str, Any]]) -> None:
  """Frechet distance over scale, mean over seeds; DDIM is the level line."""
  settings = list(dict.fromkeys(row['setting'] for row in rows))
  figure, axes = pyplot.subplots(
    1,
    len(settings),
    figsize=(4.8 * len(settings), 3.8),
    dpi=100,
    squeeze=False,
    layout='constrained',
  )
  for axis, setting in zip(axes[0], settings):
    mine = sorted((row for row in rows if row['setting'] == setting), key=lambda row: row['scale'])
    x = [row['scale'] for row in mine]
    for name in COLORS:
      mean, half = np.transpose([_mean(row['frechet'][name]) for row in mine])
      axis.plot(
        x,
        mean,
        marker='' if name == 'ddim' else 'o',
        markersize=4,
        color=COLORS[name],
        label=name,
        linestyle='--' if name == 'control' else '-',
      )
      axis.fill_between(x, mean - half, mean + half, color=COLORS[name], alpha=0.15, linewidth=0)
    axis.set(title=setting, xlabel='scale', ylabel='Frechet distance', xscale='log', yscale='log')
    axis.set_xticks(x, [f'{value:g}' for value in x])
    axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axis.yaxis.set_major_formatter('{x:g}')
    axis.minorticks_off()
    axis.grid(alpha=0.3)
  axes[0, 0].legend(fontsize=8)
  _write(figure, path)


PLOTS = {'components': differences, 'scale': scales, 'shape': differences, 'interval': differences}
