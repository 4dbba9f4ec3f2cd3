"""Figures and page of task 'creativity'."""

import io
import os
from typing import Any, NamedTuple

import matplotlib
import numpy as np

from gmm_diffusion import files, specs
from gmm_diffusion.data import crafted
from gmm_diffusion.reports import images, page
from gmm_diffusion.tasks.creativity import locality, provenance

matplotlib.use('Agg')
from matplotlib import pyplot  # noqa: E402  (the backend comes first)


class Found(NamedTuple):
  """What an evaluation found: samples by name, numbers (see tasks/creativity/modes.py), maps of locality
  at `levels`, provenance."""

  networks: dict[str, np.ndarray]
  machines: dict[str, np.ndarray]
  fixed: dict[int, np.ndarray]
  result: dict[str, Any]
  calibrations: dict[str, Any]
  maps: dict[str, list[np.ndarray]]
  levels: list[float]
  traces: dict[str, tuple[np.ndarray, provenance.Provenance]]
  known: np.ndarray
  noise: np.ndarray
  fixed_machine: str
  published: str


def _finish(figure, path: str) -> bytes:
  figure.tight_layout()
  files.write(path, lambda name: figure.savefig(name))
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png')
  pyplot.close(figure)
  return buffer.getvalue()


def _rows(path: str, rows: dict[str, np.ndarray], columns: int) -> bytes:
  """Named rows of images."""
  figure, axes = pyplot.subplots(
    len(rows), 1, figsize=(0.62 * columns + 2.2, 0.68 * len(rows)), dpi=100, squeeze=False
  )
  for axis, (name, row) in zip(axes[:, 0], rows.items()):
    axis.imshow(
      np.asarray(images.grid(row[:columns], columns)),
      cmap='gray',
      vmin=0,
      vmax=255,
      interpolation='nearest',
    )
    axis.set_axis_off()
    axis.text(-0.01, 0.5, name, transform=axis.transAxes, ha='right', va='center', fontsize=9)
  return _finish(figure, path)


def _curves(path: str, spec: specs.Spec, found: Found) -> bytes:
  figure, axes = pyplot.subplots(1, 3, figsize=(13, 3.6), dpi=100)
  measure = 'consistent' if spec.data.name == 'crafted' else 'memorised'
  values = [found.result['fixed'][size][measure] for size in found.fixed]
  spread = [[v.value - v.low for v in values], [v.high - v.value for v in values]]
  axes[0].errorbar(
    list(found.fixed),
    [v.value for v in values],
    spread,
    marker='.',
    capsize=3,
    label=f'{found.fixed_machine} machine',
  )
  axes[0].set(
    xlabel='patch size at all noise levels', ylabel=f'share {measure}', xticks=list(found.fixed)
  )
  if measure == 'consistent':
    axes[0].plot(
      list(found.fixed),
      [found.result['fixed'][size]['chance'] for size in found.fixed],
      ':',
      color='0.5',
      label='independent cells',
    )
    for number, (name, lines) in enumerate(found.result['early'].items()):
      axes[1].plot(
        found.noise, lines['consistent'], marker='.', color=f'C{number}', label=f'CNN {name}'
      )
      axes[1].plot(found.noise, lines['chance'], ':', color=f'C{number}')
    axes[1].set(xlabel='noise level b', ylabel='share of consistent x_0 predictions', xlim=(1, 0))
    axes[1].legend(fontsize=8)
  else:
    axes[1].set_axis_off()
  axes[0].legend(fontsize=8)
  for name, calibration in found.calibrations.items():
    axes[2].plot(
      calibration.levels,
      [calibration.candidates[i] for i in np.argmax(calibration.cosines, 1)],
      marker='.',
      label=name,
    )
  axes[2].set(
    xlabel='noise level b',
    ylabel='patch size most like the network',
    xlim=(1, 0),
    yticks=spec.creativity.sizes,
  )
  axes[2].legend(fontsize=8)
  return _finish(figure, path)


def _locality(path: str, found: Found) -> bytes:
  figure, axes = pyplot.subplots(
    len(found.levels),
    len(found.maps),
    figsize=(2.2 * len(found.maps), 2.7 * len(found.levels)),
    dpi=100,
    squeeze=False,
  )
  for column, (name, maps) in enumerate(found.maps.items()):
    for row, (level, values) in enumerate(zip(found.levels, maps)):
      axes[row, column].imshow(np.log10(np.maximum(values, 1e-4)), vmin=-4, vmax=0, cmap='magma')
      axes[row, column].set(
        xticks=[], yticks=[], title=f'{name}, b = {level:.2f}\n95 % within {locality.reach(values)}'
      )
      axes[row, column].title.set_fontsize(8)
  return _finish(figure, path)


