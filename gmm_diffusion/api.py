"""The Python API: a model with its weights, and the Frechet distance between sets of images.

model = gmm_diffusion.load('runs/digits')
images = model.sample(16, sampler='unipc', steps=10)
print(gmm_diffusion.fid('photos', 'reference.npz'))
"""

import dataclasses
import math
import os
import runpy
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from gmm_diffusion import command_line, samplers, specs
from gmm_diffusion.data import base, image_sets, sources
from gmm_diffusion.engine import build, drawing, released
from gmm_diffusion.engine.runs import Run
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import grids, noise
from gmm_diffusion.metrics import features as features_lib
from gmm_diffusion.metrics import frechet, references
from gmm_diffusion.metrics.estimates import Estimate
from gmm_diffusion.reports import records
from gmm_diffusion.samplers import bdia
from gmm_diffusion.samplers.run import initial_state, run
from gmm_diffusion.tasks.diffusion import modes
from gmm_diffusion.tasks.restoration import inputs
from gmm_diffusion.tasks.restoration import models as restoration

CACHE = '~/.cache/gmm_diffusion'  # statistics of references, and where Inception weights are sought


class Model:
  """A denoiser with its weights, ready to sample.

  Attributes:
    spec: its settings.
    data: the data that it was made for; their shape is that of a sample.
  """

  def __init__(self, spec: specs.Spec, data: base.Data, weights: Any, workdir: str = ''):
    self.spec, self.data, self._workdir = spec, data, workdir
    self._model = drawing.Model(spec, data, weights)

  def sample(
    self,
    count: int,
    sampler: str = '',
    labels: str | int | Sequence[int | str] = '',
    seed: int | None = None,
    **options: Any,
  ) -> np.ndarray:
    """Images uint8 [count, H, W, C], or float32 vectors [count, D].

    Sample number i depends on the seed, i and the sampler alone, whatever `count` is.

    Args:
      count: how many, at least 1.
      sampler: a name in samplers.NAMES, such as 'ddim' or 'unipc'; '' is that of the config, and
        'tuned' what --mode=tune found for so many steps.
      labels: classes by number or name, taken in turn; '' is that of the config.
      seed: of the noise; None is that of the config.
      **options: settings of the sampler and its grid, such as steps=10, eta=0.5 or order=3; those
        that are left out are as in the config.

    Raises:
      UserError: a bad value, or an option that the sampler does not take.
    """
    spec, made = self._prepared(self.spec, count, sampler, labels, seed, options)
    return self._model.on(spec).sample(made, count, spec.seed).x

  def change(
    self,
    images: np.ndarray,
    strength: float = 0.5,
    sampler: str = '',
    labels: str | int | Sequence[int | str] = '',
    seed: int | None = None,
    **options: Any,
  ) -> np.ndarray:
    """Images like those that are given (image to image): they receive noise, and only the last
    steps of the sampler are taken from there.

    Args:
      images: uint8 [B, H, W, C] of the size that `sample` gives.
      strength: the share of the steps that are taken, in (0, 1]: small changes little.
      sampler, labels, seed, **options: as of `sample`; any sampler but 'tuned'.

    Returns:
      uint8 [B, H, W, C].

    Raises:
      UserError: a bad value, or a model of latents or vectors.
    """
    if self.spec.autoencoder.name or not self.data.is_image:
      raise UserError('images are changed by models of pixels; give latents to samplers.draw')
    found = np.asarray(images)
    if found.dtype != np.uint8 or found.shape[1:] != self.data.shape or not len(found):
      raise UserError(
        f'images to change are an array [B, {", ".join(map(str, self.data.shape))}] of uint8, got '
        f'{list(found.shape)} of {found.dtype}'
      )
    plain = dataclasses.replace(self.spec, inverse=specs.Inverse())
    spec, made = self._prepared(plain, len(found), sampler, labels, seed, options)
    if spec.sampler.name == 'tuned':
      raise UserError('a tuned sampler has one grid, and cannot begin later; change with another')
    grid = samplers.later(made.grid, strength)
    plan, _ = made.kernel.plan(grid, made.shape)

    def measure(denoiser, x, ids, seeds, cond):
      keys = noise.sample_keys(seeds[0], ids)
      start = initial_state(grid, keys, made.shape, x0=x)
      at_step = lambda n: noise.at_step(keys, n, made.shape)
      return run(made.kernel, denoiser, grid, plan, start, at_step, cond).x

    ids = np.arange(len(found), dtype=np.uint32)
    seeds = np.full(len(found), spec.seed, np.uint32)
    batch = base.to_model(found), ids, seeds, drawing.labels_of(spec, self.data, ids)
    what = f'change {drawing.settings(spec.sampler)} {strength}'
    x = self._model.on(spec).ask(what, made.bind, measure, batch)
    return base.to_image(x)

  def _prepared(self, spec, count, sampler, labels, seed, options):
    """(the spec with what is asked for, the sampler)."""
    changes: dict[str, Any] = {'sampler': {**options, **({'name': sampler} if sampler else {})}}
    changes['sample'] = {'count': count}
    if seed is not None:
      changes['seed'] = seed
    labels = [labels] if isinstance(labels, (int, np.integer)) else labels
    text = labels if isinstance(labels, str) else ','.join(str(label) for label in labels)
    if text:
      changes['sample']['label'] = text
    spec = _changed(spec, changes)
    spec = modes.located(spec, self._workdir)
    taken = drawing.settings(spec.sampler)
    for name in options:
      if name not in taken and (name, spec.sampler.name) != ('path', 'tuned'):
        raise UserError(
          f'sampler {spec.sampler.name!r} takes no {name!r}; valid: '
          f'{", ".join(sorted(set(taken) - {"name"}))}'
        )
    return spec, drawing.prepare(spec, spec.sampler, self.data)

  def between(
    self,
    first: np.ndarray,
    last: np.ndarray,
    count: int = 9,
    steps: int = 40,
    gamma: float = 0.8,
    label: str | int = '',
  ) -> np.ndarray:
    """Images on the way from each of `first` to each of `last`, by samplers.bdia.interpolate.

    Args:
      first, last: uint8 images [B, H, W, C] as `sample` gives them.
      count: of the images of each way, with both ends, at least 2.
      steps: of the grid 'uniform', at least 2.
      gamma: of bdia.interpolate; rounding errors grow by up to gamma^-steps, at most 1e6.
      label: the class of all of them, by number or name; '' is "no class" where the network knows
        it.

    Returns:
      uint8 [count, B, H, W, C].

    Raises:
      UserError: a bad value, a model of latents, or a class that is needed and not given.
    """
    shape = np.shape(first)
    whole = {np.asarray(images).dtype for images in (first, last)} == {np.dtype(np.uint8)}
    same = shape == np.shape(last) and shape[1:] == self.data.shape and shape[0] > 0
    if not (whole and same and self.data.is_image):
      raise UserError(
        f'images to go between are two arrays [B, {", ".join(map(str, self.data.shape))}] of '
        f'uint8, got {list(shape)} of {np.asarray(first).dtype} and {list(np.shape(last))} of '
        f'{np.asarray(last).dtype}'
      )
    if self.spec.autoencoder.name:
      raise UserError('images between two need a model of pixels, and this one is of latents')
    if count < 2 or steps < 2:
      raise UserError(f'count and steps must be at least 2, got {count} and {steps}')
    if not 0 < gamma <= 1 or steps * -math.log(gamma) > math.log(1e6):
      raise UserError(
        f'gamma {gamma:g} in {steps} steps lets rounding errors grow too far; take fewer steps, '
        f'or a gamma nearer to 1'
      )
    spec = _changed(self.spec, {'sample': {'label': str(label)}})
    spec = dataclasses.replace(spec, inverse=specs.Inverse())
    labels = drawing.labels_of(spec, self.data, np.zeros(shape[0], int))
    if drawing.takes_labels(spec, self.data) and not str(label):
      if spec.net.labels != 'null':
        raise UserError(
          f'the model needs a class; give label, a number in 0..{self.data.classes - 1} or a name'
        )
      labels = np.full(shape[0], self.data.classes, np.int32)
    grid = grids.make(build.schedule(spec.schedule), steps, 'uniform')
    shares = np.linspace(0, 1, count)

    def measure(denoiser, first, last, cond):
      x = bdia.interpolate(denoiser, grid, first, last, shares, gamma, cond)
      return jnp.moveaxis(x, 0, 1)

    batch = base.to_model(first), base.to_model(last), labels
    what = f'between {count} {steps} {gamma}'
    x = self._model.ask(what, build.denoiser(spec, self.data), measure, batch)
    return base.to_image(np.moveaxis(x, 1, 0))


