"""--mode=distill: a network that makes a sample in one call, from a trained one and no data.

The generator G(z) = x0(b* z, t*) is a copy of the network at one noise level. Beside it a second
copy F learns to denoise what G makes, and G follows the difference to the teacher T
[DMD, 2311.18828; Diff-Instruct, 2305.18455]:

  (1) F  min E |output of F(x_t) - its target|^2, all times alike,   x_t = a_t G(z) + b_t eps
  (2) G  gradient E[omega (F(x_t) - T(x_t)) . dG],   omega = 1 / mean |G(z) - T(x_t)|

Both answers are x_0, and F - T = (b^2 / a) (score of what G makes - score of the data): without
omega (2) is the gradient of the integral over t of KL(what G makes || data) with the weight
b^2 / a^2. With `nodes` K > 0 the way back from G to T is recorded first: a copy of T learns to
denoise what the first G makes, T_1, ..., T_K are its weights on the way, and G follows
T_(K-1), ..., T_1, T in turn [DisBack, 2408.15991]. Its published code loads none of them.
"""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from gmm_diffusion import files, parallel, specs
from gmm_diffusion.data import base
from gmm_diffusion.engine import build, drawing, loss, starts, trainer
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import marginals
from gmm_diffusion.samplers import one_step
from gmm_diffusion.types import Array, Prediction, Time

EDGE = 0.02  # share of the times at either end that (2) leaves out
_NOISIEST = 10.0  # largest b / a of t* where x_0 is a difference of two large numbers


def distill(spec: specs.Spec, data: base.Data, workdir: str) -> None:
  """Trains G to spec.distill.steps, from the latest checkpoint of the workdir if there is one, and
  else from the weights in spec.distill.start.

  Raises:
    UserError: on a bad setting, a checkpoint of something else, or a loss that is not finite.
  """
  _check(spec, data, workdir)
  own = spec.distill
  net = dataclasses.replace(spec.net, dtype='float32')  # what is learnt has all its digits
  params = build.weights(dataclasses.replace(spec, net=net), data, own.start)['net']
  train = trainer.at_constant_rate(spec.train, own.steps, own.batch, own.learning_rate)
  optimiser, losses = trainer.make_optimiser(train), Losses(spec, data)
  nodes = _path(spec, params, losses, optimiser, workdir) if own.nodes else []
  first = nodes[-1] if nodes else params
  teachers = [params, *nodes[:-1]][::-1]  # T_(K-1), ..., T_1, T

  def fresh():
    pair = {'generator': params, 'fake': first}
    rest = {name: optimiser.init(tree) for name, tree in pair.items()}
    return trainer.State(np.zeros((), np.int32), pair, params, rest)

  def batch(step, mine):
    ids = np.arange(step * own.batch, (step + 1) * own.batch)[mine]
    return losses.labels(step)[mine], (ids % 2**32).astype(np.uint32)

  about = {**build.about(spec, data), **loss.PLAIN, 'distilled': _about(spec, params)}
  for number, teacher in enumerate(teachers, 1):
    steps = round(own.steps * number / len(teachers))
    trainer.fit(
      dataclasses.replace(train, steps=steps),
      fresh,
      functools.partial(_updater, train, optimiser, losses, own.fake_steps, teacher),
      batch,
      about,
      workdir,
      show=_preview(spec, data, workdir),
      section='distill',
    )
  print(f'samples in one call: --config.sampler.name=one_step{_level_words(spec)}')


