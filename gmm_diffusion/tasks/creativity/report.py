"""Figures and page of task 'creativity'."""

import dataclasses
import os
from typing import Any, NamedTuple

import numpy as np

from gmm_diffusion.data import crafted
from gmm_diffusion.engine.runs import Run
from gmm_diffusion.metrics.estimates import Estimate
from gmm_diffusion.reports import images, page, plots
from gmm_diffusion.tasks.creativity import locality, machines, provenance
from gmm_diffusion.tasks.creativity.quality import TRACED, Maps

COLUMNS = 16  # images in a row
LABELS = {
  'none': 'plain CNN',
  'top1': 'CNN with top-1 attention',
  'gumbel': 'CNN with Gumbel-softmax attention',
  'softmax': 'CNN with softmax attention',
  'identity': 'CNN with identity attention',
}
PUBLISHED = (
  'Published on another data set whose details are not public: 21.64 % consistency for a CNN with '
  'top-1 attention, 25.44 % with identity attention, over 100 trials.'
)


class Found(NamedTuple):
  """What an evaluation found.

  Attributes:
    samples: uint8 images by name; machines are named 'machine NAME', networks by their final layer.
    numbers: see quality.measure.
    calibrations: of machines by name.
    maps: how far networks look.
    traces: provenance of the first samples, by the names of `samples`.
    fixed_machine: name of the machine that is shown at one patch size for all noise levels.
  """

  samples: dict[str, np.ndarray]
  numbers: dict[str, Any]
  calibrations: dict[str, Any]
  maps: Maps
  traces: dict[str, provenance.Provenance]
  fixed_machine: str


def label(name: str) -> str:
  """What a network or machine is called on the page."""
  return LABELS.get(name, name)


def percent(value: Estimate | float) -> str:
  """A share in %, with its interval where it has one."""
  if not isinstance(value, Estimate):
    return f'{100 * value:.1f} %'
  return f'{100 * value.value:.1f} % ({100 * value.low:.1f} to {100 * value.high:.1f})'


def number(value: Estimate) -> str:
  """A value with its interval, which need not lie evenly about it."""
  return f'{value.value:.2f} ({value.low:.2f} to {value.high:.2f})'.replace('-', '−')


def lead(found: Found) -> list[str]:
  """The result in words."""
  numbers, out = found.numbers, []
  networks = list(numbers['agreement'])
  first, quality = networks[0], numbers['quality']
  shown = networks[:1]
  if 'consistent' in quality[first]:
    share = lambda name: quality[name]['consistent']
    best = max(networks, key=lambda name: share(name).value)
    text = (
      f'The {label(first)} makes images with one theme throughout in {percent(share(first))} of '
      f'the cases; independent cells would in {percent(quality[first]["chance"])}.'
    )
    if best != first:
      apart = share(best).low > share(first).high
      text += f' Highest is the {label(best)}: {percent(share(best))}' + (
        '.' if apart else ', which is no difference within these intervals.'
      )
      shown.append(best)
    out.append(text)
  for name in shown:
    row = numbers['agreement'][name]
    if row:
      best = max(row, key=lambda machine: row[machine]['r'].value)
      nearest = numbers['baselines'][name]['nearest training image']
      out.append(
        f'Of the machines, {best} predicts best what the {label(name)} makes of the same noise: '
        f'correlation r = {number(row[best]["r"])}. The nearest training image has '
        f'{number(nearest)}.'
      )
  copying = max(networks, key=lambda name: quality[name]['memorised'].value)
  share = quality[copying]['memorised']
  word = 'Copies are rare' if share.high < 0.05 else 'Copies of training images'
  out.append(
    f'{word}: nearer to a training image than 95 % of held-out images are at most '
    f'{percent(share)} of the images of a network ({label(copying)}).'
  )
  return out


def _rows(path: str, rows: dict[str, np.ndarray], columns: int) -> bytes:
  """Named rows of images."""
  left, width = 2.9, 11.2
  figure, axes = plots.new(len(rows), 1, (width, 1.06 * len(rows) * (width - left) / columns))
  figure.set_layout_engine('none')
  figure.subplots_adjust(left=left / width, right=1, bottom=0, top=1, hspace=0.06)
  for axis, (name, row) in zip(axes[:, 0], rows.items()):
    sheet = np.asarray(images.grid(row[:columns], columns))
    axis.imshow(sheet, cmap='gray', vmin=0, vmax=255, interpolation='nearest')
    axis.set_axis_off()
    axis.text(-0.01, 0.5, name, transform=axis.transAxes, ha='right', va='center', fontsize=8)
  return plots.png(figure, path)


