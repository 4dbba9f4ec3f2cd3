"""Training of interactive segmentation with simulated clicks, and what it leaves in a workdir."""

import functools
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmm_diffusion import specs
from gmm_diffusion.checkpoints.store import Store
from gmm_diffusion.engine import trainer
from gmm_diffusion.errors import UserError
from gmm_diffusion.tasks.segmentation import annotator, scenes, session
from gmm_diffusion.tasks.segmentation.model import Clicks, Segmenter

FIRST = 8  # most clicks drawn before the network's own error adds one, while training


def network(spec: specs.Segmentation, clicks: str = 'tokens') -> Segmenter:
  """The network of a spec; clicks 'channels' is the baseline."""
  return Segmenter(
    spec.channels,
    spec.blocks,
    spec.heads,
    spec.head_channels,
    spec.key_steps,
    spec.value_steps,
    clicks,
  )


def _init(module, spec, seed):
  H, W = spec.crop
  return module.init(
    jax.random.key(seed),
    jnp.zeros((1, H, W, 3)),
    Clicks(jnp.zeros((1, FIRST + 1, 2), jnp.int32), jnp.zeros((1, FIRST + 1), jnp.int32)),
  )


def _about(spec: specs.Segmentation, clicks: str) -> dict[str, Any]:
  keys = ('channels', 'blocks', 'heads', 'head_channels', 'key_steps', 'value_steps')
  return {'segmentation': {key: getattr(spec, key) for key in keys}, 'clicks': clicks}


def make_batch(
  spec: specs.Spec, examples: Sequence[scenes.Scene], step: int, mine: slice
) -> tuple[np.ndarray, ...]:
  """Images uint8, masks, pixels and labels of clicks, positions in the whole batch: a function of
  (seed, step) alone."""
  rows = []
  for position in range(*mine.indices(spec.train.batch)):
    random = np.random.RandomState([spec.seed, step, position])
    scene = examples[random.randint(len(examples))]
    image, mask = scenes.crop(
      scene, random.randint(len(scene.objects)), spec.segmentation.crop, random
    )
    clicks = annotator.first_clicks(mask, min(FIRST, random.geometric(0.35)), random)
    packed = session.pack(clicks, mask.shape, max(mask.shape), FIRST + 1)
    rows.append((image, mask, packed.pixels, packed.labels, np.int32(position)))
  return tuple(map(np.stack, zip(*rows)))


def _corrected(key, clicks: Clicks, wrong, mask) -> Clicks:
  """One more click, somewhere inside the errors [H, W] of one item; now and then none."""
  keys = jax.random.split(key)
  inside = (
    jax.lax.reduce_window(wrong.astype(jnp.float32), 0.0, jax.lax.add, (7, 7), (1, 1), 'SAME')
    * wrong
  )
  at = jax.random.categorical(keys[0], 2 * jnp.log(inside.reshape(-1) + 1e-9))
  pixel = jnp.stack([at // wrong.shape[1], at % wrong.shape[1]])
  label = jnp.where(
    jnp.any(wrong) & jax.random.bernoulli(keys[1], 0.75), mask.reshape(-1)[at] == scenes.OBJECT, -1
  )
  slot = jnp.sum(clicks.labels >= 0)
  return Clicks(
    jnp.asarray(clicks.pixels).at[slot].set(pixel.astype(jnp.int32)),
    jnp.asarray(clicks.labels).at[slot].set(label.astype(jnp.int32)),
  )


def loss_of(module: Segmenter, seed: int):
  """loss_fn(params, step, batch): cross-entropy and 1 - soft IoU after a click of correction, each
  item on a random arm."""

  def loss_fn(params, step, batch):
    image, mask, pixels, labels, position = batch
    image, clicks = image.astype(jnp.float32) / 127.5 - 1, Clicks(pixels, labels)
    root = jax.random.fold_in(jax.random.key(seed), step)
    keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(root, i), 3))(position)
    on = tuple(jax.vmap(lambda key: jax.random.bernoulli(key, 0.6))(keys[:, i]) for i in (0, 1))
    encode = lambda clicks: module.apply(params, image, clicks, method='encode')
    update = lambda features, clicks: module.apply(params, features, clicks, on, method='update')
    features = encode(clicks)
    guess = jax.lax.stop_gradient(update(features, clicks)) > 0
    wrong = (guess != (mask == scenes.OBJECT)) & (mask != scenes.IGNORE)
    clicks = jax.vmap(_corrected)(keys[:, 2], clicks, wrong, mask)
    logits = update(encode(clicks) if module.clicks == 'channels' else features, clicks)
    target, counts = (
      (mask == scenes.OBJECT).astype(jnp.float32),
      (mask != scenes.IGNORE).astype(jnp.float32),
    )
    entropy = jnp.maximum(logits, 0) - logits * target + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    p = jax.nn.sigmoid(logits) * counts
    total = lambda x: jnp.sum(x, (1, 2))
    iou = (total(p * target) + 1) / (total(p + target * counts - p * target) + 1)
    return jnp.mean(total(entropy * counts) / jnp.maximum(total(counts), 1) + 1 - iou)

  return loss_fn


def folders(spec: specs.Segmentation, workdir: str) -> dict[str, str]:
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
  optimiser = trainer.make_optimiser(spec.train)
  for clicks, folder in folders(spec.segmentation, workdir).items():
    module = network(spec.segmentation, clicks)

    def fresh():
      params = _init(module, spec.segmentation, spec.seed)
      return trainer.State(jnp.zeros((), jnp.int32), params, params, optimiser.init(params))

    trainer.fit(
      spec.train,
      fresh,
      lambda: trainer.updater(spec.train, optimiser, loss_of(module, spec.seed)),
      functools.partial(make_batch, spec, examples),
      _about(spec.segmentation, clicks),
      folder,
    )


def load(spec: specs.Spec, workdir: str, clicks: str = 'tokens') -> tuple[Segmenter, Any]:
  """(network, parameters) of a workdir.

  Raises:
    UserError: if there is no checkpoint, or it is of another network.
  """
  module, store = (
    network(spec.segmentation, clicks),
    Store(folders(spec.segmentation, workdir)[clicks]),
  )
  found = {key: value for key, value in store.about().items() if key != 'format'}
  if found != _about(spec.segmentation, clicks):
    raise UserError(
      f'the checkpoint in {store.path} is of {found}, the config says '
      f'{_about(spec.segmentation, clicks)}; use its config, or another --workdir'
    )
  template = {'net': jax.eval_shape(lambda: _init(module, spec.segmentation, 0))}
  params = store.weights(template)['net']
  store.close()
  return module, params
