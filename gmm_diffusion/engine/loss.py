"""Training a denoiser: the DDPM loss [DDPM eq. 14], or with weights: those of the ELBO
[GMM eq. 40] and of maths.training."""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmm_diffusion import nets, specs
from gmm_diffusion.data import base
from gmm_diffusion.engine import build, consistency, drawing, latents, starts, trainer
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import grids, marginals, schedules, training, variances
from gmm_diffusion.reports import images
from gmm_diffusion.samplers import mixture, resolve
from gmm_diffusion.types import Time

# Kernels whose precision is known; without noise of their own there is no ELBO, and a control is no
# kernel to train for.
ELBO_SAMPLERS = ('ddpm', 'ddim', 'ddim_gmm', 'rfim', 'rfim_gmm')
LEVELS = 8  # parts of the training times, each drawn as often, whose errors are shown
_NO_POSITION = 2**31  # in no batch: for what all items of a step share
_OF_ITEMS = 17  # seed of which items are noisy and of their noise, the same in all runs
# what `about` says of weights that were trained from the start
PLAIN = {'finetuned': None, 'quantised': None, 'distilled': None}


def elbo_weights(
  spec: specs.Sampler, process: schedules.Schedule, times: Time, dim: int
) -> np.ndarray:
  """w_t of [GMM eq. 40] for each training time, scaled to mean one, float64.

  The kernel is that of `sampler`, stepping through all training times; its first step ends at clean
  data with no variance, and takes the weight of the next.

  Raises:
    UserError: for a sampler that has no such weights, or no variance.
  """
  grid = grids.from_times(process, times.t[::-1])
  name, options = resolve(spec.name, spec.options())
  if name not in ELBO_SAMPLERS:
    raise UserError(
      f"train.loss 'elbo' has no weights for sampler {spec.name!r}; valid: "
      f'{", ".join(ELBO_SAMPLERS)} and the variants of the mixtures'
    )
  if options.get('variance', 'small') != 'small':
    raise UserError(
      f"train.loss 'elbo' has no weights for sampler.variance {options['variance']!r}; valid: small"
    )
  eta = options.pop('eta', 1.0)  # ddpm has none, and is the case eta = 1
  precision = mixture.precisions(name, eta, options, grid, dim)
  precision[-1] = precision[-2]
  if not np.all(np.isfinite(precision)):
    n = int(np.argmax(~np.isfinite(precision)))
    raise UserError(
      f'the ELBO needs positive variances, but sampler {spec.name!r} has none at t = '
      f'{grid.t[n]:g}; raise sampler.eta ({eta:g}) above 0'
      + (f', or lower sampler.scale ({options["scale"]:g})' if 'scale' in options else '')
    )
  weights = (precision * grid.b_t**2 / (2 * grid.a_t**2))[::-1]
  return weights / weights.mean()


def loss_weights(
  spec: specs.Spec, process: schedules.Schedule, times: Time, dim: int
) -> np.ndarray:
  """The weight of the error of what the network outputs, for each training time, float64."""
  if spec.train.loss == 'simple':
    return np.ones(len(times.t))
  if spec.train.loss == 'elbo':
    weights = elbo_weights(spec.sampler, process, times, dim)
  else:
    gamma = {} if spec.train.gamma is None else {'gamma': spec.train.gamma}
    weights = training.WEIGHTS[spec.train.loss](times, **gamma)
  return training.of_output(weights, spec.denoiser.prediction, times)


def chances(spec: specs.Spec, times: Time) -> np.ndarray:
  """How often each training time is drawn, float64."""
  if spec.train.times == 'log_normal':
    return training.log_normal(times, spec.train.log_mean, spec.train.log_deviation)
  return np.full(len(times.t), 1 / len(times.t))


def parts_of(chance: np.ndarray, times: Time) -> tuple[list[str], np.ndarray]:
  """At most LEVELS parts of the training times, which are drawn equally often: (b / a in the middle
  of each, in words; the part of each time, int32, which is beyond all where that is infinite)."""
  middle = np.cumsum(chance) - chance / 2
  part = np.minimum(LEVELS * middle, LEVELS - 1).astype(np.int32)
  inside = [np.argmin(np.abs(middle - (k + 0.5) / LEVELS)) for k in range(LEVELS)]
  words = [f'{times.b[i] / times.a[i]:.2g}' if times.a[i] else '' for i in inside]
  names = [word for word in dict.fromkeys(words) if word]
  return names, np.array([(names + ['']).index(word) for word in words], np.int32)[part]


