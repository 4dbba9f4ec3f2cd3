"""The one way to draw samples: ids -> samples, by any sampler on any denoiser, over all devices.

Grid, plan and seed are arguments of what is compiled, so that samplers that differ in these numbers
alone share one compilation. Noise is a function of (seed, id, step), so a sample is the same
however samples are batched and whoever draws them.
"""

import copy
import dataclasses
import functools
import hashlib
import json
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from gmm_diffusion import parallel, samplers, specs
from gmm_diffusion.data import base
from gmm_diffusion.engine import build, measuring, shards
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import noise
from gmm_diffusion.metrics import hallucination
from gmm_diffusion.samplers import gaussian
from gmm_diffusion.samplers.base import Kernel, Plan, Report
from gmm_diffusion.samplers.run import Result, initial_state, run
from gmm_diffusion.types import Denoiser, StepGrid

# Settings that are only numbers in the grid and in the plan; of eta the program knows whether it
# is 0.
_NUMBERS = ('steps', 'grid', 'end', 'rho', 'times', 'eta', *samplers.NUMBERS)
_LETTERS = 60  # that settings take in the name of a set; the hash stands for the others
_AT_ONCE = 25  # samples in one call of `draw_over_parts`
# Seed of the noise by which samples are judged; with that of the samples, a sampler with noise
# would be judged by its own.
_JUDGE = 1_000_003
# Settings of a section of the spec that samples do not depend on: weights count by their hash.
_FREE = ('weights', 'trained', 'dropout', 'remat', 'checkpoint', 'average', 'batch')


class Steps(NamedTuple):
  """What a compiled loop takes: the grid and the plan with leading axis N, and the seed."""

  grid: StepGrid
  plan: Plan
  seed: Any


class Prepared(NamedTuple):
  """A sampler made ready for a model, all but the weights.

  Attributes:
    sampler: its settings.
    bind: weights -> Denoiser.
    kernel, grid, plan, report: see samplers/base.py; the plan is on the host.
    shape: of one sample, or of its latent.
  """

  sampler: specs.Sampler
  bind: Callable[[Any], Denoiser]
  kernel: Kernel
  grid: StepGrid
  plan: Plan
  report: Report
  shape: tuple[int, ...]


class Samples(NamedTuple):
  """x: uint8 images [N, H, W, C] or float32 vectors [N, D]; nfe: calls of the denoiser per
  sample."""

  x: np.ndarray
  nfe: int
  seconds: float


class Drawer(NamedTuple):
  """A sampler on a model with a seed.

  Attributes:
    sampler: its name.
    name: of the set of samples: sampler-steps-what differs-hash; letters, digits, '.', '_' and '-'
      only.
    settings, report: of the sampler, for records.
    seed: of the noise.
    draw: (ids, advance) -> {'x': samples of these ids as in Samples, 'nfe', 'seconds'}; one trace
      for all calls.
    labels: ids -> classes int32 [N], or None where the samples have none.
    weights: their hash.
    mark: changes when anything changes that the samples depend on.
  """

  sampler: str
  name: str
  settings: dict[str, Any]
  report: Report
  seed: int
  draw: Callable[[Any, shards.Advance], shards.Arrays]
  labels: Callable[[np.ndarray], np.ndarray] | None
  weights: str
  mark: str


def mark_of(depends: Any) -> str:
  """Twelve digits that change with what samples depend on, JSON."""
  return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:12]


def name_of(parts: Sequence[str], seed: int, mark: str) -> str:
  """The name of a set of samples of such parts, the first two of which always belong to it."""
  first, rest, text = parts[:2], parts[2:], ''
  for word in (*rest, *[f'seed{seed}'] * bool(seed)):
    text += f'-{word}' if len(text) + len(word) < _LETTERS else ''
  return f'{"-".join(first)}{text}-{mark[:8]}'


