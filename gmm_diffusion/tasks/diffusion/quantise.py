"""--mode=quantise: a trained network with weights, and inputs of layers, of few bits.

Weights need nothing but themselves. The step of the inputs of a layer comes from what enters it
while the network denoises, over the steps of the sampler: inputs change with the noise, and steps
that were found at one noise level do not fit the others [PTQ4DM, 2211.15736].
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from gmm_diffusion import specs, task_specs
from gmm_diffusion.checkpoints.store import Store
from gmm_diffusion.data import base
from gmm_diffusion.engine import build, drawing, released, starts
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import quantise as maths
from gmm_diffusion.nets import quantised
from gmm_diffusion.types import Time

MEAN, DEVIATION = 0.4, 0.4  # of 'normal', in shares of the steps from the clean end
_CHUNK = 64  # chains whose states are held at a time


def quantise(spec: specs.Spec, data: base.Data, workdir: str) -> None:
  """Writes checkpoint 0 of the workdir, from the weights in spec.quantise.start.

  Raises:
    UserError: on a bad setting, a checkpoint that is quantised already, or one that is there.
  """
  own = spec.quantise
  _check(spec, data, workdir)
  if spec.classifier.trained:  # it stays apart
    spec = dataclasses.replace(spec, classifier=specs.Classifier())
  net = dataclasses.replace(spec.net, dtype='float32')  # what is rounded has all its digits
  weights = build.weights(dataclasses.replace(spec, net=net), data, own.start)
  paths = build.layers(spec, data)
  inputs: dict[str, tuple[float, float, float]] = {}
  made = drawing.prepare(spec, spec.sampler, data)
  if own.activations:
    inputs = ranges(drawing.Model(spec, data, weights), made, own)
  few = quantised.of(weights['net'], paths, own.weights, inputs)
  about = {**build.about(spec, data), 'quantised': _about(spec, weights)}
  with Store(own.start) as store:
    known = store.about()
  about |= {name: known[name] for name in ('finetuned', 'distilled') if name in known}
  for name in ('net', 'autoencoder', 'classifier'):  # where released weights came from
    if name in about and 'weights' in (known.get(name) or {}):
      about[name]['weights'] = known[name]['weights']
  released.save({**weights, 'net': few}, about, workdir)
  before, after = (
    sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(tree)) / 1e6
    for tree in (weights['net'], few)
  )
  print(
    f'{len(paths)} layers with weights of {own.weights} bits and inputs of '
    f'{f"{own.activations} bits" if own.activations else spec.net.dtype}: the network takes '
    f'{after:.2f} MB instead of {before:.2f}; checkpoint 0 of {workdir}'
  )


def ranges(
  model: drawing.Model, made: drawing.Prepared, own: task_specs.Quantise
) -> dict[str, tuple[float, float, float]]:
  """(step, low, high) of what enters each layer, over pairs (x_t, t) of the sampler's chain."""
  spec, data = model.spec, model.data
  plain = dataclasses.replace(
    spec,
    denoiser=dataclasses.replace(spec.denoiser, clip=False, guidance=1.0, guidance_interval=()),
    classifier=dataclasses.replace(spec.classifier, scale=0.0),
  )
  bind, pairs = build.denoiser(plain, data), _pairs(model, made, own)
  model = model.on(plain)
  seen = model.ask('extent', bind, _extent, pairs)
  order = build.layers(spec, data)  # what follows the first of them is not finite either
  if bad := [path for path in order if not np.isfinite(seen[path][0]).all()]:
    raise UserError(f'what enters layer {bad[0]!r} is not finite; check the weights')
  steps, signed = {}, {}
  for path, (largest, least) in seen.items():
    signed[path] = bool(least.min() < 0)
    steps[path] = maths.candidates(largest.max(keepdims=True)[0], own.activations, signed[path])

  def losses(denoiser, *pair):
    see = lambda path, x: (
      maths.errors(
        x.astype(jnp.float32),
        steps[path].reshape((-1,) + (1,) * x.ndim),
        *maths.limits(own.activations, signed[path]),
        tuple(range(1, x.ndim)),
      ).T
    )
    return _noted(denoiser, see, *pair)

  out: dict[str, tuple[float, float, float]] = {}
  for path, loss in model.ask('losses', bind, losses, pairs).items():
    best = np.mean(loss, 0, np.float64).argmin()
    out[path] = float(steps[path][best]), *maths.limits(own.activations, signed[path])
  return out


def _noted(denoiser, note, x, labels, *time):
  """{path: note(path, input of the layer)} of one call of the denoiser."""
  found = {}

  with quantised.watched(lambda path, inputs: found.update({path: note(path, inputs)})):
    denoiser(x, Time(*time), labels)
  return found


def _extent(denoiser, *pair):
  """{path: (largest magnitude, least value)} of what enters each layer, of each item."""
  inner = lambda x: tuple(range(1, x.ndim))
  both = lambda path, x: (jnp.max(jnp.abs(x), inner(x)), jnp.min(x, inner(x)))
  return _noted(denoiser, both, *pair)


def _pairs(
  model: drawing.Model, made: drawing.Prepared, own: task_specs.Quantise
) -> tuple[Any, ...]:
  """(x_t, labels, t, a, b) with one time of each chain, [count, ...]."""
  spec, data, grid = model.spec, model.data, made.grid
  random = np.random.RandomState(spec.seed)
  n = at_rows(len(grid.t), own.times, own.count, random)
  x = []
  for start in tqdm(range(0, own.count, _CHUNK), desc='calibration', unit='part', ncols=80):
    chosen = n[start : start + _CHUNK]
    states = model.states(made, len(chosen), start)
    x.append(states[chosen, np.arange(len(chosen))])
  labels = drawing.labels_of(spec, data, np.arange(own.count))
  if spec.denoiser.guidance != 1:  # the network is asked about both
    labels = np.where(np.arange(own.count) % 2, data.classes, labels)
  time = [np.float32(np.asarray(part)[n]) for part in grid.now]
  return (np.concatenate(x), labels.astype(np.int32), *time)


def at_rows(steps: int, times: str, count: int, random: np.random.RandomState) -> np.ndarray:
  """Which step of the grid each chain is looked at in, [count]."""
  last = steps - 1
  if times == 'noise':
    return np.zeros(count, int)
  if times == 'clean':
    return np.full(count, last)
  if times == 'uniform':
    return random.permutation(np.arange(count) % steps)
  share = np.clip(MEAN + DEVIATION * random.randn(count), 0, 1)
  return np.round((1 - share) * last).astype(int)


def _about(spec, weights):
  """How the weights were quantised, beside the network."""
  own = spec.quantise
  about = {'weights': own.weights, 'activations': own.activations}
  if own.activations:
    about |= {'times': own.times, 'count': own.count, 'sampler': drawing.settings(spec.sampler)}
  return {**about, 'start': build.tree_hash(weights)}


def _check(spec, data, workdir):
  """Raises UserError on what cannot be quantised."""
  own = spec.quantise
  starts.check('quantise', own.start, workdir)
  if spec.net.weights.format == build.RANDOM:
    raise UserError('the weights are random (net.weights.format): there is nothing to quantise')
  with Store(workdir) as store:
    if store.latest() is not None:
      raise UserError(f'there is a checkpoint in {workdir} already; use another --workdir')