class Losses:
  """(1) and (2) for a model. Draws depend on (seed, number of the draw, id)."""

  def __init__(self, spec: specs.Spec, data: base.Data):
    self.process = build.schedule(spec.schedule)
    self.shape, self.data, self.spec = build.sample_shape(spec, data), data, spec
    self.row = one_step.grid(self.process, build.level(spec.sampler))
    plain = dataclasses.replace(spec.denoiser, guidance=1.0, guidance_interval=())
    free = dataclasses.replace(spec, denoiser=dataclasses.replace(plain, clip=False))
    # what learns is asked as it is; what answers for the data as the spec says
    self.free = build.denoiser(free, data)
    self.fake = build.denoiser(dataclasses.replace(spec, denoiser=plain), data)
    self.teacher = build.denoiser(spec, data)
    known = self.process.at(self.process.training_times)
    size = len(known.t)
    inner = slice(int(EDGE * size), size - int(EDGE * size))
    as_table = lambda times: jax.tree.map(lambda x: np.asarray(x, np.float32), times)
    self.table, self.inner = as_table(known), as_table(Time(*(part[inner] for part in known)))

  def labels(self, step: int) -> np.ndarray:
    """Classes of the samples of a step, drawn evenly; 0 where the network takes none."""
    count = self.spec.distill.batch
    if not (self.data.classes and drawing.takes_labels(self.spec, self.data)):
      return np.zeros(count, np.int32)
    random = np.random.RandomState([self.spec.seed, step])
    return random.randint(self.data.classes, size=count).astype(np.int32)

  def keys(self, number: Array, ids: Array) -> tuple[Any, Any, Any]:
    """Keys for z, the time and eps of each id [B], for the draw of a number."""
    root = jax.random.fold_in(jax.random.key(self.spec.seed), number)
    each = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(root, i), 3))(ids)
    return each[:, 0], each[:, 1], each[:, 2]

  def normal(self, keys: Any) -> Array:
    return jax.vmap(lambda key: jax.random.normal(key, self.shape))(keys)

  def generate(self, params: Any, keys: Any, labels: Array) -> Array:
    """G(z), [B, ...]."""
    time = Time(*(np.asarray(part[0], np.float32) for part in self.row.now))
    x = time.b * self.normal(keys)
    return self.free({'net': params})(x, time, labels).x0

  def drawn(self, keys: Any, table: Time) -> Time:
    """A time of a table for each key, [B]."""
    index = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(table.t)))(keys)
    return jax.tree.map(lambda part: jnp.asarray(part)[index], table)

  def denoising(self, fake: Any, x0: Array, keys: Any, labels: Array) -> Array:
    """Equation (1), in what the network outputs."""
    _, of_time, of_noise = keys
    time, eps = self.drawn(of_time, self.table), self.normal(of_noise)
    found = self.free({'net': fake})(marginals.diffuse(x0, eps, time), time, labels)
    kind, said = self.spec.denoiser.prediction, (found.x0, found.eps)
    output, wanted = (marginals.target(kind, *pair, time) for pair in (said, (x0, eps)))
    return jnp.mean((output - wanted) ** 2)

  def matching(self, params: Any, fake: Any, teacher: Any, keys: Any, labels: Array) -> Array:
    """What has the gradient (2)."""
    of_start, of_time, of_noise = keys
    x0, time = self.generate(params, of_start, labels), self.drawn(of_time, self.inner)
    x = jax.lax.stop_gradient(marginals.diffuse(x0, self.normal(of_noise), time))
    made = self.fake({'net': fake})(x, time, labels)
    return matching(x0, made, self.teacher({'net': teacher})(x, time, labels))


def matching(x0: Array, fake: Prediction, teacher: Prediction, weighted: bool = True) -> Array:
  """A number whose gradient by x0 [B, ...] is the mean over samples and elements of (2); the value
  itself means nothing. `weighted` False leaves omega out."""
  inner = tuple(range(1, x0.ndim))
  away = fake.x0 - teacher.x0
  if weighted:
    size = jnp.mean(jnp.abs(x0 - teacher.x0), inner, keepdims=True)
    away = away / jnp.maximum(size, 1e-6)
  return jnp.mean(jax.lax.stop_gradient(away) * x0)


def _updater(
  train: specs.Train, optimiser: Any, losses: Losses, fake_steps: int, teacher: Any
) -> Callable[[Any, Any], Any]:
  """(State, (labels, ids)) -> (State, (loss of F, norm of the gradient of G, {})): `fake_steps`
  updates of F, and one of G."""

  def moved(name, gradient, params, states):
    updates, states[name] = optimiser.update(gradient, states[name], params[name])
    params[name] = optax.apply_updates(params[name], updates)

  def update(state, inputs):
    target, (labels, ids) = inputs
    own, states = dict(state.params), dict(state.optimiser)
    first = state.step * (fake_steps + 1)

    def learn(carry, n):
      own, states = dict(carry[0]), dict(carry[1])
      keys = losses.keys(first + n, ids)
      x0 = jax.lax.stop_gradient(losses.generate(own['generator'], keys[0], labels))
      of = lambda fake: losses.denoising(fake, x0, keys, labels)
      value, gradient = parallel.mean(jax.value_and_grad(of)(own['fake']))
      moved('fake', gradient, own, states)
      return (own, states), value

    # gradients by weights through a loop take ten times as long on CPUs
    unroll = jax.default_backend() == 'cpu'
    numbers = jnp.arange(fake_steps)
    (own, states), values = jax.lax.scan(learn, (own, states), numbers, unroll=unroll)
    keys = losses.keys(first + fake_steps, ids)
    of = lambda params: losses.matching(params, own['fake'], target, keys, labels)
    gradient = parallel.mean(jax.grad(of)(own['generator']))
    own, states = dict(own), dict(states)
    moved('generator', gradient, own, states)
    step = state.step + 1
    ema = trainer.averaged(train, step, state.ema, own['generator'])
    after = trainer.State(step, own, ema, states)
    return after, (jnp.mean(values), optax.tree.norm(gradient), {})

  mapped, there = parallel.over_devices(update, donate=True), parallel.replicate(teacher)
  return lambda state, batch: mapped(state, (there, batch))