def _changed(spec: specs.Spec, changes: dict[str, Any]) -> specs.Spec:
  """The spec with other values, checked as those of a config are."""

  def merge(old, new):
    inner = lambda key, value: merge(old[key], value) if isinstance(old.get(key), dict) else value
    return {**old, **{key: inner(key, value) for key, value in new.items()}}

  return specs.from_config(merge(dataclasses.asdict(spec), changes))


def load(source: Any, workdir: str = '') -> Model:
  """A model with its weights.

  Args:
    source: the workdir of a finished run; or a config: its name ('digits', 'digits:runlocal'), its
      file ('configs/digits.py:runlocal'), a ConfigDict or a nested dict.
    workdir: where the weights are, if `source` is a config. Exact denoisers and random weights need
      none; released weights are converted there once.

  Raises:
    UserError: there is no such config or run, or its weights are not there.
  """
  if hasattr(source, 'items'):
    spec = specs.from_config(source)
  elif not isinstance(source, (str, os.PathLike)):
    raise UserError(f'a model is loaded from a workdir or a config, got {source!r}')
  elif os.path.isdir(os.path.expanduser(source)):
    workdir = workdir or os.path.expanduser(source)
    spec = specs.from_config(records.config_of(os.path.expanduser(source)))
  else:
    spec = specs.from_config(_config(os.fspath(source)))
  if spec.task != 'diffusion':
    raise UserError(
      f'load gives models of task diffusion, and this config is of task {spec.task!r}'
    )
  needs = spec.denoiser.name == 'network' and spec.net.weights.format != build.RANDOM
  if needs and not workdir:
    raise UserError(
      f'the weights of {source!r} are in no folder; give the workdir of a finished run, as '
      'load(WORKDIR) or load(CONFIG, workdir=WORKDIR)'
    )
  data = sources.load(spec.data)
  if needs:
    released.ensure(spec, data, workdir)
  return Model(spec, data, build.weights(spec, data, workdir), workdir)


