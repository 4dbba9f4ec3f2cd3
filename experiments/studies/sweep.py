"""The source's protocol on one model: sampler x steps x eta x K x scale, in the layout of its
tables 4 to 12.

A scale is chosen on one seed and reported on another, so that choosing among scales is no gain; it
stands in parentheses. The control, isotropic noise of the same energy, has a column of its own with
its own best scale. Intervals are 95 %. A cell that is done is not computed again, so a run that was
stopped goes on. Tables show what is there and '-' for the rest.

  python -m experiments.studies.sweep --preset=digits --workdir=runs/digits
  python -m experiments.studies.sweep --preset=celebahq256 --workdir=runs/celebahq256 \\
    --set data.name=... data.path=...
  # tables and plots of what is there, published values at least:
  python -m experiments.studies.sweep --preset=celebahq256 --render
"""

import os
import sys
from collections.abc import Iterator
from typing import NamedTuple

from experiments.lib import cells as cells_lib
from experiments.lib import columns as columns_lib
from experiments.lib import common, tables
from gmm_diffusion import files, specs
from gmm_diffusion.errors import UserError


class Preset(NamedTuple):
  """A config and the grid of its published tables.

  Attributes:
    config: a name in configs/ with a variant; '' where no released model is known.
    dataset: its name among the published values; '' has none.
    published: metric -> (number of the table, guidance scale as it is written there).
    columns, etas, steps, scales, components, count: the grid and the number of samples.
    changes: to the config; published values are on Inception features.
  """

  config: str
  dataset: str = ''
  published: dict[str, tuple[int, str]] = {'fid': (0, '')}
  columns: tuple[str, ...] = columns_lib.SOURCE
  etas: tuple[float, ...] = (0.0, 0.2, 0.5, 1.0)
  steps: tuple[int, ...] = (10, 20, 50, 100)
  scales: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0)
  components: tuple[int, ...] = (8,)
  count: int = 50000
  changes: tuple[str, ...] = ('evaluate.features=inception',)


def _imagenet(config, fid, score, guidance, *changes, columns=columns_lib.SOURCE, **more):
  grid = dict(dict(steps=(10, 100)), **more)
  return Preset(
    config,
    'imagenet256',
    {'fid': (fid, guidance), 'is': (score, guidance)},
    columns,
    changes=Preset._field_defaults['changes'] + changes,
    **grid,
  )


_VUB = ('DDIM', 'ORTHO-VUB', 'control')
_FLOW = ('RFIM', 'RFIM-RAND', 'RFIM-ORTHO', 'RFIM-ORTHO-VUB', 'RFIM control')
PRESETS = {
  'celebahq256': Preset('celebahq256:ldm', 'celebahq256', {'fid': (7, '')}),
  'ffhq256': Preset('ffhq256:ldm', 'ffhq256', {'fid': (8, '')}),
  'lsun_bedroom256': Preset(
    'lsun_bedroom256:ddpm', 'lsun_bedroom256', {'fid': (5, '')}, _VUB, (0.0,)
  ),
  'lsun_church256': Preset('lsun_church256:ddpm', 'lsun_church256', {'fid': (6, '')}, _VUB, (0.0,)),
  # classifier guidance is the source's 1 and 10, classifier-free guidance its 2.5 and 5
  'imagenet256_classifier1': _imagenet(
    'imagenet256:adm_guided', 9, 10, '1', 'classifier.scale=1.0'
  ),
  'imagenet256_classifier10': _imagenet(
    'imagenet256:adm_guided', 9, 10, '10', 'classifier.scale=10.0'
  ),
  'imagenet256_free2.5': _imagenet('imagenet256:ldm', 11, 12, '2.5', 'denoiser.guidance=2.5'),
  'imagenet256_free5': _imagenet('imagenet256:ldm', 11, 12, '5', 'denoiser.guidance=5.0'),
  # table 4: the other fast samplers at the same guidance
  'imagenet256_free2.5_fast': _imagenet(
    'imagenet256:ldm',
    4,
    4,
    '2.5',
    'denoiser.guidance=2.5',
    columns=('DDIM', *columns_lib.FAST),
    etas=(0.0,),
  ),
  'imagenet256_free5_fast': _imagenet(
    'imagenet256:ldm',
    4,
    4,
    '5',
    'denoiser.guidance=5.0',
    columns=('DDIM', *columns_lib.FAST),
    etas=(0.0,),
  ),
  'cifar10': Preset('cifar10:ddpm'),
  # the source's rectified flows are not released: these show its values, and ours with a --config
  # of one's own
  'cifar10_flow': Preset('', 'cifar10', {'fid': (1, '')}, _FLOW, (0.0, 0.2, 0.5), (2, 5, 10, 50)),
  'imagenet64_flow': Preset(
    '',
    'imagenet64',
    {'fid': (2, '')},
    ('RFIM', 'RFIM-GMM', 'RFIM control'),
    (0.0, 0.2, 0.5),
    (1, 2),
  ),
  'digits': Preset(
    'digits', etas=(0.0, 0.5, 1.0), steps=(5, 10), scales=(0.3, 1.0), count=500, changes=()
  ),
  'mnist': Preset(
    'mnist:runlocal',
    etas=(0.0, 0.5, 1.0),
    steps=(5, 10),
    scales=(0.3, 1.0, 3.0),
    count=500,
    changes=(),
  ),
}