def _fixed(axis, found: Found) -> None:
  """Quality of a machine with one patch size for all noise levels."""
  fixed = found.numbers['fixed']
  measure = 'consistent' if 'consistent' in next(iter(fixed.values())) else 'memorised'
  sizes, values = list(fixed), [row[measure] for row in fixed.values()]
  spread = [[v.value - v.low for v in values], [v.high - v.value for v in values]]
  name = f'machine {found.fixed_machine}'
  axis.errorbar(sizes, [v.value for v in values], spread, marker='.', capsize=3, label=name)
  if measure == 'consistent':
    chance = [row['chance'] for row in fixed.values()]
    axis.plot(sizes, chance, ':', color='0.5', label='independent cells')
  axis.set(xlabel='patch size at all noise levels', ylabel=f'share {measure}', xticks=sizes)
  axis.legend(fontsize=8)


def _early(axis, run: Run, found: Found) -> None:
  """When networks decide on a theme."""
  noise = machines.grid_of(run.spec).b_t
  for n, (name, lines) in enumerate(found.numbers['early'].items()):
    axis.plot(noise, lines['consistent'], marker='.', color=f'C{n}', label=label(name))
    axis.plot(noise, lines['chance'], ':', color=f'C{n}')
  axis.set(xlabel='noise level b', ylabel='share of consistent x_0 predictions', xlim=(1, 0))
  axis.legend(fontsize=8)


def _calibration(axis, run: Run, found: Found) -> None:
  """The patch size at which each machine is most like the first network."""
  for name, one in found.calibrations.items():
    sizes = [one.candidates[i] for i in np.argmax(one.cosines, 1)]
    axis.plot(one.levels, sizes, marker='.', label=f'machine {name}')
  network = label(run.spec.creativity.networks[0])
  axis.set(xlabel='noise level b', ylabel=f'patch size most like the {network}', xlim=(1, 0))
  axis.set(yticks=run.spec.creativity.sizes)
  if found.calibrations:
    axis.legend(fontsize=8)


def _curves(path: str, run: Run, found: Found) -> bytes:
  panels = [lambda axis: _fixed(axis, found), lambda axis: _calibration(axis, run, found)]
  if any(found.numbers['early'].values()):
    panels.insert(1, lambda axis: _early(axis, run, found))
  figure, axes = plots.new(1, len(panels), (11.2, 3.6))
  for draw, axis in zip(panels, axes[0]):
    draw(axis)
  return plots.png(figure, path)


def _locality(path: str, maps: Maps) -> bytes:
  rows, columns = len(maps.levels), len(maps.of)
  figure, axes = plots.new(rows, columns, (max(3.4, 2.2 * columns), 2.7 * rows))
  for column, (name, one) in enumerate(maps.of.items()):
    for row, (level, values) in enumerate(zip(maps.levels, one)):
      axes[row, column].imshow(np.log10(np.maximum(values, 1e-4)), vmin=-4, vmax=0, cmap='magma')
      reach = locality.reach(values)
      title = f'{label(name)}\nb = {level:.2f}: 95 % within {reach} x {reach}'
      axes[row, column].set(xticks=[], yticks=[])
      axes[row, column].set_title(title, fontsize=7)
  return plots.png(figure, path)


def _mosaics(path: str, found: Found, known: np.ndarray) -> bytes:
  rows = {}
  colour = lambda y: np.broadcast_to(y, y.shape[:3] + (3,))
  for name, trace in found.traces.items():
    made, maps = provenance.mosaic(trace, known)
    several = np.stack([colour(found.samples[name][:TRACED]), colour(made), maps], 1)
    count = np.mean(provenance.pieces(trace))
    rows[f'{label(name)}: {count:.1f}'] = several.reshape((-1,) + maps.shape[1:])
  return _rows(path, rows, 3 * TRACED)


