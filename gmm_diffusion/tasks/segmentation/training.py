"""Training of interactive segmentation with simulated clicks, and what it leaves in a workdir."""

import functools
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gmm_diffusion import specs, task_specs
from gmm_diffusion.checkpoints.importers import efficientnet
from gmm_diffusion.checkpoints.store import Store
from gmm_diffusion.engine import trainer
from gmm_diffusion.errors import UserError
from gmm_diffusion.tasks.segmentation import annotator, scenes, session, weights
from gmm_diffusion.tasks.segmentation.model import Clicks, Segmenter

FIRST = 8  # most clicks drawn before the network's own errors add more, while training
OBJECTS = 3  # of an image that is encoded once, while training
ENCODER = 'pretrained'  # what encoders.Pretrained calls its network among the parameters
NETWORK = (  # the options that a network consists of
  'encoder', 'channels', 'blocks', 'heads', 'head_channels', 'key_steps', 'value_steps', 'pixels',
)  # fmt: skip


def network(spec: task_specs.Segmentation, clicks: str = 'tokens') -> Segmenter:
  """The network of a spec; clicks as of Segmenter, 'channels' is the baseline."""
  return Segmenter(
    encoder=spec.encoder,
    channels=spec.channels,
    blocks=spec.blocks,
    heads=spec.heads,
    head_channels=spec.head_channels,
    key_steps=spec.key_steps,
    value_steps=spec.value_steps,
    pixels=spec.pixels,
    clicks=clicks,
  )


def _init(module, crop, seed):
  H, W = crop
  return module.init(
    jax.random.key(seed),
    jnp.zeros((1, H, W, 3)),
    Clicks(jnp.zeros((1, 1, 2), jnp.int32), jnp.zeros((1, 1), jnp.int32)),
  )


def _with_encoder(params, spec: task_specs.Segmentation):
  """Fresh parameters with the released weights of the encoder, where there are any."""
  if spec.encoder == 'scratch':
    return params
  inside = params['params']['encoding']
  found = efficientnet.load(spec.encoder, efficientnet.file_of(spec.encoder, spec.encoder_path))
  encoding = {**inside, ENCODER: found}
  return {'params': {**params['params'], 'encoding': encoding}}


def optimiser_of(spec: specs.Spec) -> optax.GradientTransformation:
  """That of train.*, and slower for released weights of the encoder."""
  of_encoder = lambda params: jax.tree_util.tree_map_with_path(
    lambda path, _: any(getattr(key, 'key', None) == ENCODER for key in path), params
  )
  slower = optax.masked(optax.scale(spec.segmentation.encoder_rate), of_encoder)
  return optax.chain(trainer.make_optimiser(spec.train), slower)


def about(module: Segmenter) -> dict[str, Any]:
  """What a network consists of, as plain values."""
  return {
    'segmentation': {key: getattr(module, key) for key in NETWORK},
    'clicks': module.clicks,
  }


def make_batch(
  spec: specs.Spec, examples: Sequence[scenes.Scene], step: int, mine: slice
) -> tuple[np.ndarray, ...]:
  """Images uint8 [B, H, W, 3]; of OBJECTS objects in each, masks [B, OBJECTS, H, W], pixels and
  labels of clicks [B, OBJECTS, slots, ...]; positions in the whole batch: a function of (seed,
  step) alone."""
  rows, slots = [], FIRST + spec.segmentation.corrections
  for position in range(*mine.indices(spec.train.batch)):
    random = np.random.RandomState([spec.seed, step, position])
    scene = examples[random.randint(len(examples))]
    numbers = random.randint(len(scene.objects), size=OBJECTS).tolist()
    image, masks = scenes.crop(scene, numbers, spec.segmentation.crop, random)
    image, packed = _in_other_light(image, random), []
    for mask in masks:
      clicks = annotator.first_clicks(mask, min(FIRST, random.geometric(0.35)), random)
      packed.append(session.pack(clicks, mask.shape, max(mask.shape), slots))
    rows.append((image, masks, *map(np.stack, zip(*packed)), np.int32(position)))
  return tuple(map(np.stack, zip(*rows)))


def _in_other_light(image, random):
  """uint8 [H, W, 3] with another brightness, contrast and tint, and now and then without colour."""
  x = image.astype(np.float32) / 255
  if random.rand() < 0.1:
    x = np.broadcast_to(x.mean(-1, keepdims=True), x.shape)
  gain, offset = random.uniform(0.75, 1.25) * random.uniform(0.9, 1.1, 3), random.uniform(-0.1, 0.1)
  x = (x - 0.5) * gain + 0.5 + offset
  return np.round(255 * np.clip(x, 0, 1)).astype(np.uint8)


