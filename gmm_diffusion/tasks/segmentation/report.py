"""The result page of interactive segmentation: the result in words, tables, curves, and images with
clicks and masks."""

import dataclasses
import os

import numpy as np
from PIL import Image, ImageDraw

from gmm_diffusion.engine.runs import Run
from gmm_diffusion.metrics.estimates import Estimate
from gmm_diffusion.reports import images, page, plots
from gmm_diffusion.tasks.segmentation import metrics
from gmm_diffusion.tasks.segmentation.benchmark import BASELINE, Course, Objects

WIDTH = 320  # of a picture of an object, pixels
SHOWN = 8  # objects
JOINED = '\N{NO-BREAK SPACE}'
LABELS = {
  'none': 'no adaptation',
  'keys': 'key adaptation',
  'values': 'value propagation',
  'both': 'both adaptations',
  BASELINE: 'clicks as channels',
}
NOTES = (
  'The first four rows are one network with the same weights: key adaptation and value propagation '
  'are switched on and off. "Clicks as channels" is another network, with dot-product attention '
  'and the clicks drawn into its input.',
  'Each row has clicks of its own, placed at the centre of its largest error region. Intervals are '
  '95 %, from a bootstrap over images.',
)


def label(name: str) -> str:
  """What a row is called on the page."""
  return LABELS.get(name, name)


def curve_png(path: str, curves: dict[str, np.ndarray], of_images: np.ndarray) -> bytes:
  """Mean IoU against clicks with intervals, and differences from no adaptation object by object;
  of_images as in metrics."""
  figure, axes = plots.new(1, 2, (11.2, 4.2))
  for number, (name, rows) in enumerate(curves.items()):
    clicks = np.arange(1, rows.shape[1] + 1)
    for axis, values in zip(axes[0], (rows, rows - curves['none'])):
      mean, low, high = metrics.pooled(values, of_images)
      axis.plot(clicks, mean, color=f'C{number}', label=label(name))
      axis.fill_between(clicks, low, high, color=f'C{number}', alpha=0.15, linewidth=0)
      axis.set(xlabel='clicks', xticks=[k for k in clicks if k in metrics.AT])
      axis.grid(alpha=0.3)
  axes[0, 0].set(ylabel='mean IoU', ylim=(0, 1))
  axes[0, 1].set(ylabel='mean IoU minus that of no adaptation')
  axes[0, 0].legend(fontsize=8)
  return plots.png(figure, path)