def time_sampler(spec: specs.Spec, times: Time, least: int = 0) -> Callable[[Any, Any, Any], Any]:
  """(key of the step, keys [B], positions [B]) -> the number of each item's training time [B], from
  `least` on."""
  own, count, chance = spec.train, len(times.t), chances(spec, times)
  if least:
    chance = np.where(np.arange(count) < least, 0, chance)
    chance = chance / chance.sum()
  below = np.cumsum(chance)[:-1].astype(np.float32)

  def draw(root, keys, position):
    if own.times == 'uniform' and not own.low_discrepancy:
      return jax.vmap(lambda key: jax.random.randint(key, (), least, count))(keys)
    if own.low_discrepancy:
      first = jax.random.uniform(jax.random.fold_in(root, _NO_POSITION))
      u = training.spread(first, position, own.batch)
    else:
      u = jax.vmap(jax.random.uniform)(keys)
    return jnp.searchsorted(below, u, side='right')

  return draw


def denoising_loss(
  spec: specs.Spec,
  data: base.Data,
  given: Callable[[Any, Any], tuple[Any, Callable[[Any], Any]]] | None = None,
  process: schedules.Schedule | None = None,
) -> Callable[[Any, Any, Any], Any]:
  """loss_fn(params, step, batch) -> (mean loss, squared errors of what the network predicts by the
  noise level of items, as trainer.updater takes them). A batch is (images, labels, positions in the
  whole batch), and with train.noisy the numbers of the noisy items in the data, -1 for clean ones.

  All that is drawn for an item, masks inside the network included, depends on (seed, step,
  position) alone.

  Args:
    spec, data: of the run.
    given: (images [B, ...] in [-1, 1], a key for each) -> (what is diffused, function of the
      network's input that adds what else it sees); None diffuses the images.
    process: the schedule; None is that of the spec.
  """
  module, process = build.net(spec, data), process or build.schedule(spec.schedule)
  times = process.at(process.training_times)
  weights = loss_weights(spec, process, times, int(np.prod(build.sample_shape(spec, data))))
  draw_times = time_sampler(spec, times)
  table = jax.tree.map(lambda x: np.asarray(x, np.float32), (times, weights))
  names, part = parts_of(chances(spec, times), times)
  bound = bound_loss(spec, process) if spec.net.learn_sigma else None
  if spec.train.noisy:
    number = level_of(spec, times)
    level = jax.tree.map(lambda x: np.float32(x[number]), times)
    draw_noisier = time_sampler(spec, times, number + 1)

  def loss_fn(params, step, batch):
    x0, labels, position, *item = batch
    x0, root, items, keys = begin(spec.seed, step, x0, position)
    if spec.train.noisy:
      own_noise = jax.vmap(functools.partial(_own_noise, x0.shape[1:]))(item[0])
      x_n = marginals.diffuse(x0, own_noise, level)
    mirrored = mirror(spec.data, items)
    x0 = mirrored(x0)
    if spec.train.noisy:  # new noise on the mirror image would show the item a second time
      x_n = mirrored(x_n)
    add = lambda inputs: inputs
    if given:
      x0, add = given(x0, jax.vmap(lambda key: jax.random.fold_in(key, 5))(items))
    index = draw_times(root, keys[:, 0], position)
    if spec.train.noisy:
      noisy = item[0] >= 0
      index = jnp.where(noisy, draw_noisier(root, keys[:, 0], position), index)
    eps = jax.vmap(lambda key: jax.random.normal(key, x0.shape[1:]))(keys[:, 1])
    drop = jax.vmap(lambda key: jax.random.bernoulli(key, spec.train.label_dropout))(keys[:, 2])
    time, weight = jax.tree.map(lambda x: jnp.asarray(x)[index], table)
    if spec.net.labels == 'null':
      labels = jnp.where(drop, data.classes, labels)
    x = marginals.diffuse(x0, eps, time)
    agreed = 0.0
    if spec.train.noisy:
      if spec.train.consistency:
        predict = _predictor(spec, module, process, params, step, labels, keys[:, 3])
        known = _where(noisy, x_n, marginals.diffuse(x0, eps, level))
        ways = jax.vmap(lambda key: jax.random.fold_in(key, 6))(items)
        agreed = consistency.loss(predict, known, table[0], number, ways)
      there = _of_noisy(x_n, eps, weight, time, level)
      x, x0, eps, weight = (_where(noisy, *pair) for pair in zip(there, (x, x0, eps, weight)))
    inputs, t = process.network_input(x, time)
    inputs = add(inputs)
    output = _output(spec, module, params, step, inputs, t, labels, keys[:, 3])
    output, rest = jnp.split(output, [x0.shape[-1]], -1)
    error = output - marginals.target(spec.denoiser.prediction, x0, eps, time)
    error = jnp.mean(error**2, axis=tuple(range(1, x0.ndim)))
    loss = jnp.mean(weight * error) + spec.train.consistency * agreed
    if bound:
      loss += bound(x, x0, output, rest, time, index)
    sums = jnp.zeros((len(names), 2)).at[jnp.asarray(part)[index]]
    sums = sums.add(jnp.stack([error, jnp.ones_like(error)], 1), mode='drop')
    return loss, dict(zip(names, sums))

  return loss_fn


