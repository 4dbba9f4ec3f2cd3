"""--mode=finetune: a trained network, made better at the few steps that it will be sampled in.

The network is trained through the whole sampler, with the distance of maths.kernels between what
comes out and the data as the loss [MMD-DDM, arXiv 2301.07969]. Each call of the denoiser is
rematerialised, so memory grows by the states of a step and not by its activations.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmm_diffusion import parallel, samplers, specs
from gmm_diffusion.data import base
from gmm_diffusion.engine import build, drawing, loss, quality, starts, trainer
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import kernels
from gmm_diffusion.metrics import features as features_lib

FIRST = 2**31  # id of the first sample; those that are drawn for people come before it
KNOWN = 1000  # training items whose mean square scales the pixels
NOT_SMOOTH = ('time_shift',)  # the search for a time has no gradient


def finetune(spec: specs.Spec, data: base.Data, workdir: str) -> None:
  """Trains to spec.finetune.steps, from the latest checkpoint of the workdir if there is one, and
  else from the weights in spec.finetune.start.

  Raises:
    UserError: on a bad setting, a checkpoint of something else, or a loss that is not finite.
  """
  _check(spec, data, workdir)
  own, made = spec.finetune, drawing.prepare(spec, spec.sampler, data)
  wanted = dataclasses.replace(spec.net, dtype='float32')  # what is learnt has all its digits
  params = build.weights(dataclasses.replace(spec, net=wanted), data, own.start)['net']
  train = trainer.at_constant_rate(spec.train, own.steps, own.batch, own.learning_rate)
  optimiser = trainer.make_optimiser(train)
  features = features_of(own.features, data, quality.cache_of(spec, workdir))
  labelled = drawing.takes_labels(spec, data)

  def batch(step, mine):
    at = lambda seed: base.batch_indices(seed, step, len(data.train), own.batch)[mine]
    ids = np.arange(FIRST + step * own.batch, FIRST + (step + 1) * own.batch)[mine]
    # labels of other items than those compared with: both are drawn alike, and independent
    labels = data.train_labels[at(spec.seed ^ 1)] if labelled else np.zeros(len(ids), np.int32)
    return data.train[at(spec.seed)], labels, (ids % 2**32).astype(np.uint32)

  trainer.fit(
    train,
    lambda: trainer.State(np.zeros((), np.int32), params, params, optimiser.init(params)),
    lambda: trainer.updater(train, optimiser, distance_loss(spec, made, features)),
    batch,
    {**build.about(spec, data), **loss.PLAIN, 'finetuned': _about(spec, params)},
    workdir,
    ahead=spec.data.stream,
    show=loss.preview(spec, data, workdir),
    section='finetune',
  )


def features_of(name: str, data: base.Data, cache: str) -> Callable[[Any], Any]:
  """x [B, ...] in [-1, 1] -> features [B, D] of mean square one on the training set."""
  if name != 'identity':
    return features_lib.learned(name, data, cache, features_lib.TUNING).features
  known = base.to_model(data.train[np.arange(min(KNOWN, len(data.train)))])
  size = np.float32(np.sqrt(np.mean(np.square(known, dtype=np.float64))))
  return lambda x: x.reshape(len(x), -1) / size


def distance_loss(
  spec: specs.Spec, made: drawing.Prepared, features: Callable[[Any], Any]
) -> Callable[[Any, Any, Any], Any]:
  """loss_fn(params, step, batch): the distance of samples to the items of the batch, which is
  (items, labels of the samples, ids of the samples). All devices compute that of the whole
  batch."""
  kernel = kernels.KERNELS[spec.finetune.kernel]
  steps = drawing.Steps(made.grid, made.plan, np.uint32(spec.seed))
  unroll = jax.default_backend() == 'cpu'

  def loss_fn(params, step, batch):
    del step
    y, labels, ids = batch
    if is_image := y.dtype == jnp.uint8:
      y = jnp.asarray(base.LEVELS)[y]
    denoiser = jax.checkpoint(made.bind({'net': params}))
    _, drawn = drawing.sample_batch(
      made.kernel, denoiser, steps, ids, labels, made.shape, unroll=unroll
    )
    x = jnp.clip(drawn.x, -1, 1) if is_image else drawn.x
    return kernels.mmd(kernel, *(parallel.gathered(features(z)) for z in (x, y)))

  return loss_fn


def _about(spec: specs.Spec, params: Any) -> dict[str, Any]:
  """What fine-tuned weights belong to, beside the network."""
  own = spec.finetune
  return {
    'start': build.tree_hash(params),
    'sampler': drawing.settings(spec.sampler),
    'kernel': own.kernel,
    'features': own.features,
  }


def _check(spec: specs.Spec, data: base.Data, workdir: str) -> None:
  """Raises UserError on what cannot be fine-tuned."""
  own = spec.finetune
  if not len(data.train) or spec.autoencoder.name or spec.net.weights.format:
    raise UserError(
      'this config is for a pretrained model: it has no data to fine-tune on, or trains in '
      'latents, which is not supported; valid modes: fetch, convert, sample'
    )
  if spec.classifier.scale:
    raise UserError(
      f'a network is fine-tuned without a classifier that guides; set classifier.scale to 0, got '
      f'{spec.classifier.scale:g}'
    )
  starts.check('finetune', own.start, workdir)
  if samplers.resolve(spec.sampler.name, spec.sampler.options())[0] in NOT_SMOOTH:
    raise UserError(
      f'sampler.name {spec.sampler.name!r} has no useful gradient; valid: all samplers but '
      f'{", ".join(NOT_SMOOTH)}'
    )
  parallel.check_batch(own.batch, 'finetune.batch')