def _different(sampler):
  """Words for what is set to other than the defaults, where it has an effect: what a variant
  overrides does not."""
  default, taken = dataclasses.asdict(specs.Sampler()), settings(sampler)
  for key, value in dataclasses.asdict(sampler).items():
    known = key in ('name', 'steps') or value in (None, default[key])
    if not known and taken.get(key) == value:
      yield _word(key, value)


def _word(key, value):
  if isinstance(value, bool):
    return key if value else f'no_{key}'
  numbers = value if isinstance(value, (tuple, list)) else [value]
  text = '_'.join(f'{one:g}' if isinstance(one, float) else str(one) for one in numbers)
  return re.sub(r'[^\w.]', '_', text if isinstance(value, str) else f'{key}{text}')


def prepare(spec: specs.Spec, sampler: specs.Sampler, data: base.Data) -> Prepared:
  """Everything but the weights; raises UserError on any bad setting, before anything slow
  starts."""
  bind = build.denoiser(spec, data)
  labels_of(spec, data, np.arange(1))
  schedule = build.schedule(spec.schedule)
  grid = build.grid(schedule, sampler)
  says = spec.denoiser.name == 'network' and spec.net.learn_sigma
  if samplers.resolve(sampler.name, sampler.options())[1].get('variance') == 'learned' and not says:
    raise UserError(gaussian.NO_VARIANCE)
  kernel = samplers.make(sampler.name, sampler.options(), schedule)
  shape = build.sample_shape(spec, data)
  plan, report = kernel.plan(grid, shape)
  return Prepared(sampler, bind, kernel, grid, jax.tree.map(np.asarray, plan), report, shape)


def takes_labels(spec: specs.Spec, data: base.Data) -> bool:
  """Whether a class decides what is drawn: by the network, or by a classifier that guides it."""
  if spec.denoiser.name != 'network':
    return False
  return bool(build.label_count(spec, data) or spec.classifier.scale)


def labels_of(spec: specs.Spec, data: base.Data, ids: np.ndarray) -> np.ndarray:
  """The class of each sample id, int32: those that sample.label names in turn; 0 where the model
  takes no labels.

  Raises:
    UserError: on a class that does not exist, or any for a model that takes none.
  """
  known = data if takes_labels(spec, data) else data._replace(classes=0)
  numbers = base.class_numbers(known, spec.sample.label)
  return numbers[ids % len(numbers)] if len(numbers) else np.zeros(len(ids), np.int32)


def conditions_of(spec: specs.Spec, data: base.Data, ids: np.ndarray) -> Any:
  """What the denoiser of each sample id takes: its label, or (label, measurement)."""
  labels = labels_of(spec, data, ids)
  return (labels, measuring.measure(spec, data, ids)) if spec.inverse.operator else labels


def sample_batch(
  kernel: Kernel,
  denoiser: Denoiser,
  steps: Steps,
  ids: Any,
  cond: Any,
  shape: tuple[int, ...],
  keep: str = 'last',
  unroll: bool = False,
) -> tuple[Any, Result]:
  """(x_T [B, *shape], Result of samplers/run.py) of the given ids; pure."""
  keys = noise.sample_keys(steps.seed, ids)
  start = initial_state(steps.grid, keys, shape)
  at = lambda n: noise.at_step(keys, n, shape)
  return start, run(kernel, denoiser, steps.grid, steps.plan, start, at, cond, keep, unroll)


def settings(sampler: specs.Sampler) -> dict[str, Any]:
  """What a sampler depends on: its name, its grid, and the options that its kernel takes, with
  their defaults."""
  options = sampler.options()
  name, taken = samplers.resolve(sampler.name, options)
  if name == 'tuned':  # its file has the grid, and may change
    found = samplers.tuned.read(taken['path'])
    return {'name': name, 'steps': len(found.table.keep), 'file': found.mark}
  if name == 'one_step':
    return {'name': name, **taken}
  if 'posterior' in taken:
    taken['posterior'] = samplers.posterior.read(taken['posterior']).mark
  grid = {
    key: value for key, value in vars(sampler).items() if value is not None and key not in options
  }
  return {**grid, 'name': name, **taken}


