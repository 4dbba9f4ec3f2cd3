"""Tables in the layout of the source's tables 4 to 12 and plots of a metric over steps, with the
published values beside ours.

Published values: published/ddim_gmm_tables.csv, the numbers of arXiv 2311.04938v4, tables 1, 2 and
4 to 12.
"""

import csv
import os
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib

matplotlib.use('Agg')
from matplotlib import pyplot, ticker  # noqa: E402  (the backend comes first)

from experiments.lib.columns import COLUMNS
from gmm_diffusion import files
from gmm_diffusion.metrics.estimates import Estimate

PATH = os.path.join(
  os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'published', 'ddim_gmm_tables.csv'
)
TITLES = {'fid': 'FID ↓', 'is': 'Inception score ↑'}
# on features that are not Inception's
ON_OTHERS = {'fid': 'Frechet distance ↓', 'is': 'score ↑'}
MARKERS = 'osD^vP*X'


class Ours(NamedTuple):
  """What we found for one place in a table: the scale is None for samplers without, nfe the counted
  evaluations."""

  estimate: Estimate
  scale: float | None
  nfe: int


class Table(NamedTuple):
  """One table: its place among the published ones ('' and 0 where it has none), and what it shows.

  heading: names the metric. ours: (column, eta, steps) -> Ours; a place that was not run is absent.
  """

  title: str
  dataset: str
  number: int
  guidance_scale: str
  metric: str
  heading: str
  columns: Sequence[str]
  etas: Sequence[float]
  steps: Sequence[int]
  ours: dict[tuple[str, float, int], Ours]


def published(
  number: int, dataset: str, guidance_scale: str, metric: str
) -> dict[tuple[str, float, int], float]:
  """(sampler, eta, steps) -> value of one published table."""
  with open(PATH, encoding='utf-8', newline='') as file:
    rows = list(csv.DictReader(file))
  wanted = str(number), dataset, guidance_scale, metric
  return {
    (row['sampler'], float(row['eta']), int(row['steps'])): float(row['value'])
    for row in rows
    if (row['table'], row['dataset'], row['guidance_scale'], row['metric']) == wanted
  }


def published_beside(table: Table) -> dict[tuple[str, float, int], float]:
  """(sampler, eta, steps) -> the published values of a table; none where it has no number."""
  if not table.number:
    return {}
  return published(table.number, table.dataset, table.guidance_scale, table.metric)


def cell_text(known: float | None, ours: Ours | None, budget: int, compare: bool) -> str:
  """'published / ours ± half width (scale) [evaluations, where they are not the budget]'; '-' for
  what is not there."""
  text = '-'
  if ours is not None:
    text = (
      str(ours.estimate)
      + (f' ({ours.scale:g})' if ours.scale is not None else '')
      + (f' [{ours.nfe}]' if ours.nfe != budget else '')
    )
  return f'{"-" if known is None else f"{known:g}"} / {text}' if compare else text


def markdown(table: Table) -> str:
  """The table: rows are eta x steps, columns samplers."""
  known = published_beside(table)
  compared = {sampler for sampler, _, _ in known}
  lines = [
    f'**{table.title}**' + ('; each cell: published / ours' if known else ''),
    '',
    f'| {table.heading} | ' + ' | '.join(table.columns) + ' |',
    '|---|' + '---:|' * len(table.columns),
  ]
  for eta in table.etas:
    for steps in table.steps:
      cells = [
        cell_text(
          known.get((COLUMNS[name].published, eta, steps)),
          table.ours.get((name, eta, steps)),
          steps,
          COLUMNS[name].published in compared,
        )
        for name in table.columns
      ]
      lines.append(f'| eta {eta:g}, {steps} steps | ' + ' | '.join(cells) + ' |')
  for (sampler, _, steps), value in known.items():
    if sampler == 'ddpm':
      lines.append(f'| DDPM, {steps} steps | {value:g}' + ' |' * len(table.columns))
  return '\n'.join(lines)


def draw_ours(axis, points: list[tuple[int, Estimate]], color: str, marker: str, style: str):
  x, y = zip(*points)
  (line,) = axis.plot(
    x,
    [e.value for e in y],
    marker=marker,
    markersize=4,
    linewidth=1.2,
    color=color,
    linestyle=style,
  )
  low, high = [e.low for e in y], [e.high for e in y]
  axis.fill_between(x, low, high, color=color, alpha=0.08, linewidth=0)
  return line


def draw_published(axis, points: list[tuple[int, float]], color: str, marker: str):
  (line,) = axis.plot(
    *zip(*points),
    marker=marker,
    markersize=6,
    markerfacecolor='none',
    linestyle=':',
    linewidth=0.8,
    color=color,
  )
  return line


def panel(axis, table: Table, known: dict, eta: float, lines: dict) -> None:
  """The metric over steps at one eta; adds to `lines` what the legend shows of each sampler."""
  for i, name in enumerate(table.columns):
    color, marker = f'C{i % 10}', MARKERS[i % len(MARKERS)]
    mine = [
      (steps, table.ours[name, eta, steps].estimate)
      for steps in table.steps
      if (name, eta, steps) in table.ours
    ]
    theirs = [
      (steps, known[COLUMNS[name].published, eta, steps])
      for steps in table.steps
      if (COLUMNS[name].published, eta, steps) in known
    ]
    if mine:
      lines[name] = draw_ours(axis, mine, color, marker, '--' if 'control' in name else '-')
    if theirs:
      lines.setdefault(name, draw_published(axis, theirs, color, marker))
  axis.set(
    title=f'eta = {eta:g}',
    xlabel='steps',
    xscale='log',
    yscale='log' if table.metric == 'fid' else 'linear',
  )
  axis.set_xticks(table.steps, [str(n) for n in table.steps])
  if table.metric == 'fid':
    axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axis.yaxis.set_major_formatter('{x:g}')
  axis.minorticks_off()
  axis.grid(alpha=0.3)


def plot(path: str, table: Table) -> None:
  """The metric over steps: a panel for each eta, a line with its interval for each sampler;
  published values are hollow and dotted."""
  known, lines = published_beside(table), {}
  figure, axes = pyplot.subplots(
    1,
    len(table.etas),
    figsize=(3.6 * len(table.etas) + 1.8, 3.8),
    dpi=100,
    sharey=True,
    squeeze=False,
    layout='constrained',
  )
  for axis, eta in zip(axes[0], table.etas):
    panel(axis, table, known, eta, lines)
  axes[0, 0].set_ylabel(table.heading[:-2])
  if lines:
    figure.legend(
      lines.values(),
      lines.keys(),
      loc='outside right center',
      fontsize=8,
      title='hollow: published' if known else None,
      title_fontsize=8,
    )
  figure.suptitle(table.title, fontsize=10)
  files.write(path, lambda name: figure.savefig(name))
  pyplot.close(figure)