def _corrected(key, clicks: Clicks, wrong, mask) -> Clicks:
  """One more click, somewhere inside the errors [H, W] of one item; none where there are none."""
  inside = (
    jax.lax.reduce_window(wrong.astype(jnp.float32), 0.0, jax.lax.add, (7, 7), (1, 1), 'SAME')
    * wrong
  )
  at = jax.random.categorical(key, 2 * jnp.log(inside.reshape(-1) + 1e-9))
  pixel = jnp.stack([at // wrong.shape[1], at % wrong.shape[1]])
  label = jnp.where(jnp.any(wrong), mask.reshape(-1)[at] == scenes.OBJECT, -1)
  slot = jnp.sum(clicks.labels >= 0)
  return Clicks(
    jnp.asarray(clicks.pixels).at[slot].set(pixel.astype(jnp.int32)),
    jnp.asarray(clicks.labels).at[slot].set(label.astype(jnp.int32)),
  )


def loss_of(module: Segmenter, corrections: int, seed: int):
  """loss_fn(params, step, batch): cross-entropy and 1 - soft IoU after up to `corrections` clicks
  on the network's own errors, one after the other as a person makes them; each item on a random
  arm."""

  def loss_fn(params, step, batch):
    image, masks, pixels, labels, position = batch
    image, objects = image.astype(jnp.float32) / 127.5 - 1, masks.shape[1]
    root = jax.random.fold_in(jax.random.key(seed), step)
    keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(root, i), objects))(position)
    one = lambda x: x.reshape(-1, *x.shape[2:])  # objects of all images as items
    mask, clicks = one(masks), Clicks(one(pixels), one(labels))
    keys = jax.vmap(lambda key: jax.random.split(key, 3 + corrections))(one(keys))
    on = tuple(jax.vmap(lambda key: jax.random.bernoulli(key, 0.6))(keys[:, i]) for i in (0, 1))
    if module.clicks == 'values':  # without propagation nothing would be known of the clicks
      on = on[0], jnp.ones_like(on[1])
    if module.clicks == 'channels':
      given, method = image, '__call__'
    else:
      given, method = module.apply(params, image, method='encode'), 'update'
    given = jax.tree.map(lambda x: jnp.repeat(x, objects, 0), given)
    # jit, so that the network is traced once for both uses
    predict = jax.jit(
      lambda params, given, clicks: module.apply(params, given, clicks, on, method=method)
    )
    fixed = jax.lax.stop_gradient((params, given))

    count = jax.vmap(lambda key: jax.random.randint(key, (), 0, corrections + 1))(keys[:, 2])

    def correct(clicks, turn):
      wrong = (predict(*fixed, clicks) > 0) != (mask == scenes.OBJECT)
      wrong &= (mask != scenes.IGNORE) & (turn < count)[:, None, None]
      return jax.vmap(_corrected)(keys[:, 3 + turn], clicks, wrong, mask), None

    clicks, _ = jax.lax.scan(correct, clicks, jnp.arange(corrections))
    logits = predict(params, given, clicks)
    target = (mask == scenes.OBJECT).astype(jnp.float32)
    counts = (mask != scenes.IGNORE).astype(jnp.float32)
    entropy = jnp.maximum(logits, 0) - logits * target + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    p = jax.nn.sigmoid(logits) * counts
    total = lambda x: jnp.sum(x, (1, 2))
    iou = (total(p * target) + 1) / (total(p + target * counts - p * target) + 1)
    return jnp.mean(total(entropy * counts) / jnp.maximum(total(counts), 1) + 1 - iou)

  return loss_fn


def folders(spec: task_specs.Segmentation, workdir: str) -> dict[str, str]:
  """Where the checkpoints are of the network, and of the baseline if it is wanted."""
  out = {'tokens': workdir}
  if spec.baseline:
    out['channels'] = os.path.join(workdir, 'baseline')
  return out


def train(spec: specs.Spec, examples: Sequence[scenes.Scene], workdir: str) -> None:
  """Trains the network on the examples, and the baseline that takes clicks as channels.

  Raises:
    UserError: on a batch that the devices cannot share, a checkpoint of another network, or a loss
      that is not finite.
  """
  trainer.check_batch(spec.train)
  for clicks, folder in folders(spec.segmentation, workdir).items():
    fit(spec, examples, clicks, folder)


def fit(spec: specs.Spec, examples: Sequence[scenes.Scene], clicks: str, folder: str) -> None:
  """Trains one network, which takes clicks as `Segmenter.clicks` says; errors as of `train`."""
  optimiser, own = optimiser_of(spec), spec.segmentation
  module = network(own, clicks)

  def fresh():
    params = _with_encoder(_init(module, own.crop, spec.seed), own)
    return trainer.first(params, optimiser)

  trainer.fit(
    spec.train,
    trainer.once(fresh),
    lambda: trainer.updater(spec.train, optimiser, loss_of(module, own.corrections, spec.seed)),
    functools.partial(make_batch, spec, examples),
    about(module),
    folder,
  )


def load(spec: specs.Spec, workdir: str, clicks: str = 'tokens') -> tuple[Segmenter, Any]:
  """(network, parameters) of segmentation.weights or, where there are none, and for the baseline,
  of a workdir.

  Raises:
    UserError: if there is no checkpoint, or it is of another network.
  """
  own = spec.segmentation
  if own.weights and clicks == 'tokens':
    module = network(own)
    said, params = weights.read(own.weights)
    _compare(own.weights, {key: said.get(key) for key in about(module)}, about(module))
    check(module, params, own.weights)
    return module, params
  return restore(spec, folders(own, workdir)[clicks], clicks)


def restore(spec: specs.Spec, folder: str, clicks: str) -> tuple[Segmenter, Any]:
  """(network, parameters) that `fit` left in a folder; errors as of `load`."""
  module = network(spec.segmentation, clicks)
  with Store(folder) as store:
    found = {key: value for key, value in store.about().items() if key != 'format'}
    _compare(f'the checkpoint in {store.path}', found, about(module))
    template = jax.eval_shape(lambda: _init(module, spec.segmentation.crop, 0))
    return module, store.weights({'net': template})['net']


def _compare(what, found, wanted):
  if found != wanted:
    raise UserError(
      f'{what} is of {found}, the config says {wanted}; use its config, or another network'
    )


def check(module: Segmenter, params: Any, path: str) -> None:
  """Raises UserError where the parameters of a file are not those of the network."""
  shapes = jax.eval_shape(lambda: _init(module, (32, 32), 0))
  if jax.tree.map(jnp.shape, params) != jax.tree.map(lambda leaf: leaf.shape, shapes):
    raise UserError(f'{path} has other weights than it says; download it again')
