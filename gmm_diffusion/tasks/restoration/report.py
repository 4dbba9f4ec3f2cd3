"""The result page of restoration: the result in words, images before and after, curves over calls,
and a table."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from gmm_diffusion.data import base
from gmm_diffusion.engine.runs import Run
from gmm_diffusion.metrics.estimates import difference
from gmm_diffusion.reports import images, page, plots
from gmm_diffusion.tasks.restoration import models
from gmm_diffusion.tasks.restoration.rows import DEGRADED, Row

_SHOWN = 12  # images in a strip
LOWER = 'frechet', 'kernel', 'spread'
NOTES = (
  'PSNR and SSIM say how near one restored image is to the true one. The image that is least wrong '
  'on average is the mean of all that could be, which is blurred; a regression is trained to make '
  'it. A sample has to decide, and pays for it in PSNR. So the mean of the draws is judged too, '
  'and the distance says how much restored images look like the data, whichever they restore.',
  'Spread: the deviation of a pixel between draws of the same image, of values in [-1, 1]. A '
  'regression has none.',
)


def write(this: Run, rows: Sequence[Row], true: np.ndarray, facts: dict[str, Any]) -> str:
  """Writes report.html; returns its path."""
  path = os.path.join(this.workdir, 'report.html')
  sections: list[page.Section] = [
    ('Images', _pictures(rows, true)),
    ('Against the number of calls', [page.figure(_curves(rows), smooth=True)]),
    ('Table', [_table(rows), *NOTES]),
  ]
  title = f'Restoration of {this.spec.data.title}: {what(this)}'
  page.document(
    path, title, lead(rows), sections, this.command, facts, dataclasses.asdict(this.spec)
  )
  return path


def what(this: Run) -> str:
  """What is restored, in words."""
  own = this.spec.inverse
  noise = f', noise {own.noise:g}' if own.noise else ''
  return {
    '': 'pairs of images',
    'identity': f'noise {own.noise:g}',
    'mask': f'hidden: {own.hidden}{noise}',
    'box': f'{own.factor} x super-resolution{noise}',
    'blur': f'blur of {own.width:g} pixels{noise}',
  }[own.operator]


def lead(rows: Sequence[Row]) -> list[str]:
  """The result in words."""
  out, (before, *after) = [], rows
  for metric, words in (
    ('PSNR', 'Nearest to the true images, by PSNR of one restored image'),
    (_distance(rows), 'Most like the data'),
  ):
    better = min if metric in LOWER else max
    best = better(after, key=lambda row: row.values[metric].value)
    unit = ' dB' if metric == 'PSNR' else ''
    out.append(
      f'{words}: {best.name} with {best.calls} {"call" if best.calls == 1 else "calls"}, {metric} '
      f'{best.values[metric]}{unit}; the degraded images have {before.values[metric]}{unit}.'
    )
  return out


def _distance(rows):
  return list(rows[0].values)[-1]


def _table(rows):
  names = list(dict.fromkeys(name for row in rows for name in row.values))
  names.append(names.pop(names.index(_distance(rows))))  # last
  best = {
    name: (min if name in LOWER else max)(
      row.values[name].value for row in rows[1:] if name in row.values
    )
    for name in names
    if name != 'spread'
  }
  apart = _apart(rows)
  cells = [
    [row.name, row.calls, *[str(row.values.get(name, '')) for name in names], *extra]
    for row, extra in zip(rows, apart or [()] * len(rows))
  ]
  kinds = [
    'quiet'
    if row.name == DEGRADED
    else 'best'
    if any(row.values[name].value == value for name, value in best.items() if name in row.values)
    else ''
    for row in rows
  ]
  head = ['', 'calls', *names, *['PSNR minus that of the regression'] * bool(apart)]
  return page.table(head, cells, kinds)


def _apart(rows):
  """A cell for each row: PSNR against the regression, image by image; none without one."""
  plain = next((row.values['PSNR'] for row in rows if row.model == models.REGRESSION), None)
  if plain is None:
    return []
  mine = models.RESIDUAL, models.CONDITIONAL
  return [
    (str(difference(row.values['PSNR'], plain)) if row.model in mine else '',) for row in rows
  ]


def _curves(rows):
  """PSNR, PSNR of the mean, and distance against calls."""
  names = dict.fromkeys(name for row in rows[::-1] for name in row.values)
  names = [name for name in names if name not in ('SSIM', 'spread')]
  figure, axes = plots.new(1, len(names), (3.7 * len(names), 3.4))
  for panel, metric in zip(axes[0], names):
    for number, curve in enumerate(dict.fromkeys(row.curve for row in rows[1:])):
      members = [row for row in rows if row.curve == curve and metric in row.values]
      values = [row.values[metric] for row in members]
      if values:
        panel.errorbar(
          [row.calls for row in members], [v.value for v in values], [v.half for v in values],
          color=f'C{number}', label=curve, marker='o', markersize=3, capsize=2,
        )  # fmt: skip
    panel.set(title=metric)
    plots.over_calls(panel, [row.calls for row in rows[1:]])
  axes[0, 0].legend(fontsize=7)
  return plots.png(figure)


def _pictures(rows, true):
  """Strips of the first images: true, degraded, and by each network with the most calls; the spread
  of draws below those that have it."""
  strip = lambda name, x: page.strip(
    name, images.png(images.grid(x[:_SHOWN], columns=_SHOWN, least=64))
  )
  out = [strip('true', true), strip(DEGRADED, rows[0].images)]
  for model in models.MODELS:
    members = [row for row in rows if row.model == model]
    if not members:
      continue
    shown = {row.name: row for row in (members[0], members[-1])}
    for row in shown.values():
      out.append(
        strip(f'{row.name}, {row.calls} {"call" if row.calls == 1 else "calls"}', row.images)
      )
    last = members[-1]
    if last.spread is not None:
      top = max(float(last.spread[:_SHOWN].max()), 1e-6)
      scaled = base.to_image(2 * last.spread[:_SHOWN] / top - 1)
      out.append(strip(f'{last.name}: where draws differ (white: {top:.2g})', scaled))
  return out