def begin(seed: int, step: Any, x0: Any, position: Any):
  """(x_0 in [-1, 1], the key of the step, a key for each item, four keys for each [B, 4]) of a
  batch."""
  if x0.dtype == jnp.uint8:  # a compiled division would be off by a rounding
    x0 = jnp.asarray(base.LEVELS)[x0]
  root = jax.random.fold_in(jax.random.key(seed), step)
  items = jax.vmap(lambda i: jax.random.fold_in(root, i))(position)
  return x0, root, items, jax.vmap(lambda key: jax.random.split(key, 4))(items)


def mirror(spec: specs.Data, items: Any) -> Callable[[Any], Any]:
  """Function that mirrors half of the images of a batch, by the key of each, with data.flip."""
  if not spec.flip:
    return lambda y: y
  flip = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, 4)))(items)
  return lambda y: jnp.where(flip[:, None, None, None], y[:, :, ::-1], y)


def _output(spec, module, params, step, inputs, t, labels, keys):
  """What the network says in training; masks inside it by the key of each item."""
  progress = {'progress': step / spec.train.steps} if nets.has_schedule(module) else {}
  apply = functools.partial(module.apply, params, train=True, **progress)
  if not nets.draws(module):
    return apply(inputs, t, labels)
  one = lambda x, t, label, key: apply(x[None], t[None], label[None], rngs={'dropout': key})[0]
  return jax.vmap(one)(inputs, t, labels, keys)


def _where(noisy, one, other):
  """The items of `one` that are noisy, and the others of `other`."""
  return jnp.where(noisy.reshape(-1, *(1,) * (one.ndim - 1)), one, other)


def _of_noisy(x_n, z, weight, time, level):
  """(x_t, x_0, eps, weight) of items of which no more is used than their noisy version."""
  x = training.noisier(x_n, z, time, level)
  aim = training.noisy_target(x_n, x, time, level)
  return x, aim, marginals.from_x0(x, aim, time).eps, weight * training.kappa(time, level) ** 2


def _predictor(spec, module, process, params, step, labels, keys):
  """(x [k B, ...], times [k B]) -> the network's x_0 in training, for a batch k times."""
  convert = marginals.PREDICTIONS[spec.denoiser.prediction]

  def predict(x, time):
    inputs, t = process.network_input(x, time)
    count = len(x) // len(labels)
    again = [jnp.concatenate([part] * count) for part in (labels, keys)]
    return convert(x, _output(spec, module, params, step, inputs, t, *again), time).x0

  return predict


def bound_loss(spec: specs.Spec, process: schedules.Schedule) -> Callable[..., Any]:
  """(x_t, x_0, what the network says of the mean and of the variance, times, their numbers) -> the
  bound on the likelihood times train.vlb, whose gradient does not pass through the mean.

  Raises:
    UserError: where the bound, a sum over all training times, cannot be estimated.
  """
  if spec.train.times != 'uniform' or spec.train.noisy or not process.discrete:
    raise UserError(
      f"net.learn_sigma needs train.times 'uniform', train.noisy 0 and a schedule of whole times, "
      f'got {spec.train.times!r}, {spec.train.noisy:g} and {spec.schedule.name!r}'
    )
  convert = marginals.PREDICTIONS[spec.denoiser.prediction]
  table = jax.tree.map(lambda part: np.asarray(part, np.float32), variances.of_training(process))
  weight = spec.train.vlb * len(process.training_times)

  def loss(x, x0, output, said, time, index):
    found = convert(x, jax.lax.stop_gradient(output), time).x0
    row = jax.tree.map(lambda part: jnp.asarray(part)[index], table)
    log_variance = variances.log_variance((said + 1) / 2, row)
    return weight * jnp.mean(variances.bits(x0, found, log_variance, row))

  return loss


def level_of(spec: specs.Spec, times: Time) -> int:
  """The number of the training time whose b / a is nearest to train.noise_level."""
  with np.errstate(divide='ignore'):
    found = np.argmin(np.abs(np.log(times.b / times.a) - np.log(spec.train.noise_level)))
  if found >= len(times.t) - 1:
    raise UserError(
      f'train.noise_level {spec.train.noise_level:g} is beyond the noisiest time of the schedule; '
      f'lower it'
    )
  if spec.train.consistency and not found:
    raise UserError(
      f'train.noise_level {spec.train.noise_level:g} is the least of the schedule, and '
      f'train.consistency has nothing to teach below it; raise the one or set the other to 0'
    )
  return int(found)


