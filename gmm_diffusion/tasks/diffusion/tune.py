"""--mode=tune: the best sampler for N calls of this model, with evidence; tuned/N.json."""

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gmm_diffusion import files, metrics, parallel, specs
from gmm_diffusion.data import base, image_sets
from gmm_diffusion.engine import build, drawing, quality, released
from gmm_diffusion.engine.runs import Run
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import bands as bands_lib
from gmm_diffusion.maths import grids
from gmm_diffusion.metrics import features as features_lib
from gmm_diffusion.metrics import references
from gmm_diffusion.reports import images as pictures
from gmm_diffusion.reports import records
from gmm_diffusion.samplers import tuned
from gmm_diffusion.tasks.diffusion import judging, tune_page
from gmm_diffusion.tune import race, tiers
from gmm_diffusion.tune.subject import Subject
from gmm_diffusion.types import Denoiser

FOLDER = 'tuned'
SECOND = 'gradients'  # features of a second judge, which no network learned
LEAST = 64  # items of a part of the data that is compared with
_AT_ONCE = 512  # images whose features are extracted in one call


class Judge(NamedTuple):
  """What the report measures with, of which tuning sees nothing.

  Attributes:
    features, reference: of the metric.
    metric: its name.
    seeds: how many streams of noise.
    samples: for each.
  """

  features: features_lib.Features
  reference: references.Reference
  metric: str
  seeds: int
  samples: int


class Known(NamedTuple):
  """Items [M, ...] of the reference, in the range of the model, and their labels, int32 [M]."""

  items: np.ndarray
  labels: np.ndarray


