"""The networks that restore: one for each name in restoration.models, in a folder of its own.

  residual     diffusion of y = x - x_in                                     [RDDM, 2308.13712]
  conditional  diffusion of x, with x_in beside it
  regression   x - x_in at once, of (0, x_in): what is least wrong on average

All are the same network with the same input width, number of weights and loss (squared error).
"""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmm_diffusion import files, parallel, samplers, specs
from gmm_diffusion.checkpoints.store import Store
from gmm_diffusion.data import base
from gmm_diffusion.denoisers import residual
from gmm_diffusion.engine import build, drawing, loss, trainer
from gmm_diffusion.engine.runs import Run
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import schedules
from gmm_diffusion.samplers.base import Kernel
from gmm_diffusion.tasks.restoration import inputs
from gmm_diffusion.types import Denoiser

MODELS = 'residual', 'conditional', 'regression'
RESIDUAL, CONDITIONAL, REGRESSION = MODELS


def of(run: Run, model: str) -> Run:
  """The run of one network."""
  return run._replace(spec=_spec(run.spec, model), workdir=os.path.join(run.workdir, model))


def _spec(spec, model):
  """A regression predicts x_0 at one time, whatever is said of predictions and times."""
  if model != REGRESSION:
    return spec
  return dataclasses.replace(
    spec,
    denoiser=dataclasses.replace(spec.denoiser, prediction='x0'),
    train=dataclasses.replace(spec.train, loss='simple', times='uniform'),
  )


def process(spec: specs.Spec, model: str) -> schedules.Schedule:
  """The schedule of a network; a regression knows the last time alone, where all is noise."""
  out = build.schedule(spec.schedule)
  if model != REGRESSION:
    return out
  return dataclasses.replace(out, training_times=out.training_times[-1:])


def about(spec: specs.Spec, data: base.Data, model: str) -> dict[str, Any]:
  """What the weights belong to."""
  own = spec.inverse
  what = {key: getattr(own, key) for key in ('operator', 'noise', 'hidden', 'factor', 'width')}
  if spec.restoration.pairs:
    what = {'operator': 'pairs'}
  return {**build.about(_spec(spec, model), data), 'restores': {'model': model, **what}}


def init(spec: specs.Spec, data: base.Data) -> Any:
  """First weights of the network, which sees two images."""
  H, W, C = data.shape
  return build.init(build.net(spec, data), (H, W, 2 * C), spec.seed)


def given(spec: specs.Spec, pairs: inputs.Pairs | None, model: str) -> Callable[[Any, Any], Any]:
  """See loss.denoising_loss."""
  of_batch = inputs.of_training(spec, pairs)

  def apart(x, keys):
    x0, x_in = of_batch(x, keys)
    if model == CONDITIONAL:
      return x0, lambda x: residual.beside(x, x_in)
    if model == REGRESSION:
      return x0 - x_in, lambda y: _regressed(x_in)
    return x0 - x_in, lambda y: residual.seen(y, x_in)

  return apart


def _regressed(x_in):
  """What the network of a regression sees."""
  return residual.beside(jnp.zeros_like(x_in), x_in)


def train(run: Run, pairs: inputs.Pairs | None, model: str) -> None:
  """Trains a network to train.steps, from the latest checkpoint of its folder if there is one."""
  one = of(run, model)
  spec, data, optimiser = one.spec, one.data, trainer.make_optimiser(one.spec.train)
  files.make_workdir(one.workdir)

  def fresh():
    params = init(spec, data)
    return trainer.first(params, optimiser)

  def batch(step, mine):
    index = base.batch_indices(spec.seed, step, len(data.train), spec.train.batch)[mine]
    images = data.train[index]
    if pairs is not None:
      images = np.concatenate([images, pairs.train[index]], -1)
    return images, data.train_labels[index], np.arange(spec.train.batch, dtype=np.int32)[mine]

  make_loss = lambda: loss.denoising_loss(
    spec, data, given(spec, pairs, model), process(spec, model)
  )
  trainer.fit(
    spec.train,
    trainer.once(fresh),
    lambda: trainer.updater(spec.train, optimiser, make_loss()),
    batch,
    about(spec, data, model),
    one.workdir,
    ahead=spec.data.stream,
  )