class Place(NamedTuple):
  """A place in a table and the samplers to choose from for it (one for each scale)."""

  column: str
  eta: float
  steps: int
  components: int
  options: tuple[specs.Sampler, ...]


def places(spec: specs.Spec, preset: Preset) -> Iterator[Place]:
  """All places, in the order in which they are computed; those that no sampler fits are left
  out."""
  for K in preset.components:
    for eta in preset.etas:
      for steps in preset.steps:
        for column in preset.columns:
          one = columns_lib.at_budget(
            spec.schedule, columns_lib.sampler_of(spec, column, eta=eta, components=K), steps
          )
          if one is not None:
            yield Place(column, eta, steps, K, tuple(cells_lib.with_scales(one, preset.scales)))


def run(cells: cells_lib.Cells, spec: specs.Spec, preset: Preset) -> None:
  """Computes what is not there: the choosing seed first, then the best scale of each metric on the
  reporting seed."""
  todo = list(places(spec, preset))
  cells.fill(
    (
      (option, cells_lib.CHOOSE)
      for place in todo
      if len(place.options) > 1
      for option in place.options
    ),
    'choosing scales',
  )
  cells.fill(
    (
      (cells.best(place.options, common.METRICS[metric]), cells_lib.REPORT)
      for place in todo
      for metric in preset.published
    ),
    'reporting',
  )


def ours(
  cells: cells_lib.Cells, spec: specs.Spec, preset: Preset, metric: str, components: int
) -> dict:
  """(column, eta, steps) -> Ours, for what is computed."""
  name, out = common.METRICS[metric], {}
  for place in places(spec, preset):
    chosen = len(place.options) == 1 or all(
      cells.has(option, cells_lib.CHOOSE) for option in place.options
    )
    if place.components == components and chosen:
      best = cells.best(place.options, name)
      if cells.has(best, cells_lib.REPORT):
        scale = (
          best.scale if len(place.options) > 1 or columns_lib.takes(place.column, 'scale') else None
        )
        out[place.column, place.eta, place.steps] = tables.Ours(
          cells.estimate(best, cells_lib.REPORT, name),
          scale,
          cells.get(best, cells_lib.REPORT)['nfe'],
        )
  return out