def _config(source: str) -> Any:
  """The ConfigDict of NAME[:ARG] or FILE.py[:ARG]."""
  try:
    path, _, arg = command_line.locate(source).partition(':')
  except UserError as error:
    raise UserError(f'there is no workdir {source!r}, and {error}') from error
  try:
    return runpy.run_path(path)['get_config'](arg)
  except ValueError as error:
    raise UserError(str(error)) from error


def restore(
  images: np.ndarray,
  workdir: str,
  draws: int = 1,
  model: str = '',
  sampler: str = '',
  seed: int | None = None,
  **options: Any,
) -> np.ndarray:
  """Degraded images restored by a network of task 'restoration', uint8 [N, H, W, C]; with several
  draws [N, draws, H, W, C].

  Args:
    images: uint8 [N, H, W, C] of the size that the network restores, or as much smaller as its
      inverse.factor says.
    workdir: where the network was trained.
    draws: restored images for each; a regression has one.
    model: a name in restoration.models of the run; '' is the first.
    sampler: a name in samplers.NAMES; '' is that of the config.
    seed: of the noise; None is that of the config.
    **options: settings of the sampler and its grid, such as steps=2.

  Raises:
    UserError: there is no such network, a bad value, or images of another size.
  """
  workdir = os.path.expanduser(workdir)
  spec = specs.from_config(records.config_of(workdir))
  if spec.task != 'restoration':
    raise UserError(f'{workdir} is a run of task {spec.task!r}; restore needs one of restoration')
  changes: dict[str, Any] = {'sampler': {**options, **({'name': sampler} if sampler else {})}}
  spec = _changed(spec, changes | ({} if seed is None else {'seed': seed}))
  chosen = model or spec.restoration.models[0]
  if chosen not in spec.restoration.models:
    raise UserError(f'unknown model {model!r}; valid here: {", ".join(spec.restoration.models)}')
  network = restoration.Restorer(
    Run(spec, restoration.shape_of(workdir, chosen), workdir, ''), chosen
  )
  regression = chosen == restoration.REGRESSION
  x_in = inputs.shown(spec, network.data, images).repeat(1 if regression else draws, 0)
  found, _ = network.restore(None if regression else spec.sampler, x_in, np.arange(len(x_in)))
  return found if len(found) == len(images) else found.reshape(-1, draws, *found.shape[1:])