class Keeper:
  """What tuning for so many calls keeps in `folder`, and what all of it cost, in this run and in
  those before.

  Attributes:
    seconds, calls: of what was asked for; the report is no part of it.
    made: whether this run has made any of it.
  """

  def __init__(self, folder: str, calls: int, subject: Subject):
    self._folder, self._calls, self._subject = folder, calls, subject
    self.made = False
    self._costs: dict[str, np.ndarray] = {}

  def __call__(self, name: str, mark: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    def measured():
      begin, before = time.perf_counter(), self._subject.calls
      self.made, arrays = True, make()
      cost = time.perf_counter() - begin, self._subject.calls - before
      return {**arrays, 'cost': np.array(cost)}

    shared = name == tiers.LOCAL_ERRORS  # by all numbers of calls
    place = os.path.join(self._folder, *([] if shared else [str(self._calls)]), name)
    arrays = dict(files.kept(place, mark, measured))
    cost = arrays.pop('cost', np.zeros(2))
    if not name.startswith('report-'):
      self._costs[name] = cost
    return arrays

  @property
  def seconds(self) -> float:
    return float(sum(cost[0] for cost in self._costs.values()))

  @property
  def calls(self) -> int:
    return int(sum(cost[1] for cost in self._costs.values()))


def path_of(workdir: str, calls: int) -> str:
  """Where the sampler for so many calls is."""
  return os.path.join(workdir, FOLDER, f'{calls}.json')


def tune(one: Run) -> None:
  """Tunes for each of tune.calls; writes tuned/N.json and tuned.html."""
  spec, data = one.spec, one.data
  schedule = build.schedule(spec.schedule)
  for calls in spec.tune.calls:  # bad settings before anything slow
    grids.make(schedule, calls, 'uniform')
  _check_reference(spec, data)
  if spec.tune.tier == 3 and parallel.hosts() > 1:
    raise UserError('tune.tier 3 runs on one host; tune with it there, or set tune.tier=2')
  bind = build.denoiser(spec, data)
  released.ensure(spec, data, one.workdir)
  model = drawing.Model(spec, data, build.weights(spec, data, one.workdir))
  subject = subject_of(model, bind, functools.partial(drawing.labels_of, spec, data))
  known, held = _parts(spec, data)
  judges = _judges(spec, data, held, one.workdir)
  if spec.tune.reference == 'model':
    items = own(subject, 4 * spec.tune.samples, spec, one.workdir, model.hash)
    known = Known(items, subject.labels(np.arange(len(items))))
  of_images = not spec.autoencoder.name
  seen = features_lib.for_tuning(data, quality.cache_of(spec, one.workdir)) if of_images else []
  keys, learned = [network.key for network in seen], [network.features for network in seen]
  mark = files.fingerprint(model.hash, repr(drawing.facts(spec, model.hash)), *known, *keys)
  ratios: dict[int, tuple[float, ...]] = {}
  for calls in spec.tune.calls:
    some = _one(one, subject, known, judges, mark, calls, model, learned, ratios)
    ratios = {**ratios, calls: some} if some else ratios
  if parallel.is_main():
    path = os.path.join(one.workdir, 'tuned.html')
    found = [files.read_json(path_of(one.workdir, n), {}) for n in spec.tune.calls]
    name = spec.data.title
    words = tune_page.write(
      path,
      f'{name}: the best sampler',
      one.command,
      dataclasses.asdict(spec),
      found,
      _strips(found, subject, model, spec),
    )
    print('\n'.join([*words, f'report: {path}']))


def subject_of(
  model: drawing.Model,
  bind: Callable[[Any], Denoiser],
  labels: Callable[[np.ndarray], np.ndarray],
) -> Subject:
  """The denoiser of a model, with what is decided of its samples: latents stay latents."""
  spec, data = model.spec, model.data
  latent = bool(spec.autoencoder.name)
  return Subject(
    bind,
    {name: part for name, part in model.weights.items() if name != 'autoencoder'}
    if latent
    else model.weights,
    build.schedule(spec.schedule),
    build.sample_shape(spec, data),
    (-1.0, 1.0) if data.is_image and not latent else None,
    labels,
    min(spec.sample.batch, tiers.FIRST),
  )


def _check_reference(spec, data):
  if spec.tune.reference == 'data' and spec.autoencoder.name:
    raise UserError(
      "tune.reference 'data' needs a model of images, and this one makes latents; use 'model'"
    )
  if spec.tune.reference == 'data' and len(data.train) < 4 * LEAST:
    raise UserError(
      f"tune.reference 'data' needs at least {4 * LEAST} training items, data {spec.data.name!r} "
      f"has {len(data.train)}; use 'model'"
    )


def _parts(spec: specs.Spec, data: base.Data) -> tuple[Known, Any]:
  """(what is known of tuning and selection, as many as are compared with; items for the report
  alone)."""
  index, held = _split(data)
  index = index[: 2 * tiers.SURE * spec.tune.samples]
  labels = np.zeros(len(index), np.int32)
  if drawing.takes_labels(spec, data):
    labels = np.asarray(data.train_labels[index], np.int32)
  return Known(base.to_model(data.train[index]), labels), held


def _split(data: base.Data) -> tuple[np.ndarray, Any]:
  """(numbers of the training items that are not of the report, the items of the report)."""
  index = np.arange(len(data.train))
  if len(data.test) >= LEAST:
    return index, data.test
  return index[index % 3 != 2], data.train[index[2::3]]


def own(subject: Subject, count: int, spec: specs.Spec, workdir: str, weights: str) -> np.ndarray:
  """Samples of the model itself in many steps, [count, *shape]."""

  def make():
    name, options, grid = judging.long_run(subject)
    print(f'drawing {count} samples in {len(grid.t)} steps as the reference', flush=True)
    seed = tiers.stream(spec.seed, tiers.OWN)
    drawn = subject.end(name, options, grid, seed, np.arange(count))
    return {'x': np.asarray(subject.clipped(drawn))}

  return files.kept(
    os.path.join(workdir, FOLDER, 'work', f'own-{count}.npz'),
    f'{weights} {spec.seed} {drawing.facts(spec, weights)}',
    make,
  )['x']


def _judges(spec: specs.Spec, data: base.Data, held: np.ndarray, workdir: str) -> list[Judge]:
  """The judge of the config, and where it can be one of another kind."""
  e = spec.evaluate
  out = [_judge(spec, e.features, data, held, workdir)]
  enough = min(len(held), e.count) >= LEAST
  if e.features != SECOND and data.is_image and enough and not e.reference:
    second = dataclasses.replace(e, metrics=('frechet',))
    out.append(_judge(dataclasses.replace(spec, evaluate=second), SECOND, data, held, workdir))
  return out


def _judge(spec: specs.Spec, name: str, data: base.Data, held: np.ndarray, workdir: str) -> Judge:
  """A judge by these features; raises UserError where no metric can be computed."""
  e, cache = spec.evaluate, quality.cache_of(spec, workdir)
  features = features_lib.load(name, data, cache, e.inception)
  if e.reference:
    source = references.find(e.reference, features, data.shape, spec.data.path, e.skip_unreadable)
  elif len(held):
    what = f'{len(held)} held-out items'
    source = references.Source(what, image_sets.ArraySet(held, what))
  else:
    raise UserError(
      f'data {spec.data.name!r} has no images for the report; set evaluate.reference to a folder '
      f'of images, an .npz or tfds:NAME:SPLIT'
    )
  wanted = e.metrics[:1]
  names, _ = metrics.choose(wanted, features, source, e.count, e.neighbours)
  reference = references.load(source, features, metrics.kinds(names[:1])[1], cache)
  return Judge(features, reference, names[0], spec.tune.seeds, e.count)


def _one(
  one: Run,
  subject: Subject,
  known: Known,
  judges: list[Judge],
  mark: str,
  calls: int,
  model: drawing.Model,
  learned: Sequence[Callable[[Any], Any]],
  ratios: Mapping[int, Sequence[float]],
) -> tuple[float, ...]:
  """Tunes for one number of calls and judges what was found. `ratios` are those that this returned
  for other numbers of calls."""
  spec, folder = one.spec, os.path.join(one.workdir, FOLDER)
  t = spec.tune
  settings = tiers.Settings(
    calls, t.tier, t.bands, t.samples, t.steps, t.batch, t.minutes, spec.seed
  )
  keep = Keeper(os.path.join(folder, 'work'), calls, subject)
  shared = records.common(spec, one.command)
  about = {
    'calls': calls,
    **shared,
    'reference': f'{len(known.items)} items of the {"data" if t.reference == "data" else "model"}',
  }

  def write(found: Any, report: Any = None) -> None:
    # going through what earlier runs made, it has less than they left
    repeats = report is None and not keep.made and os.path.exists(path_of(one.workdir, calls))
    if repeats or not parallel.is_main():
      return
    about.update(
      seconds=keep.seconds,
      network_calls=keep.calls,
      finished=found.finished,
    )
    content = tuned.content(found.best.table, subject.shape, model.hash)
    fixed = tuned.content(found.fixed.table, subject.shape, model.hash)['table']
    files.write_json(
      path_of(one.workdir, calls),
      {
        'what': str(found.best),
        **content,
        'fixed': {'what': str(found.fixed), 'table': fixed},
        'evidence': found.evidence,
        'search': found.search,
        'report': report,
        **about,
      },
    )

  print(f'{calls} calls: looking for the best sampler', flush=True)
  tuner = tiers.Tuner(
    subject, known.items, settings, keep, write, mark, learned, known.labels, ratios
  )
  found = tuner.run()
  if not found.finished:
    print(
      f'tune.minutes {t.minutes:g} were over after {found.evidence[-1]["tier"]!r}: this is the '
      f'best so far, and another run goes on from here'
    )
  report = _report(found, tuner, judges, spec, model, one.workdir)
  write(found, report)
  return found.ratios


def _report(found, tuner, judges, spec, model, workdir):
  """The judges' values of everything that was proposed, on noise and data of its own."""
  own = specs.Sampler(
    name='ddim', steps=tuner.settings.calls, grid=spec.sampler.grid, rho=spec.sampler.rho
  )
  times = tuner.subject.times(build.grid(tuner.subject.schedule, own).t)
  default = race.embedded('ddim', {}, tuner.subject.schedule, times, spec.sampler.grid)
  marks = [f'{one.features.name} {one.metric} {one.reference.hash}' for one in judges]
  mark, judge = ' '.join(marks), judges[0]
  values = judging.judged(
    (default, found.fixed, *found.proposals),
    tuner,
    lambda x: [_value(x, one, spec, _decoder(model, spec)) for one in judges],
    {one.features.name: metrics.LOWER_IS_BETTER[one.metric] for one in judges},
    judge.seeds,
    judge.samples,
    mark,
  )
  about = {
    'metric': judge.metric,
    'features': judge.features.name,
    **({'second': judges[1].features.name} if len(judges) > 1 else {}),
    'reference': judge.reference.what,
    'count': judge.samples,
    'limits': _limits(tuner, judges, mark, spec, model, workdir),
  }
  return tune_page.report(values, found, about)


def _limits(
  tuner: tiers.Tuner,
  judges: list[Judge],
  mark: str,
  spec: specs.Spec,
  model: drawing.Model,
  workdir: str,
) -> list[dict[str, Any]]:
  """What the judges say of training items, and with tune.limits the rest of `judging.limits`."""
  out, samples, seeds = [], judges[0].samples, range(judges[0].seeds)
  values = lambda x, decode: [_value(x, one, spec, decode) for one in judges]
  about = f'{tuner.mark} {mark}'
  keep = lambda name, make: files.kept(os.path.join(workdir, FOLDER, 'work', name), about, make)
  index = _split(model.data)[0]
  if len(index) >= samples:  # as many as are compared, none of them in the reference

    def items(seed):
      drawn = np.random.RandomState(seed).choice(index, samples, replace=False)
      return values(model.data.train[np.sort(drawn)], lambda x: x)

    make = lambda: {'values': np.array([items(seed) for seed in seeds])}
    found = keep(f'limits-data-{samples}-{len(seeds)}.npz', make)
    out.append(judging.limit(f'{samples} training items', found['values']))
  if not spec.tune.limits:
    return out
  streams = [tiers.stream(tuner.settings.seed, seed) for seed in seeds]
  of_samples = lambda x: values(x, _decoder(model, spec))
  return out + judging.limits(tuner.subject, of_samples, streams, samples, keep)


def _strips(found, subject, model, spec):
  """Sixteen samples of each sampler with the same noise."""
  decode, out, ids = _decoder(model, spec), [], np.arange(16)
  for one in found:
    for what, numbers in tune_page.tables_of(one):
      table = tuned.table_of(numbers)
      count = table.keep.shape[1]
      bands = bands_lib.make(subject.shape, count) if count > 1 else None
      x = decode(subject.draw(table, tiers.stream(spec.seed, 0), ids, bands))
      name = f'{one["calls"]} calls, {what}'
      picture = pictures.picture(x, model.data.train, columns=16, most=16)
      out.append((name, pictures.png(picture)))
  return out


def _decoder(model, spec):
  """Samples of the subject -> those that people see."""
  if spec.autoencoder.name:
    return lambda x: model.decoded(x)
  return lambda x: base.to_image(x) if model.data.is_image else x


def _value(x, judge, spec, decode):
  """The judge's value of samples."""
  x, parts = decode(x), []
  field = metrics.METRICS[judge.metric].sample
  for start in range(0, len(x), _AT_ONCE):
    parts.append(judge.features.extract(x[start : start + _AT_ONCE]))
    features_lib.check_finite(parts[-1], 'samples', start)
  sample = features_lib.Extracted(
    **{field: np.concatenate([getattr(part, field) for part in parts])}
  )
  neighbours = spec.evaluate.neighbours
  return metrics.compare(sample, judge.reference, [judge.metric], neighbours)[judge.metric].value