def picture(image: np.ndarray, mask: np.ndarray, clicks: list) -> Image.Image:
  """The image darkened outside the mask, with its outline and clicks: green on the object, red
  elsewhere; small images are enlarged, large ones reduced to WIDTH pixels a side."""
  shown = np.where(mask[..., None], image, (0.35 * image).astype(np.uint8))
  edge = mask & ~(
    np.roll(mask, 1, 0) & np.roll(mask, -1, 0) & np.roll(mask, 1, 1) & np.roll(mask, -1, 1)
  )
  shown[edge] = (255, 220, 0)
  factor = max(1, WIDTH // 2 // max(mask.shape))
  out = Image.fromarray(shown.repeat(factor, 0).repeat(factor, 1))
  pen, r = ImageDraw.Draw(out), max(2, max(out.size) // 100)
  for click in clicks:
    x, y = (factor * (at + 0.5) for at in (click.column, click.row))
    fill = (40, 220, 60) if click.positive else (240, 40, 40)
    pen.ellipse((x - r, y - r, x + r, y + r), fill=fill, outline='white')
  out.thumbnail((WIDTH, WIDTH))
  return out


def _around(value: float, half: float, digits: int = 1) -> str:
  """A value with its interval that is not broken over two lines."""
  text = f'{round(value, digits) + 0.0:.{digits}f} ± {half:.{digits}f}'
  return text.replace(' ', JOINED).replace('-', '−')


def _percent(value: Estimate, digits: int = 1) -> str:
  return _around(100 * value.value, 100 * value.half, digits)


def _cell(metric: str, value: Estimate) -> str:
  if metric.startswith('NoC'):
    return _around(value.value, value.half)
  return _percent(value, 1 if metric.startswith('IoU') else 0)


def _compared(table: dict[str, dict[str, Estimate]], metric: str) -> str:
  """What each row has more or less of than no adaptation, in words."""
  groups = {'higher': [], 'lower': [], 'no different, as far as these objects can tell,': []}
  higher, lower, same = groups.values()
  for name, row in table.items():
    if name.endswith(metrics.DIFFERENCE):
      value = row[metric]
      group = higher if value.low > 0 else lower if value.high < 0 else same
      group.append(f'{label(name.removesuffix(metrics.DIFFERENCE))} ({_percent(value)})')
  return '; '.join(f'{word} are {", ".join(names)}' for word, names in groups.items() if names)


def lead(table: dict[str, dict[str, Estimate]], objects: Objects, split: str) -> list[str]:
  """The result in words."""
  last = max((name for name in table['none'] if name.startswith('IoU')), key=lambda x: int(x[4:]))
  K, arms = last[4:], [name for name in table if not name.endswith(metrics.DIFFERENCE)]
  best = max(arms, key=lambda name: table[name][last].value)
  out = [
    f'{len(objects)} objects of {len(set(objects.images))} images ({split} set), each clicked {K} '
    f'times by a simulated annotator. Without adaptation the masks overlap the objects (IoU) by '
    f'{_percent(table["none"]["IoU@1"])} % after one click and by {_percent(table["none"][last])} '
    f'% after {K}; highest at the end is {label(best)} with {_percent(table[best][last])} %.',
    f'After one click, in points of IoU against no adaptation, object by object, '
    f'{_compared(table, "IoU@1")}.',
  ]
  if K != '1':
    out.append(f'After {K} clicks {_compared(table, last)}.')
  return out


def _tables(table: dict[str, dict[str, Estimate]], most: int) -> list:
  """The tables of means and of differences, with what their columns mean."""
  columns = list(table['none'])
  head = [name.replace('failures@', 'failures @') for name in columns]  # in two lines
  rows = lambda difference: [
    [label(name.removesuffix(metrics.DIFFERENCE)), *(_cell(key, row[key]) for key in columns)]
    for name, row in table.items()
    if name.endswith(metrics.DIFFERENCE) == difference
  ]
  low, high = metrics.LEVELS
  return [
    page.table(['', *head], rows(False)),
    f'IoU@k: mean intersection over union after k clicks, in %. NoC@{low}: clicks until {low} %; '
    f'an object that does not get there within the {most} clicks counts as {most}. failures@{low}: '
    f'% of objects that do not get there. NoC@{high} and failures@{high} likewise.',
    *NOTES,
    page.table(['minus no adaptation', *head], rows(True)),
    'Differences object by object: what differs between objects drops out. There is a difference '
    'where 0 is outside the interval.',
  ]


def _object(objects: Objects, found: dict[str, Course], i: int) -> page.Html:
  """The true mask of an object, and those of all rows with their clicks."""
  scene, true = objects.scenes[i], objects.masks[i]
  parts = [page.figure(images.png(picture(scene.image, true == 1, [])), f'{scene.name}: truth')]
  for name, course in found.items():
    mask, clicks = course.masks[i], course.clicks[i]
    caption = f'{label(name)}: IoU {100 * metrics.iou(mask, true):.0f} %, {len(clicks)} clicks'
    parts.append(page.figure(images.png(picture(scene.image, mask, clicks)), caption))
  return page.row(parts)


def write(
  run: Run,
  objects: Objects,
  found: dict[str, Course],
  table: dict[str, dict[str, Estimate]],
  facts: dict,
) -> None:
  """curve.png and report.html of a workdir; table: of metrics.table; facts: as in page.document."""
  at = lambda name: os.path.join(run.workdir, name)
  curves = {name: course.curves for name, course in found.items()}
  sections = [
    ('Quality against clicks', _tables(table, run.spec.segmentation.clicks)),
    ('Curves', [page.figure(curve_png(at('curve.png'), curves, objects.images), smooth=True)]),
    (
      'Masks after the last click',
      [
        'Green clicks say "object", red ones "background".',
        *(_object(objects, found, i) for i in range(min(SHOWN, len(objects)))),
      ],
    ),
  ]
  page.document(
    at('report.html'),
    'Interactive segmentation',
    lead(table, objects, run.spec.data.split),
    sections,
    run.command,
    facts,
    dataclasses.asdict(run.spec),
  )
