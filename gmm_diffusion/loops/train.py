"""Training: the DDPM loss [DDPM eq. 14] or the ELBO weights of [GMM eq. 40], EMA, orbax, resume.

What happens in step n depends on (seed, n) and the position in the batch only: a run that was
killed and resumed equals an uninterrupted one, and the number of devices changes rounding alone.
"""

import json
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from gmm_diffusion import parallel, specs
from gmm_diffusion.aliases import Time, UserError
from gmm_diffusion.checkpoints.store import Store
from gmm_diffusion.data import sources
from gmm_diffusion.loops import build
from gmm_diffusion.maths import grids, marginals, schedules
from gmm_diffusion.reports import files, plots
from gmm_diffusion.samplers import mixture, resolve


class State(NamedTuple):
  """step: updates done. ema: averaged parameters, those to sample from."""

  step: Any
  params: Any
  ema: Any
  optimiser: Any


def elbo_weights(
  spec: specs.Sampler, process: schedules.Schedule, times: Time, dim: int
) -> np.ndarray:
  """w_t of [GMM eq. 40] for each training time, scaled to mean one, float64.

  The kernel is that of `sampler`, stepping through all training times; its first step ends at clean
  data with no variance, and takes the weight of the next.
  """
  grid = grids.from_times(process, times.t[::-1])
  name, options = resolve(spec.name, spec.options())
  eta = options.pop('eta', 1.0)  # ddpm has none, and is the case eta = 1
  precision = mixture.precisions(name, eta, options, grid, dim)
  precision[-1] = precision[-2]
  if not np.all(np.isfinite(precision)):
    n = int(np.argmax(~np.isfinite(precision)))
    raise UserError(
      f'the ELBO needs positive variances, but sampler {spec.name!r} has none at t = '
      f'{grid.t[n]:g}; raise sampler.eta ({spec.eta:g}) above 0, or lower sampler.scale '
      f'({spec.scale:g})'
    )
  weights = (precision * grid.b_t**2 / (2 * grid.a_t**2))[::-1]
  return weights / weights.mean()


def make_update(spec: specs.Spec, data: sources.Data, optimiser: optax.GradientTransformation):
  """(State, batch) -> (State, loss) on every device; batch is (images, labels, position in the
  whole batch)."""
  module, process = build.net(spec, data), build.schedule(spec.schedule)
  times = process.at(process.training_times)
  if spec.train.loss == 'elbo':
    weights = elbo_weights(spec.sampler, process, times, int(np.prod(data.shape)))
  else:
    weights = np.ones(len(times.t))
  table = jax.tree.map(lambda x: np.asarray(x, np.float32), (times, weights))

  def loss_fn(params, step, batch):
    x0, labels, position = batch
    root = jax.random.fold_in(jax.random.key(spec.seed), step)
    keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(root, i), 4))(position)
    index = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(weights)))(keys[:, 0])
    eps = jax.vmap(lambda key: jax.random.normal(key, x0.shape[1:]))(keys[:, 1])
    drop = jax.vmap(lambda key: jax.random.bernoulli(key, spec.train.label_dropout))(keys[:, 2])
    time, weight = jax.tree.map(lambda x: jnp.asarray(x)[index], table)
    if spec.net.labels == 'null':
      labels = jnp.where(drop, data.classes, labels)
    inputs, t = process.network_input(marginals.diffuse(x0, eps, time), time)
    progress = {'progress': step / spec.train.steps} if build.has_schedule(module) else {}
    output = module.apply(
      params, inputs, t, labels, train=True, rngs={'dropout': keys[0, 3]}, **progress
    )
    error = output[..., : x0.shape[-1]] - marginals.target(spec.denoiser.prediction, x0, eps, time)
    return jnp.mean(weight * jnp.mean(error**2, axis=tuple(range(1, x0.ndim))))

  return updater(spec.train, optimiser, loss_fn)


def updater(
  spec: specs.Train,
  optimiser: optax.GradientTransformation,
  loss_fn: Callable[[Any, Any, Any], Any],
):
  """(State, batch) -> (State, loss) on every device, for loss_fn(params, step, batch)."""

  def update(state, batch):
    loss, gradient = parallel.mean(jax.value_and_grad(loss_fn)(state.params, state.step, batch))
    updates, opt_state = optimiser.update(gradient, state.optimiser, state.params)
    params = optax.apply_updates(state.params, updates)
    step = state.step + 1
    decay = jnp.minimum(spec.ema, (1 + step) / (10 + step))  # forgets the random start quickly
    averaged = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, state.ema, params)
    return State(step, params, averaged, opt_state), loss

  return parallel.over_devices(update, donate=True)


