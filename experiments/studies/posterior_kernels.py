"""The mixture, given its best chance: components along the directions in which the denoiser's own
posterior has the most variance (samplers/posterior.py), beside the Gaussian of the same covariance,
isotropic noise of the same energy, DDIM, the mixture of the source, and the best other sampler.

  python -m experiments.studies.posterior_kernels --start=runs/digits --workdir=runs/posterior
  python -m experiments.studies.posterior_kernels --weights=ddpm_mnist_607k.pt
    --path=~/tensorflow_datasets --workdir=runs/posterior_mnist

Each stands on its best grid with its best scale and number of directions, by the energy distance
of tuning (tune/scores.py) on noise and data of its own. The report is the Frechet distance to
held-out items on features that nothing was chosen by, over seeds and paired by noise. Beside it
stand the parts of the mixture at its own settings: DDIM, then the energy, then the directions, then
the modes. The offsets of the source's mixture have another seed for each seed of the noise.
"""

import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from experiments.lib import common, paired, small_ddpm
from gmm_diffusion import files, samplers, specs
from gmm_diffusion.data import base, sources
from gmm_diffusion.engine import build, drawing
from gmm_diffusion.maths import grids, schedules
from gmm_diffusion.metrics import features as features_lib
from gmm_diffusion.reports import plots
from gmm_diffusion.tasks.diffusion import tune
from gmm_diffusion.tune import posterior, scores, tiers
from gmm_diffusion.tune.subject import Subject

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
  'DDIM': ('ddim', {}),
  'mixture, axes': ('posterior_gmm', {'places': 'axes'}),
  'mixture, corners': ('posterior_gmm', {'places': 'corners'}),
  'Gaussian': ('posterior_gaussian', {}),
  'isotropic': ('posterior_noise', {}),
  "source's mixture": ('ddim_gmm', {}),
  'its control': ('ddim_noise', {}),
}
# what each adds to the one before, at the settings of the mixture
PARTS = ('DDIM', 'isotropic', 'Gaussian', 'mixture, axes')
MOST_CORNERS = 16
JUDGES = 'classifier', tune.SECOND  # of Lab.judges


class Lab(NamedTuple):
  """A model with what it is tuned and judged by.

  Attributes:
    subject: the denoiser.
    measured: the same with the labels of `items`.
    items: training data in its range.
    learned: features for choosing.
    judge: samples -> Frechet distance to held-out items, on features of a classifier.
    judges: the same by each of JUDGES.
    mark: hash of the weights.
    data: with the held-out items.
  """

  subject: Subject
  measured: Subject
  items: np.ndarray
  learned: list[Callable[[Any], Any]]
  judge: Callable[[np.ndarray], float]
  judges: Callable[[np.ndarray], list[float]]
  mark: str
  data: base.Data


def lab(args) -> Lab:
  """The model of the arguments."""
  if args.weights:
    data = sources.load(specs.Data(name='tfds', dataset='mnist', path=args.path))
    arrays = small_ddpm.weights(args.weights)
    make = lambda labels: Subject(
      small_ddpm.denoiser, arrays, schedules.linear(), small_ddpm.SHAPE, (-1.0, 1.0), labels,
      args.batch, whole_times=True,
    )  # fmt: skip
    none = lambda ids: np.zeros(len(ids), np.int32)
    subject, measured, mark = make(none), make(none), build.tree_hash(arrays)
  else:
    spec = common.spec_of(args.config, [f'sample.batch={args.batch}', *args.set])
    data = sources.load(spec.data)
    model = drawing.Model(spec, data, build.weights(spec, data, args.start))
    bind, own = build.denoiser(spec, data), lambda ids: data.train_labels[ids]
    subject = tune.subject_of(model, bind, functools.partial(drawing.labels_of, spec, data))
    measured = tune.subject_of(model, bind, own)
    mark = drawing.denoiser_mark(spec, model.hash)
  seen = [network.features for network in features_lib.for_tuning(data, args.workdir)]
  each = [common.judges([name], data, args.workdir) for name in JUDGES]
  judge, judges = lambda x: each[0](x)[0], lambda x: [one(x)[0] for one in each]
  return Lab(subject, measured, base.to_model(data.train), seen, judge, judges, mark, data)