def form_of(sampler: specs.Sampler) -> str:
  """Samplers of one form share what is compiled."""
  found = settings(sampler)
  rest = {key: value for key, value in found.items() if key not in _NUMBERS}
  return json.dumps({**rest, 'random': bool(found.get('eta'))}, sort_keys=True)


def facts(spec: specs.Spec, weights: str) -> dict[str, Any]:
  """What samples depend on besides sampler, seed and ids; weights are known by their hash, wherever
  they lie."""
  plain = lambda section: {
    key: value for key, value in dataclasses.asdict(section).items() if key not in _FREE
  }
  sections = ('schedule', 'net', 'denoiser', 'autoencoder')
  # the size of a classifier that does not guide is that of nothing
  guide = spec.classifier if spec.classifier.scale else specs.Classifier()
  return {
    'weights': weights,
    'label': spec.sample.label,
    **{name: plain(getattr(spec, name)) for name in sections},
    'classifier': plain(guide),
  }


def denoiser_mark(spec: specs.Spec, weights: str) -> str:
  """Changes with the weights, and with what else a denoiser depends on besides its label."""
  known = facts(spec, weights)
  return mark_of({name: part for name, part in known.items() if name != 'label'})


class Model:
  """A denoiser with its weights on the devices, from the first draw on.

  Compiled functions are kept: all samplers of one form share one, and so do all models that `on`
  gives.

  Attributes:
    spec, data: what it was made from; batch sizes, label and seed are those of the spec.
    weights: on the host; hash: theirs.
  """

  def __init__(self, spec: specs.Spec, data: base.Data, weights: Any):
    self.spec, self.data, self.hash = spec, data, build.tree_hash(weights)
    self.weights, self._kept = weights, {}

  def on(self, spec: specs.Spec) -> 'Model':
    """The same weights with other settings of denoiser, guidance, label or batch."""
    out = copy.copy(self)
    out.spec = spec
    return out

  def of(self, weights: Any) -> 'Model':
    """Other weights of the same form, on what is compiled already."""
    out = copy.copy(self)
    out.weights, out.hash = weights, build.tree_hash(weights)
    on_devices = ('weights', 'autoencoder')
    out._kept = {key: kept for key, kept in self._kept.items() if key not in on_devices}
    return out

  def drawer(self, made: Prepared, count: int, seed: int | None = None) -> Drawer:
    """What draws up to `count` samples at a time; seed None is that of the spec."""
    seed = self.spec.seed if seed is None else seed
    _say_transferred(made.sampler, self.spec, self.hash)
    steps = functools.cache(lambda: self._steps(made, seed))

    def draw(ids, advance):
      begin, ids = time.perf_counter(), np.asarray(ids, np.uint32)
      batch = ids, conditions_of(self.spec, self.data, ids)
      function = self._function('samples', made, count)
      x, nfe = function((self._weights_there(), steps()), batch, advance)
      x, finite = self._decoded(x, count) if self.spec.autoencoder.name else x
      if not finite.all():
        raise UserError(
          f'{np.sum(~finite)} of {len(ids)} samples of {made.sampler.name!r} are not finite, the '
          f'first is id {ids[~finite][0]}; check the weights, or compute in net.dtype float32'
        )
      return {'x': x, 'nfe': nfe[0], 'seconds': time.perf_counter() - begin}

    known = takes_labels(self.spec, self.data)
    labels = functools.partial(labels_of, self.spec, self.data) if known else None
    depends = [settings(made.sampler), facts(self.spec, self.hash), self.data.shape, seed]
    own, words = self.spec.inverse, []
    if own.operator:
      words = [own.operator, own.method]
      depends += [
        build.tree_hash(np.asarray(self.data.test)),
        *measuring.facts(self.spec, self.data),
      ]
    mark, sampler = mark_of(depends), made.sampler
    parts = [sampler.name, str(len(made.grid.t)), *words, *_different(sampler)]
    return Drawer(
      sampler.name,
      name_of(parts, seed, mark),
      dataclasses.asdict(sampler),
      made.report,
      seed,
      draw,
      labels,
      self.hash,
      mark,
    )

  def sample(self, made: Prepared, count: int, seed: int | None = None) -> Samples:
    """Samples with ids 0..count-1, in memory."""
    title = f'sampling {made.sampler.name}'
    with tqdm(total=count, desc=title, unit='image', dynamic_ncols=True) as bar:
      out = self.drawer(made, count, seed).draw(np.arange(count), bar.update)
    return Samples(out['x'], int(out['nfe']), float(out['seconds']))

  def states(self, made: Prepared, count: int, first: int = 0) -> np.ndarray:
    """What the denoiser is asked about, of `count` ids from `first` on: x at the time of each step,
    [N, count, ...] float32, or latents."""
    return self._along('states', made, count, first)

  def predictions(self, made: Prepared, count: int) -> np.ndarray:
    """x_0 as the denoiser predicts it from each of `states`, as in Samples but [N, count, ...]."""
    x = self._along('predictions', made, count)
    flat, _ = (
      self._decoded(x.reshape((-1,) + made.shape), count)
      if self.spec.autoencoder.name
      else (base.to_image(x) if self.data.is_image else x, None)
    )
    return flat.reshape(x.shape[:2] + self.data.shape)

  def unsteadiness(
    self, bind: Callable[[Any], Denoiser], x: np.ndarray, labels: np.ndarray, first: int = 0
  ) -> np.ndarray:
    """metrics.hallucination of items [N, ...] as in Samples, with their labels and with ids from
    `first` on: [N]."""
    at = hallucination.times(build.schedule(self.spec.schedule))
    measure = lambda denoiser, x, ids, cond: hallucination.unsteadiness(
      denoiser, x, at, ids, _JUDGE, cond
    )
    ids = np.arange(first, first + len(x), dtype=np.uint32)
    return self.ask('unsteadiness', bind, measure, (base.to_model(x), ids, labels))

  def ask(
    self, what: str, bind: Callable[[Any], Denoiser], measure: Callable[..., Any], batch: Any
  ) -> Any:
    """measure(denoiser, *batch) of items that do not depend on each other, as host arrays;
    compiled once for each `what`, which names the measure."""
    size = self._fitting(self.spec.sample.batch, len(batch[0]))
    key = what, self.spec.denoiser, self.spec.classifier, size
    if key not in self._kept:
      self._kept[key] = parallel.map_batches(
        lambda weights, batch: measure(bind(weights), *batch), size
      )
    return self._kept[key](self._weights_there(), batch)

  def _along(self, what, made, count, first=0):
    ids = np.arange(first, first + count, dtype=np.uint32)
    batch = ids, conditions_of(self.spec, self.data, ids)
    shared = self._weights_there(), self._steps(made, self.spec.seed)
    return np.moveaxis(self._function(what, made, count)(shared, batch), 1, 0)

  def _function(self, what, made, count):
    """(shared, (ids, labels), advance) -> samples, states or predictions; compiled once for each
    form of sampler."""
    batch = self._fitting(self.spec.sample.batch, count)
    own = self.spec.denoiser, self.spec.classifier, self.spec.inverse
    key = what, form_of(made.sampler), *own, batch
    if key not in self._kept:
      self._kept[key] = parallel.map_batches(self._loop(what, made), batch)
    return self._kept[key]

  def _loop(self, what, made):
    bind, kernel, shape = made.bind, made.kernel, made.shape  # `made` has the plan, may be large
    finish = (lambda x: x) if self.spec.autoencoder.name else _finish(self.data)

    def fn(shared, batch):
      (weights, steps), (ids, cond) = shared, batch
      denoiser, keep = bind(weights), 'last' if what == 'samples' else 'all'
      start, result = sample_batch(kernel, denoiser, steps, ids, cond, shape, keep)
      if what == 'samples':
        return finish(result.x), jnp.full(len(ids), result.nfe)
      out = jnp.concatenate([start[None], result.path[:-1]])
      if what == 'predictions':
        times = jax.tree.map(lambda row: jnp.asarray(row, start.dtype), steps.grid.now)
        out = jax.lax.map(lambda at: denoiser(*at, cond).x0, (out, times))
      return jnp.moveaxis(out, 0, 1)

    return fn

  def decoded(self, z: np.ndarray) -> np.ndarray:
    """Images of latents [N, ...], as in Samples."""
    return self._decoded(z, len(z))[0]

  def _decoded(self, z, count):
    """Images of latents, and whether each is finite; in batches of their own."""
    batch = self._fitting(self.spec.autoencoder.batch, count)
    if ('decoder', batch) not in self._kept:
      decode, finish = build.decoder(self.spec), _finish(self.data)
      self._kept['decoder', batch] = parallel.map_batches(
        lambda arrays, z: finish(decode(arrays, z)), batch
      )
    weights = self._on_devices('autoencoder', lambda: self.weights['autoencoder'])
    return self._kept['decoder', batch](weights, z)

  def _weights_there(self):
    """The weights on the devices, but those of the autoencoder."""
    rest = lambda: {name: part for name, part in self.weights.items() if name != 'autoencoder'}
    return self._on_devices('weights', rest if self.spec.autoencoder.name else lambda: self.weights)

  def _on_devices(self, name, part):
    if name not in self._kept:
      self._kept[name] = parallel.replicate(part(), local=True)
    return self._kept[name]

  def _steps(self, made, seed):
    return parallel.replicate(Steps(made.grid, made.plan, np.uint32(seed)), local=True)

  def _fitting(self, batch, count):
    """A batch no larger than the work of one device."""
    return min(batch, -(-min(count, self.spec.sample.shard) // jax.local_device_count()))


def _say_transferred(sampler, spec, weights):
  """Says so where a sampler was tuned on other weights, or measured on another denoiser."""
  name, taken = samplers.resolve(sampler.name, sampler.options())
  if name == 'tuned' and samplers.tuned.read(taken['path']).weights != weights:
    print(f'sampler tuned: transferred, {sampler.path} was tuned on other weights', flush=True)
  if 'posterior' in taken:
    known = samplers.posterior.read(taken['posterior']).denoiser
    if known != denoiser_mark(spec, weights):
      print(
        f'sampler {name}: {sampler.posterior} was measured on other weights or other guidance',
        flush=True,
      )


def _finish(data):
  """x -> (x as in Samples, whether each is finite); on the device, where images are a quarter of
  the bytes to move."""

  def finish(x):
    finite = jnp.isfinite(x).reshape(len(x), -1).all(1)
    whole = jnp.round(jnp.clip((x + 1) * 127.5, 0, 255)).astype(jnp.uint8) if data.is_image else x
    return whole, finite

  return finish


def draw_over_parts(
  made: Prepared, bind: Callable[[Any], Denoiser], parts: Any, seed: int, count: int, title: str
) -> np.ndarray:
  """Samples with ids 0..count-1, float32, of a denoiser whose arrays are split over all devices.

  Args:
    made: the sampler.
    bind: a device's part of the arrays -> Denoiser, which joins what the devices find.
    parts: the arrays with leading axes [local devices, per device].
    seed: of the noise.
    count: of samples.
    title: of the progress bar.

  All hosts call it together. Every device computes the same samples.
  """
  at_once = min(count, _AT_ONCE)
  kernel, shape = made.kernel, made.shape

  def fn(shared, part):
    steps, ids = shared
    return sample_batch(kernel, bind(part), steps, ids, None, shape)[1].x

  mapped, out = parallel.over_devices(fn), []
  steps = Steps(made.grid, made.plan, np.uint32(seed))
  with tqdm(total=count, desc=title, unit='image', dynamic_ncols=True) as bar:
    for start in range(0, count, at_once):
      ids = np.minimum(np.arange(start, start + at_once), count - 1).astype(np.uint32)
      out.append(parallel.unreplicate(mapped(parallel.replicate((steps, ids)), parts)))
      bar.update(min(at_once, count - start))
  return np.concatenate(out)[:count]