def fid(
  a: Any,
  b: Any,
  features: str = 'inception',
  weights: str = '',
  data_dir: str = '',
  cache: str = CACHE,
) -> Estimate:
  """Frechet distance of images `a` to a reference `b`, with a 95 % interval over the images `a`.

  Args:
    a: a folder of images, an .npz with arr_0, 'tfds:NAME:SPLIT', or uint8 [N, H, W, 1 or 3].
    b: likewise, or an .npz with mu and sigma.
    features: 'inception', which published values use, or 'identity': the pixels themselves.
    weights: file of the Inception weights; '' is that of the public name in `cache`.
    data_dir: folder of tensorflow-datasets.
    cache: folder that keeps the statistics of references.

  Raises:
    UserError: the two do not fit together, are too few, or the Inception weights are not there.
  """
  if features not in ('inception', 'identity'):
    raise UserError(f"unknown features {features!r}; valid: 'inception', 'identity'")
  cache, images = os.path.expanduser(cache), _images(a, data_dir)
  empty = np.zeros((0, *images.shape), np.uint8)
  none = np.zeros(0, np.int32)
  network = features_lib.load(features, base.Data(empty, none, empty, none, 0), cache, weights)
  if isinstance(b, (str, os.PathLike)):
    source = references.find(os.fspath(b), network, images.shape, data_dir)
  else:
    others = _images(b, data_dir)
    if others.shape != images.shape:
      raise UserError(
        f'the reference has images of {features_lib.sizes(others.shape)}, the others are '
        f'{features_lib.sizes(images.shape)}; give images of one size'
      )
    source = references.Source('reference', others)
  for count, what in ((len(images), 'samples'), (source.size('moments'), 'reference images')):
    if count is not None:
      frechet.check_count(count, network.dimensions['features'], what=what)
  reference = references.load(source, network, {'moments'}, cache)
  sample = features_lib.gather(network, images, 'images', {'features'})[0]
  assert sample.features is not None and reference.moments is not None
  return frechet.frechet_distance(sample.features, reference.moments)


def _images(images: Any, data_dir: str) -> image_sets.ImageSet:
  """Images at a path or in an array."""
  if isinstance(images, (str, os.PathLike)):
    return image_sets.load(os.fspath(images), data_dir)
  array = np.asarray(images)
  if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] not in (1, 3) or not array.size:
    raise UserError(
      f'images must be a path, or an array uint8 [N, H, W, 1 or 3], got {array.dtype} '
      f'{list(array.shape)}'
    )
  return image_sets.ArraySet(array, f'{len(array)} images')