def settings_of(args, kind: str) -> list[dict[str, Any]]:
  """The options of a kind that are tried."""
  name, fixed = KINDS[kind]
  if name == 'ddim':
    return [fixed]
  if name in ('ddim_gmm', 'ddim_noise'):
    return [{**fixed, 'scale': scale} for scale in args.source_scales]
  most = min(args.directions, MOST_CORNERS if kind == 'mixture, corners' else args.directions)
  return [
    {**fixed, 'scale': scale, 'directions': m, 'posterior': path_of(args)}
    for scale in args.scales
    for m in sorted({most, max(1, most // 4)})
  ]


def path_of(args) -> str:
  return os.path.join(args.workdir, 'posterior.npz')


def measure(args, here: Lab) -> None:
  """The residuals of the model, once."""
  files.kept(path_of(args), f'{here.mark} {args.items} {args.directions}', lambda: {
    **posterior.measure(here.measured, here.items[: args.items], 24, args.directions, 0),
    'denoiser': np.array(here.mark),
  })  # fmt: skip


class Question:
  """One number of calls and one eta on a model."""

  def __init__(self, args, here: Lab, calls: int, eta: float):
    self.args, self.here, self.calls, self.eta = args, here, calls, eta
    self._folder = os.path.join(args.workdir, 'values')

  def draw(self, kind, options, grid, seed, count):
    name, options = KINDS[kind][0], {**options, 'eta': self.eta}
    if name in ('ddim_gmm', 'ddim_noise'):
      options['offsets_seed'] = seed
    it = self.here.subject
    times = it.times(grids.make(it.schedule, self.calls, grid).t)
    steps = grids.from_times(it.schedule, times)
    return it.end(name, options, steps, seed, np.arange(count))

  def kept(self, what, make):
    """A number, computed once."""
    mark = files.fingerprint(
      *map(repr, what), self.calls, self.eta, self.here.mark, self.args.count, self.args.choose,
      samplers.posterior.read(path_of(self.args)).mark,
    )  # fmt: skip
    path = os.path.join(self._folder, f'{mark}.json')
    return files.kept(path, mark, lambda: {'value': float(make())})['value']

  def choose(self, score, bar) -> dict[str, tuple[dict[str, Any], str]]:
    """Kind -> (options, grid) with the least score."""
    found = {}
    for kind in KINDS:
      values = {}
      for number, options in enumerate(settings_of(self.args, kind)):
        for grid in self.args.grids:
          make = lambda kind=kind, options=options, grid=grid: (
            score(self.draw(kind, options, grid, tiers.TUNE, self.args.choose)).value
          )
          values[number, grid] = self.kept(('score', kind, options, grid), make)
          bar.update(self.calls * self.args.choose)
      number, grid = min(values, key=values.get)
      found[kind] = settings_of(self.args, kind)[number], grid
    return found

  def values(self, kind, options, grid, bar) -> list[float]:
    """Frechet distances, one for each seed."""
    out = []
    for seed in range(self.args.seeds):
      make = lambda seed=seed: self.here.judge(
        self.draw(kind, options, grid, seed, self.args.count)
      )
      out.append(self.kept(('judge', kind, options, grid, seed), make))
      bar.update(self.calls * self.args.count)
    return out


def answer(question: Question, score, best: list[float], bar) -> list[dict[str, Any]]:
  """Rows: each kind at its own best, and the parts of the mixture at its settings; `best` are the
  values of the best other sampler."""
  rows, chosen = [], question.choose(score, bar)
  options, grid = chosen['mixture, axes']
  own = {kind: question.values(kind, *chosen[kind], bar) for kind in KINDS}
  plain = {key: value for key, value in options.items() if key != 'places'}
  same = {
    kind: question.values(kind, {**plain, **KINDS[kind][1]} if kind != 'DDIM' else {}, grid, bar)
    for kind in PARTS
  }
  about = {'calls': question.calls, 'eta': question.eta}
  for kind, values in own.items():
    shown = {k: v for k, v in chosen[kind][0].items() if k not in ('posterior', 'places')}
    against = {
      f'minus {name}': paired.difference(values, other)
      for name, other in (('DDIM', own['DDIM']), ('the best other', best))
      if values is not other
    }
    rows.append(_row(about, kind, f'{shown} on {chosen[kind][1]}', values, against))
  for before, after in zip(PARTS, PARTS[1:], strict=False):
    difference = paired.difference(same[after], same[before])
    what = f'{after} minus {before}, at the settings of the mixture'
    rows.append(_row(about, what, grid, same[after], {'difference': difference}))
  return rows


def _row(about, what, settings, values, against):
  return {
    **about,
    'what': what,
    'settings': settings,
    'mean': float(np.mean(values)),
    'values': values,
    **{name: found._asdict() for name, found in against.items()},
  }


def best_other(args, here: Lab, calls: int, bar) -> tuple[str, list[float]]:
  """The winner of the race of tuning, and its Frechet distances for each seed."""
  keep = lambda name, mark, make: files.kept(
    os.path.join(args.workdir, 'race', str(calls), name), mark, make
  )
  own = tiers.Settings(calls, tier=-1, samples=args.choose)
  tuner = tiers.Tuner(here.subject, here.items, own, keep, mark=here.mark, learned=here.learned)
  one, values = tuner.run().best, []
  for seed in range(args.seeds):
    make = lambda seed=seed: {
      'value': here.judge(here.subject.draw(one.table, seed, np.arange(args.count)))
    }
    name = f'judge-{tiers.hash_of(one.table)}-{args.count}-{seed}.npz'
    values.append(float(keep(name, here.mark, make)['value']))
    bar.update(calls * args.count)
  return str(one), values


def table(rows: list[dict[str, Any]]) -> str:
  """The rows for people; differences with 95 % intervals."""
  lines = [
    '| calls | eta | | settings | Frechet distance | difference |',
    '|---|---|---|---|---|---|',
  ]
  for row in rows:
    told = [
      f'{paired.Difference(**value)} {name}'.replace(' difference', '')
      for name, value in row.items()
      if isinstance(value, dict)
    ]
    cells = (row['calls'], row['eta'], row['what'], row['settings'], f'{row["mean"]:.4f}')
    lines.append(f'| {" | ".join(map(str, cells))} | {"; ".join(told)} |')
  return '\n'.join(lines)


def picture(path: str, rows: list[dict[str, Any]]) -> None:
  """What energy, directions and modes add, in each setting."""
  parts = [row for row in rows if 'difference' in row]
  settings = list(dict.fromkeys((row['calls'], row['eta']) for row in parts))
  figure, axes = plots.new(1, len(settings), (2.8 * len(settings) + 1, 2.4))
  for axis, setting in zip(axes[0], settings, strict=True):
    own = [paired.Difference(**row['difference']) for row in parts if _setting(row) == setting]
    places = np.arange(len(own))[::-1]
    for place, found in zip(places, own, strict=True):
      axis.errorbar(
        found.value, place, xerr=found.high - found.value, fmt='o', color='C0', capsize=3
      )
    axis.axvline(0, color='0.6', linewidth=0.8)
    axis.set(title=f'{setting[0]} calls, eta {setting[1]:g}', ylim=(-0.5, len(own) - 0.5))
    axis.set_yticks(places, ['energy', 'directions', 'modes'] if axis is axes[0, 0] else [''] * 3)
    axis.tick_params(labelsize=8)
    axis.locator_params(axis='x', nbins=4)
    axis.grid(alpha=0.3)
  figure.supxlabel('what each adds to the Frechet distance; below 0 is better', fontsize=9)
  plots.png(figure, path)


def _setting(row):
  return row['calls'], row['eta']


def main():
  parser = common.parser(__doc__, 'runs/posterior')
  common.model_arguments(parser, 'digits')
  parser.add_argument('--start', default='runs/digits', help='workdir of the trained network')
  parser.add_argument('--weights', default='', help='the state dict of others, in place of it')
  parser.add_argument('--path', default='', help='with weights: folder of tensorflow-datasets')
  parser.add_argument('--calls', type=int, nargs='+', default=[5, 10])
  parser.add_argument('--etas', type=float, nargs='+', default=[0.0, 1.0])
  grids_ = ['trailing', 'quadratic', 'log_snr', 'karras', 'dmn', 'tangent']
  parser.add_argument('--grids', nargs='+', default=grids_, choices=list(grids.GRIDS))
  parser.add_argument('--scales', type=float, nargs='+', default=[0.5, 1.0, 1.5])
  parser.add_argument('--source-scales', type=float, nargs='+', default=[0.1, 0.3, 1.0])
  parser.add_argument('--directions', type=int, default=32)
  parser.add_argument('--items', type=int, default=2048, help='whose residuals are measured')
  parser.add_argument(
    '--choose', type=int, default=512, help='samples by which settings are chosen'
  )
  parser.add_argument('--count', type=int, default=1000, help='samples of a seed of the report')
  parser.add_argument('--seeds', type=int, default=8)
  parser.add_argument('--batch', type=int, default=64)
  args = parser.parse_args()
  here = lab(args)
  measure(args, here)
  items = here.items[: 2 * args.choose]
  features = scores.features(here.subject.shape, here.learned)
  score = scores.scorer(features, scores.reference(features, items, len(here.learned)))
  tried = sum(len(settings_of(args, kind)) for kind in KINDS) * len(args.grids) * args.choose
  drawn = args.seeds * args.count * (len(KINDS) + len(PARTS))
  rows = []
  with tqdm(
    total=sum(args.calls) * (len(args.etas) * (tried + drawn) + args.seeds * args.count),
    unit='call', unit_scale=True, dynamic_ncols=True,
  ) as bar:  # fmt: skip
    for calls in args.calls:
      name, best = best_other(args, here, calls, bar)
      rows.append(_row({'calls': calls, 'eta': 0.0}, 'the best other', name, best, {}))
      for eta in args.etas:
        rows += answer(Question(args, here, calls, eta), score, best, bar)
        print(f'\n{table(rows)}', flush=True)
  keys = ('calls', 'etas', 'grids', 'scales', 'directions', 'items', 'choose', 'count', 'seeds')
  settings = {name: getattr(args, name) for name in keys}
  picture(os.path.join(args.workdir, 'posterior_kernels.png'), rows)
  common.save(args.workdir, 'posterior_kernels', {**settings, 'rows': rows})


if __name__ == '__main__':
  main()