def _mosaics(path: str, found: Found) -> bytes:
  rows = {}
  for name, (x, trace) in found.traces.items():
    made, maps = provenance.mosaic(trace, found.known)
    colour = lambda y: np.broadcast_to(y, y.shape[:3] + (3,))
    rows[f'{name}\n{np.mean(provenance.pieces(trace)):.1f} images'] = np.stack(
      [colour(x), colour(made), maps], 1
    ).reshape((-1,) + maps.shape[1:])
  return _rows(path, rows, 18)


def write(
  workdir: str, spec: specs.Spec, command: str, config: dict[str, Any], found: Found
) -> None:
  """Writes the figures and report.html."""
  at = lambda name: os.path.join(workdir, name)
  strips = {
    **{f'machine {name}': x for name, x in found.machines.items()},
    **{f'CNN {name}': x for name, x in found.networks.items()},
    'training images': found.known[np.linspace(0, len(found.known) - 1, 16).astype(int)],
  }
  same = _rows(at('same_noise.png'), strips, 16)
  curves = _curves(at('consistency.png'), spec, found)
  mosaics = _mosaics(at('provenance.png'), found)
  maps = _locality(at('locality.png'), found)
  quality = found.result['quality']
  columns = list(dict.fromkeys(key for row in quality.values() for key in row))
  cell = lambda value: (
    '' if value is None else f'{value:.4f}' if isinstance(value, float) else str(value)
  )
  sections: list[page.Section] = [
    (
      'What they make',
      [
        page.table(
          ['', *columns],
          [[name, *(cell(row.get(key)) for key in columns)] for name, row in quality.items()],
        )
      ]
      + _notes(spec, found),
    ),
    (
      'Machine against network, the same noise',
      [
        page.table(
          ['network', 'machine', 'r', 'r²', 'cosine'],
          [
            [final, name, values['r'], values['r2'], values['cosine']]
            for final, row in found.result['agreement'].items()
            for name, values in row.items()
          ],
        ),
        'Medians over the pairs with 95 % bootstrap intervals. r is Pearson’s; what earlier tables '
        'call r² is r.',
        page.table(
          ['network', *next(iter(found.result['baselines'].values()))],
          [[final, *row.values()] for final, row in found.result['baselines'].items()],
        ),
        page.figure(same, 'Columns start from the same noise.'),
      ],
    ),
    (
      'Where pixels come from',
      [
        page.figure(
          mosaics,
          'In threes: a sample, the same made of the centres of the nearest training patches '
          f'({min(spec.creativity.sizes)} x {min(spec.creativity.sizes)}), and their training '
          f'images in colours. Left: mean number of training images that give at least 5 % of the '
          f'pixels.',
        )
      ],
    ),
    (
      'Patch size and noise level',
      [
        page.figure(
          curves,
          f'Left: the {found.fixed_machine} machine at one patch size for all noise levels. '
          f'Dotted: independent cells as frequent in each theme.',
        )
      ],
    ),
    (
      'How far the networks look',
      [
        page.figure(
          maps,
          'Size of the gradient of the middle pixel’s x_0 (log scale), and the square that holds '
          '95 % of its square.',
        )
      ],
    ),
  ]
  page.document(
    at('report.html'),
    f'Creativity: {spec.data.dataset or spec.data.name}, {spec.sampler.steps} steps',
    [],
    sections,
    command,
    {},
    config,
  )


def _notes(spec, found) -> list[str]:
  if spec.data.name != 'crafted':
    return [
      'memorised: nearer to a training image than 95 % of the held-out images are. Distances are '
      'root mean squares of values in 0..255.'
    ]
  return [
    f'consistent: at least two cells show colour, and all that do one theme; chance '
    f'{100 * crafted.CHANCE_CONSISTENT:.1f} % where all four show some and are independent, and as '
    f'in the column "chance" for independent cells as frequent in each theme as these. recognised: '
    f'every cell shows one of the objects at its place. novel: of the consistent and recognised, '
    f'those whose combination is in no training image; {100 * crafted.HELD_OUT:.0f} % of all '
    f'combinations are held out.',
    'memorised: nearer to a training image than 95 % of the held-out images are.',
    found.published,
  ]
