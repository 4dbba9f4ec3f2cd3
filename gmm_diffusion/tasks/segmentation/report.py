"""The result page of interactive segmentation: table, curves, images with clicks and masks."""

import html
import json
import os

import matplotlib
import numpy as np
from PIL import Image, ImageDraw

from gmm_diffusion import files
from gmm_diffusion.reports import images, page
from gmm_diffusion.tasks.segmentation import metrics

matplotlib.use('Agg')
from matplotlib import pyplot  # noqa: E402  (the backend comes first)

WIDTH = 480
NOTES = (
  'IoU@k: mean intersection over union after k clicks. NoC@85: clicks until 85 % (20 where never). '
  'failures: share of objects that never get there.',
  '"minus none": differences object by object, whose intervals hold no spread between objects; a '
  'difference is there where 0 is outside.',
  'Intervals are 95 %, from a bootstrap over images. Each row has clicks of its own, placed at the '
  'centre of its largest error region.',
  'none, keys, values, both: key adaptation and value propagation off and on, the same weights in '
  'all four.',
)


def curve_png(path: str, rows: dict, of_images: np.ndarray) -> None:
  """Mean IoU against clicks with intervals, and differences from no adaptation object by object;
  of_images as in metrics."""
  figure, (whole, paired) = pyplot.subplots(1, 2, figsize=(13, 4.4), dpi=100)
  for number, (name, curves) in enumerate(rows.items()):
    clicks = np.arange(1, curves.shape[1] + 1)
    for axes, values in ((whole, curves), (paired, curves - rows['none'])):
      mean, low, high = metrics.pooled(values, of_images)
      axes.plot(clicks, mean, color=f'C{number}', label=name)
      axes.fill_between(clicks, low, high, color=f'C{number}', alpha=0.15, linewidth=0)
  whole.set(ylabel='mean IoU', ylim=(None, 1))
  paired.set(ylabel='mean IoU minus that of none')
  for axes in (whole, paired):
    axes.set(xlabel='clicks', xticks=[k for k in clicks if k in metrics.AT])
    axes.grid(alpha=0.3)
  whole.legend(fontsize=8)
  figure.tight_layout()
  files.write(path, lambda name: figure.savefig(name))
  pyplot.close(figure)


def picture(image: np.ndarray, mask: np.ndarray, clicks: list) -> Image.Image:
  """The image darkened outside the mask, with its outline and clicks: green on the object, red
  elsewhere; at most WIDTH pixels a side."""
  shown = np.where(mask[..., None], image, (0.35 * image).astype(np.uint8))
  edge = mask & ~(
    np.roll(mask, 1, 0) & np.roll(mask, -1, 0) & np.roll(mask, 1, 1) & np.roll(mask, -1, 1)
  )
  shown[edge] = (255, 220, 0)
  out = Image.fromarray(shown)
  pen, r = ImageDraw.Draw(out), max(2, max(image.shape) // 100)
  for click in clicks:
    pen.ellipse(
      (click.column - r, click.row - r, click.column + r, click.row + r),
      fill=(40, 220, 60) if click.positive else (240, 40, 40),
      outline='white',
    )
  out.thumbnail((WIDTH, WIDTH))
  return out


def write(
  workdir: str,
  command: str,
  facts: dict,
  table: dict,
  rows: dict,
  shown: dict,
  objects,
  config: dict,
  most: int = 8,
) -> None:
  """curve.png and report.html. shown: name -> (masks, clicks) at the end of the clicks, for each
  object."""
  scenes, masks = objects.scenes, objects.masks
  curve_png(os.path.join(workdir, 'curve.png'), rows, objects.images)
  with open(os.path.join(workdir, 'curve.png'), 'rb') as file:
    curve = file.read()
  names = list(next(iter(table.values())))
  cells = lambda row: ''.join(f'<td>{row[name]}</td>' for name in names)
  body = ''.join(
    f'<tr><td>{html.escape(name)}</td>{cells(row)}</tr>' for name, row in table.items()
  )
  strips = ''
  for i in range(min(most, len(scenes))):
    strips += f'<h3>{html.escape(scenes[i].name)}</h3><div class=row>'
    pictures = {'truth': picture(scenes[i].image, masks[i] == 1, [])}
    pictures.update(
      {
        name: picture(scenes[i].image, found[i], clicks[i])
        for name, (found, clicks) in shown.items()
      }
    )
    for name, one in pictures.items():
      iou = (
        ''
        if name == 'truth'
        else f' {metrics.iou(shown[name][0][i], masks[i]):.2f}, {len(shown[name][1][i])} clicks'
      )
      strips += f'<figure>{page.image(images.png(one))}<figcaption>{html.escape(name + iou)}</figcaption></figure>'
    strips += '</div>'
  parts = [
    f'<!doctype html><html lang=en><meta charset=utf-8><title>interactive '
    f'segmentation</title><style>{page.STYLE}figure {{ margin: 0; flex: 1; font-size: 12px '
    f'}}</style>',
    f'<h1>Interactive segmentation</h1><pre>{html.escape(command)}</pre>',
    '<ul>'
    + ''.join(f'<li>{html.escape(str(k))}: {html.escape(str(v))}</li>' for k, v in facts.items())
    + '</ul>',
    '<table><tr><th></th>' + ''.join(f'<th>{name}</th>' for name in names) + f'</tr>{body}</table>',
    ''.join(f'<p>{note}</p>' for note in NOTES),
    page.image(curve),
    '<h2>Masks after the last click</h2>',
    strips,
    f'<h2>Config</h2><details><summary>all '
    f'keys</summary><pre>{html.escape(json.dumps(config, indent=1))}</pre></details></html>',
  ]
  files.write_text(os.path.join(workdir, 'report.html'), '\n'.join(parts))