def _quality(run: Run, found: Found) -> list:
  """Tables of consistency, where it is known, and of distances to the training images."""
  quality, out = found.numbers['quality'], []
  if run.spec.data.name == 'crafted':
    columns = ('consistent', 'chance', 'recognised', 'novel')
    cell = lambda row, key: percent(row[key]) if key in row else ''
    rows = [[label(name), *(cell(row, key) for key in columns)] for name, row in quality.items()]
    out += [
      page.table(['images of', *columns], rows),
      f'consistent: at least two cells show colour, and all that do one theme. chance: the same of '
      f'independent cells that are as frequent in each theme as these '
      f'({100 * crafted.CHANCE_CONSISTENT:.1f} % where all four show some, all themes as often). '
      f'recognised: every cell shows one of the objects at its place. novel: of the consistent and '
      f'recognised, those whose combination is in no training image; '
      f'{100 * crafted.HELD_OUT:.0f} % of all combinations are held out.',
    ]
  rows = [
    [label(name), percent(row['memorised']), number(row['distance'])]
    for name, row in quality.items()
  ]
  held_out = number(next(iter(quality.values()))['held-out distance'])
  out += [
    page.table(['images of', 'memorised', 'distance'], [*rows, ['held-out data', '', held_out]]),
    'memorised: nearer to a training image than 95 % of the held-out images are. distance: to the '
    'nearest training image, root mean square of values in 0..255, median. In parentheses: 95 % '
    'intervals over the images.',
  ]
  return out + [PUBLISHED] * (run.spec.data.name == 'crafted')


def _agreement(found: Found) -> list:
  """The table of r, and all numbers behind it folded away."""
  agreement, baselines = found.numbers['agreement'], found.numbers['baselines']
  made = list(next(iter(agreement.values())))
  others = {'nearest training image': 'nearest training image', 'random pair': 'another sample'}
  rows = []
  for final, row in agreement.items():
    values = [row[name]['r'] for name in made] + [baselines[final][name] for name in others]
    rows.append([label(final), *(f'{value.value:.2f} ± {value.half:.2f}' for value in values)])
  lines = [
    f'{label(final):30s} {name:12s} r {number(values["r"]):24s} r² {number(values["r2"]):24s} '
    f'cosine {number(values["cosine"])}'
    for final, row in agreement.items()
    for name, values in row.items()
  ]
  return [
    page.table(['images of', *(f'machine {name}' for name in made), *others.values()], rows),
    'Pearson’s r between the images of a network and those that machines make of the same noise, '
    'their nearest training images, and other samples of the network: medians over the pairs with '
    '95 % bootstrap intervals. What earlier tables call r² is r.',
    page.folded('r, r² and cosine', '\n'.join(lines)),
  ]


def write(run: Run, found: Found) -> None:
  """Writes the figures and report.html."""
  at = lambda name: os.path.join(run.workdir, name)
  spec, known = run.spec, machines.known(run.spec, run.data)
  strips = {label(name): x for name, x in found.samples.items()}
  strips['training images'] = known[np.linspace(0, len(known) - 1, COLUMNS).astype(int)]
  size = min(spec.creativity.sizes)
  figure = lambda png, text: page.figure(png, text, smooth=True)
  sections: list[page.Section] = [
    ('What they make', _quality(run, found)),
    (
      'Machine against network, the same noise',
      [
        *_agreement(found),
        page.figure(
          _rows(at('same_noise.png'), strips, COLUMNS), 'Columns start from the same noise.'
        ),
      ],
    ),
    (
      'Where pixels come from',
      [
        page.figure(
          _mosaics(at('provenance.png'), found, known),
          f'In threes: a sample; the same made of the centres of the nearest training patches '
          f'({size} x {size}); the training images these are from, in colours. The numbers count '
          f'training images that give at least 5 % of the pixels, on average.',
        )
      ],
    ),
    (
      'Patch size and noise level',
      [
        figure(
          _curves(at('consistency.png'), run, found),
          f'Left: the machine {found.fixed_machine} at one patch size for all noise levels. Dotted '
          f'lines: independent cells as frequent in each theme.',
        )
      ],
    ),
    (
      'How far the networks look',
      [
        figure(
          _locality(at('locality.png'), found.maps),
          'Size of the gradient of the middle pixel’s x_0 (log scale), and the square that holds '
          '95 % of its square.',
        )
      ],
    ),
  ]
  page.document(
    at('report.html'),
    f'Where images come from: {spec.data.title}, {spec.sampler.steps} steps',
    lead(found),
    sections,
    run.command,
    {'pairs': spec.creativity.pairs, 'samples of each network': spec.sample.count},
    dataclasses.asdict(spec),
  )