def _path(spec: specs.Spec, params: Any, losses: Losses, optimiser: Any, workdir: str) -> list[Any]:
  """[T_1, ..., T_K]; kept in a file."""
  own = spec.distill
  leaves = jax.tree.structure(params)

  def update(state, inputs):
    first, (labels, ids) = inputs
    fake, states, step = state
    keys = losses.keys(step, ids)
    x0 = jax.lax.stop_gradient(losses.generate(first, keys[0], labels))
    of = lambda fake: losses.denoising(fake, x0, keys, labels)
    _, gradient = parallel.mean(jax.value_and_grad(of)(fake))
    updates, states = optimiser.update(gradient, states, fake)
    return (optax.apply_updates(fake, updates), states, step + 1), None

  def make():
    mapped, there = parallel.over_devices(update), parallel.replicate(params)
    state = parallel.replicate((params, optimiser.init(params), np.zeros((), np.int32)))
    mine, out = parallel.host_slice(own.batch), {}
    ends = [round(own.record * (n + 1) / own.nodes) for n in range(own.nodes)]
    for step in tqdm(range(own.record), desc='recording the way', unit='step', dynamic_ncols=True):
      ids = np.arange(own.batch, dtype=np.uint32)[mine]
      batch = parallel.split((losses.labels(2**20 + step)[mine], ids))
      state, _ = mapped(state, (there, batch))
      if step + 1 in ends:
        fake = parallel.unreplicate(state)[0]
        for i, leaf in enumerate(jax.tree.leaves(fake)):
          out[f'{ends.index(step + 1)}_{i}'] = leaf
    return out

  rate = own.learning_rate, spec.train.optimiser, spec.train.weight_decay, spec.train.clip_norm
  on = (
    build.tree_hash(params),
    build.level(spec.sampler),
    spec.seed,
    own.batch,
    own.nodes,
    own.record,
    rate,
  )
  mark = str(on)
  path = os.path.join(workdir, 'nodes.npz')
  found = files.load(path, mark)
  if found is None:
    found = make()  # by all hosts together
    if parallel.is_main():
      files.save(path, mark, found)
  size = len(jax.tree.leaves(params))
  return [
    jax.tree.unflatten(leaves, [found[f'{n}_{i}'] for i in range(size)]) for n in range(own.nodes)
  ]


def _preview(spec, data, workdir):
  """Pictures of what the generator makes."""
  sampler = dataclasses.replace(spec.sampler, name='one_step')
  plain = dataclasses.replace(spec.denoiser, guidance=1.0, guidance_interval=())
  return loss.preview(dataclasses.replace(spec, sampler=sampler, denoiser=plain), data, workdir)


def _level_words(spec):
  words = (
    f' --config.sampler.level={build.level(spec.sampler):g}'
    if spec.sampler.level is not None
    else ''
  )
  return words + ' --config.denoiser.guidance=1' * (spec.denoiser.guidance != 1)


def _about(spec, params):
  """What distilled weights belong to, beside the network."""
  own = spec.distill
  return {
    'start': build.tree_hash(params),
    'level': build.level(spec.sampler),
    'nodes': own.nodes,
    'fake_steps': own.fake_steps,
    'guidance': spec.denoiser.guidance,
    'steps': own.steps if own.nodes else None,  # where one node follows another
  }


def _check(spec, data, workdir):
  """Raises UserError on what cannot be distilled."""
  own = spec.distill
  starts.check('distill', own.start, workdir)
  if spec.autoencoder.name or spec.net.weights.format or spec.classifier.scale:
    raise UserError(
      'released weights, latents and models that a classifier guides are not distilled; valid: a '
      'network that was trained here'
    )
  if build.level(spec.sampler) > _NOISIEST and spec.denoiser.prediction in ('eps', 'score'):
    raise UserError(
      f'sampler.level {build.level(spec.sampler):g} is too noisy for a network that predicts '
      f'{spec.denoiser.prediction}: its error counts b / a times; valid: at most {_NOISIEST:g}'
    )
  if min(own.record, own.steps) < own.nodes:
    raise UserError(
      f'distill.record {own.record} and distill.steps {own.steps} must be at least distill.nodes '
      f'{own.nodes}'
    )
  parallel.check_batch(own.batch, 'distill.batch')