def table_of(
  cells: cells_lib.Cells | None,
  spec: specs.Spec | None,
  preset: Preset,
  name: str,
  metric: str,
  components: int,
) -> tables.Table:
  """The table of a metric and K; without cells it has the published values alone."""
  number, guidance = preset.published[metric]
  title, headings, found = preset.dataset or name, tables.TITLES, {}
  if number:
    title += f', table {number} of arXiv 2311.04938'
  if guidance:
    title += f', guidance {guidance}'
  title += f', K = {components}'
  if cells:
    found = ours(cells, spec, preset, metric, components)
    features = cells.subject.bench.features.name
    if not features.startswith('inception'):
      headings = tables.ON_OTHERS
    if found:
      title += f', ours: N = {cells.count}, {features.split("-")[0]} features'
  return tables.Table(
    title,
    preset.dataset,
    number,
    guidance,
    metric,
    headings[metric],
    preset.columns,
    preset.etas,
    preset.steps,
    found,
  )


def record(cells: cells_lib.Cells, table: tables.Table) -> dict:
  """What we found for a table, as it is kept."""
  return {
    'n': cells.count,
    'seeds': {'chosen on': cells_lib.CHOOSE, 'reported on': cells_lib.REPORT},
    **cells.subject.facts,
    'rows': [
      {
        'column': column,
        'eta': eta,
        'steps': steps,
        'value': one.estimate.value,
        'interval': one.estimate[1:],
        'scale': one.scale,
        'nfe': one.nfe,
      }
      for (column, eta, steps), one in table.ours.items()
    ],
  }


def render(
  cells: cells_lib.Cells | None, spec: specs.Spec | None, preset: Preset, name: str, workdir: str
) -> str:
  """Writes sweep_NAME.md and a plot for each table; without cells they show the published
  values."""
  parts = []
  for metric in preset.published:
    for K in preset.components:
      table = table_of(cells, spec, preset, name, metric, K)
      parts.append(tables.markdown(table))
      stem = f'sweep_{name}_{metric}' + (f'_K{K}' if len(preset.components) > 1 else '')
      tables.plot(os.path.join(workdir, stem + '.png'), table)
      if cells:
        common.save(workdir, stem, record(cells, table))
  text = '\n\n'.join(parts) + '\n'
  files.write_text(os.path.join(workdir, f'sweep_{name}.md'), text)
  return text


def main():
  parser = common.parser(__doc__, '')
  parser.add_argument('--preset', default='digits', help=', '.join(PRESETS))
  parser.add_argument('--render', action='store_true', help='compute nothing, show what is there')
  parser.add_argument('--config', default='', help="instead of the preset's")
  parser.add_argument(
    '--set',
    nargs='*',
    default=[],
    metavar='KEY=VALUE',
    help='changes to the config, such as data.path=/data',
  )
  parser.add_argument('--columns', nargs='+', default=None, help=', '.join(columns_lib.COLUMNS))
  for key, kind in (('etas', float), ('steps', int), ('scales', float), ('components', int)):
    parser.add_argument('--' + key, type=kind, nargs='+', default=None)
  parser.add_argument('--count', type=int, default=None)
  args = parser.parse_args()
  if args.preset not in PRESETS:
    raise UserError(f'unknown preset {args.preset!r}; valid: {", ".join(PRESETS)}')
  given = {
    key: tuple(value) if isinstance(value, list) else value
    for key in ('config', 'columns', 'etas', 'steps', 'scales', 'components', 'count')
    if (value := getattr(args, key)) not in (None, '')
  }
  preset = PRESETS[args.preset]._replace(**given)
  columns_lib.check(preset.columns)
  workdir = args.workdir or os.path.join('runs', args.preset)
  files.make_workdir(workdir)
  cells = spec = None
  if not args.render or os.path.isdir(os.path.join(workdir, cells_lib.FOLDER)):
    if not preset.config:
      raise UserError(
        f'preset {args.preset!r} has no released model: give a config of your own by --config, or '
        f'--render for the published values'
      )
    spec = common.spec_of(preset.config, (*preset.changes, *args.set))
    cells = cells_lib.Cells(
      common.load_subject(spec, workdir, preset.count),
      workdir,
      preset.count,
      everything=set(preset.published) != {'fid'},
    )
    if not args.render:
      run(cells, spec, preset)
  print(render(cells, spec, preset, args.preset, workdir))


if __name__ == '__main__':
  try:
    main()
  except UserError as error:
    sys.exit(f'error: {error}')