def _own_noise(shape, item):
  """The noise of an item, the same in every step."""
  return jax.random.normal(jax.random.fold_in(jax.random.key(_OF_ITEMS), item), shape)


def noisy_items(spec: specs.Spec, count: int) -> np.ndarray:
  """Numbers of the items that are known with noise alone, -1 for the others: int32 [count]."""
  out = np.full(count, -1, np.int32)
  chosen = np.random.RandomState(_OF_ITEMS).permutation(count)[: round(spec.train.noisy * count)]
  out[chosen] = chosen
  if spec.train.noisy == 1 and spec.sampler.end == 'clean' and not spec.train.consistency:
    print(
      f'no item is clean: below b / a = {spec.train.noise_level:g} the network learns nothing, and '
      f'samples have what it makes of that',
      flush=True,
    )
  return out


def train(spec: specs.Spec, data: base.Data, workdir: str) -> None:
  """Trains to spec.train.steps, from the latest checkpoint of the workdir if there is one.

  Raises:
    UserError: on a bad setting, a checkpoint of another network, or a loss that is not finite
      (the last good checkpoint stays).
  """
  if not len(data.train) or spec.net.weights.format:
    raise UserError(
      'this config is for a pretrained model, and trains nothing; valid modes: fetch, convert, '
      'sample; to train the same network, set net.weights.format to nothing and data.name to images'
    )
  trainer.check_batch(spec.train)
  spec = _without_guide(spec, data)
  others: dict[str, Any] = {}  # the parts that are not trained
  about: dict[str, Any] = {**build.about(spec, data), **PLAIN}
  if spec.autoencoder.name:
    others['autoencoder'] = latents.first_stage(spec, data, workdir)
    about['latents'] = build.tree_hash(others['autoencoder'])
  module, optimiser = build.net(spec, data), trainer.make_optimiser(spec.train)

  def fresh():
    params = build.init(module, build.sample_shape(spec, data), spec.seed)
    return trainer.first(params, optimiser)

  def begun(state):
    if not spec.train.start:
      return state
    params = starts.weights(spec, data, spec.train.start, workdir, state.params)
    return state._replace(params=params, ema=params)  # the optimiser begins at zero anyway

  items, noisy = data.train, noisy_items(spec, len(data.train))

  def make():
    if not others:
      return trainer.updater(spec.train, optimiser, denoising_loss(spec, data))
    nonlocal items
    items = latents.encoded(spec, data, workdir, others['autoencoder'])
    straight = dataclasses.replace(spec, data=dataclasses.replace(spec.data, flip=False))
    given = latents.drawn(spec, others['autoencoder'])  # mirror images are further items
    return trainer.updater(spec.train, optimiser, denoising_loss(straight, data, given))

  def batch(step, mine):
    index = base.batch_indices(spec.seed, step, len(items), spec.train.batch)[mine]
    return (
      items[index],
      data.train_labels[index % len(data.train)],
      np.arange(spec.train.batch, dtype=np.int32)[mine],
      *([noisy[index]] if spec.train.noisy else []),
    )

  trainer.fit(
    spec.train,
    trainer.once(fresh),
    make,
    batch,
    about,
    workdir,
    ahead=spec.data.stream,
    begun=begun,
    show=preview(spec, data, workdir, **others),
  )


def _without_guide(spec, data):
  """The settings without the classifier that guides: it is no part of the training, nor are the
  labels that it alone takes."""
  spec = dataclasses.replace(spec, classifier=specs.Classifier())
  if drawing.takes_labels(spec, data):
    return spec
  return dataclasses.replace(spec, sample=dataclasses.replace(spec.sample, label=''))


def preview(
  spec: specs.Spec, data: base.Data, workdir: str, **others: Any
) -> Callable[[int, Any], None]:
  """(step, parameters) -> progress/STEP.png: samples 0 to 15 of the sampler of the config, or
  nothing where train.sample_every is 0; others: the weights of other parts than the network."""
  if not spec.train.sample_every:
    return lambda step, ema: None
  made, model = drawing.prepare(spec, spec.sampler, data), drawing.Model(spec, data, {})

  def show(step, params):
    nonlocal model
    dtype = jnp.dtype(spec.net.dtype)
    model = model.of({'net': jax.tree.map(lambda leaf: leaf.astype(dtype), params), **others})
    drawn = model.drawer(made, 16).draw(np.arange(16), lambda count: None)
    path = os.path.join(workdir, 'progress', f'{step:08d}.png')
    images.save(path, images.picture(drawn['x'], data.train, columns=4))

  return show