def shape_of(workdir: str, model: str) -> base.Data:
  """Data without items, of the shape of what a trained network restores."""
  with Store(os.path.join(workdir, model)) as store:
    known = store.about()
  images, labels = np.zeros((0, *known['shape']), np.uint8), np.zeros(0, np.int32)
  return base.Data(images, labels, images, labels, known['classes'])


def denoiser(spec: specs.Spec, data: base.Data, model: str, params: Any) -> Denoiser:
  """The Denoiser of a network with these weights, for cond = (None, x_in)."""
  module, own = build.net(spec, data), spec.denoiser
  make = residual.conditional if model == CONDITIONAL else residual.network
  return make(
    lambda x, t, labels: module.apply(params, x, t, labels),
    build.schedule(spec.schedule),
    own.prediction,
    own.clip,
  )


class Restorer:
  """A trained network on the devices."""

  def __init__(self, run: Run, model: str):
    """Reads the weights; raises UserError where there are none, or they restore something else."""
    one = of(run, model)
    self.spec, self.data, self.model = one.spec, one.data, model
    template = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(one.spec.net.dtype)),
      jax.eval_shape(functools.partial(init, one.spec, one.data)),
    )
    with Store(one.workdir) as store:
      build.check_about(store, about(one.spec, one.data, model))
      weights = store.weights({'net': template})
    self.hash = build.tree_hash(weights)
    self._weights = parallel.replicate(weights['net'], local=True)

  def restore(
    self,
    sampler: specs.Sampler | None,
    x_in: np.ndarray,
    ids: np.ndarray,
    advance: Callable[[int], Any] = lambda count: None,
  ) -> tuple[np.ndarray, int]:
    """(uint8 images [N, H, W, C], calls of the network for each).

    Args:
      sampler: None for a regression.
      x_in: degraded images, float32 [N, H, W, C].
      ids: of the noise, [N].
      advance: called with the number of images done since its last call.
    """
    size = min(self.spec.sample.batch, -(-len(x_in) // jax.local_device_count()))
    fn, steps = self._regression() if sampler is None else self._sampling(sampler)
    shared = self._weights, parallel.replicate(steps, local=True)
    out, calls = parallel.map_batches(fn, size)(shared, (ids, x_in), advance)
    finite = np.isfinite(out).all((1, 2, 3))
    if not finite.all():
      raise UserError(
        f'{np.sum(~finite)} of {len(out)} images restored by {self.model} are not finite; take '
        f'other steps, or compute in net.dtype float32'
      )
    return base.to_image(out), int(calls[0])

  def _regression(self):
    module, own = build.net(self.spec, self.data), build.schedule(self.spec.schedule)
    last = own.at(own.last)

    def fn(shared, batch):
      (params, _), (_, x_in) = shared, batch
      _, t = own.network_input(x_in, jax.tree.map(np.float32, last))
      t = jnp.broadcast_to(jnp.asarray(t, x_in.dtype), len(x_in))
      found = module.apply(params, _regressed(x_in), t, None)[..., : x_in.shape[-1]]
      return x_in + found, jnp.ones(len(x_in), jnp.int32)

    return fn, ()

  def _sampling(self, sampler):
    kernel, steps = prepared(self.spec, self.data, sampler)

    def fn(shared, batch):
      (params, steps), (ids, x_in) = shared, batch
      one = denoiser(self.spec, self.data, self.model, params)
      _, found = drawing.sample_batch(kernel, one, steps, ids, (None, x_in), self.data.shape)
      x = found.x if self.model == CONDITIONAL else x_in + found.x
      return x, jnp.full(len(x_in), found.nfe)

    return fn, steps


def prepared(
  spec: specs.Spec, data: base.Data, sampler: specs.Sampler
) -> tuple[Kernel, drawing.Steps]:
  """A sampler made ready; raises UserError on bad settings."""
  process = build.schedule(spec.schedule)
  grid = build.grid(process, sampler)
  kernel = samplers.make(sampler.name, sampler.options(), process)
  plan, _ = kernel.plan(grid, data.shape)
  return kernel, drawing.Steps(grid, jax.tree.map(np.asarray, plan), np.uint32(spec.seed))