def make_optimiser(spec: specs.Train) -> optax.GradientTransformation:
  rate = (
    optax.linear_schedule(0.0, spec.learning_rate, spec.warmup)
    if spec.warmup
    else spec.learning_rate
  )
  return optax.chain(optax.clip_by_global_norm(spec.clip_norm), optax.adam(rate))


def train(spec: specs.Spec, data: sources.Data, workdir: str) -> None:
  """Trains to spec.train.steps, from the latest checkpoint of the workdir if there is one.

  Raises:
    UserError: on a bad setting, a checkpoint of another network, or a loss that is not finite
      (the last good checkpoint stays).
  """
  if not len(data.train) or spec.autoencoder.name or spec.net.weights.format:
    raise UserError(
      'this config is for a pretrained model: it has no data to train on, or trains in latents, '
      'which is not supported; valid modes: fetch, convert, sample'
    )
  if parallel.shares(spec.train.batch):
    raise UserError(f'train.batch {spec.train.batch} is {parallel.shares(spec.train.batch)}')
  module, optimiser = build.net(spec, data), make_optimiser(spec.train)
  images = sources.to_model(data.train)

  def fresh():
    params = build.init(module, data.shape, spec.seed)
    return State(jnp.zeros((), jnp.int32), params, params, optimiser.init(params))

  def batch(step, mine):
    index = sources.batch_indices(spec.seed, step, len(images), spec.train.batch)[mine]
    return (
      images[index],
      data.train_labels[index],
      np.arange(spec.train.batch, dtype=np.int32)[mine],
    )

  fit(
    spec.train,
    fresh,
    lambda: make_update(spec, data, optimiser),
    batch,
    build.about(spec, data),
    workdir,
  )


def fit(
  spec: specs.Train,
  fresh: Callable[[], State],
  make: Callable[[], Any],
  batch: Callable[[int, slice], Any],
  about: dict[str, Any],
  workdir: str,
) -> None:
  """Trains from the latest checkpoint of the workdir, if there is one, to spec.steps.

  Args:
    spec: of the loop.
    fresh: the state to start from.
    make: () -> an `updater`, called when there is something to do.
    batch: (step, this host's part of the batch) -> host arrays with a leading batch axis.
    about: what the weights belong to.
    workdir: where checkpoints/, training.json and training.png go.
  """
  store = Store(workdir, create=True)
  curve_path = os.path.join(workdir, 'training.json')
  curve = []
  if store.latest() is None:
    state = jax.jit(fresh)()
  else:
    if store.about() != json.loads(json.dumps(dict(about, format=store.about()['format']))):
      raise UserError(
        f'{store.path} holds the checkpoint of another network; use another --workdir, or remove '
        f'that folder'
      )
    state = State(**store.training(jax.eval_shape(fresh)._asdict()))
    curve = [row for row in files.read_json(curve_path, []) if row['step'] <= store.latest()]
  start = int(state.step)
  if start >= spec.steps:
    print(f'already trained to step {start}')
    store.close()
    return

  update = make()
  state = parallel.replicate(state)
  mine = parallel.host_slice(spec.batch)
  with tqdm(
    total=spec.steps, initial=start, desc='training', unit='step', dynamic_ncols=True
  ) as bar:
    losses = []
    for step in range(start, spec.steps):
      state, loss = update(state, parallel.split(batch(step, mine)))
      losses.append(loss)
      bar.update()
      done = step + 1
      last = done == spec.steps
      save = last or done % spec.checkpoint_every == 0
      if save or done % spec.log_every == 0:
        mean = float(np.mean(parallel.unreplicate(losses)))
        if not np.isfinite(mean):
          bar.close()
          store.close()
          kept = store.latest()
          raise UserError(
            f'loss is {mean} between steps {done - len(losses)} and {done}; lower '
            f'train.learning_rate ({spec.learning_rate:g}) or train.clip_norm; '
            + (f'checkpoint {kept} is kept' if kept else 'no checkpoint was written')
          )
        curve.append({'step': done, 'loss': mean})
        bar.set_postfix(loss=f'{mean:.4f}')
        losses = []
      if save:
        local = parallel.unreplicate(state)
        store.save(done, {'net': local.ema}, local._asdict(), about)
        files.write_json(curve_path, curve)
  store.close()
  plots.training_curve(os.path.join(workdir, 'training.png'), curve)
