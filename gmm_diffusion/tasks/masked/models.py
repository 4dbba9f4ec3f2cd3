"""The predictor of masked diffusion: a network that is trained here, or the training images."""

import functools
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmm_diffusion import files, nets, parallel, specs
from gmm_diffusion.checkpoints.store import Store
from gmm_diffusion.data import base
from gmm_diffusion.discrete import counts, pixels, predictors, process, reveal
from gmm_diffusion.discrete.process import Predictor
from gmm_diffusion.engine import build, drawing, trainer
from gmm_diffusion.engine.runs import Run
from gmm_diffusion.maths import noise

SCHEMES = {  # what is compared: (order, counts)
  'first hitting': ('first_hitting', 'uniform'),
  'first hitting, cosine counts': ('first_hitting', 'cosine'),
  'first hitting, best counts': ('first_hitting', 'best'),
  'ancestral': ('ancestral', 'uniform'),
}
_AT_ONCE = 8
_COUNTED = 128  # training images from which the best counts are found


def net(spec: specs.Spec, data: base.Data) -> Any:
  """The network: one-hot pixels in, logits of their levels out."""
  return build.net(spec, data, spec.masked.levels * data.shape[-1])


def init(spec: specs.Spec, data: base.Data) -> Any:
  """First weights of the network."""
  H, W, C = data.shape
  return build.init(net(spec, data), (H, W, C * (spec.masked.levels + 1)), spec.seed)


def about(spec: specs.Spec, data: base.Data) -> dict[str, Any]:
  """What the weights belong to."""
  known = build.about(spec, data)
  kept = {key: known[key] for key in ('net', 'shape', 'classes')}
  return {**kept, 'masked': {'levels': spec.masked.levels}}


def loss(spec: specs.Spec, data: base.Data) -> Callable[[Any, Any, Any], Any]:
  """loss_fn(params, step, batch) -> the bound of process (2), in bits of a token; batch is (images,
  labels, positions in the whole batch). All that is drawn depends on (seed, step, position)."""
  module, levels = net(spec, data), spec.masked.levels
  size = int(np.prod(data.shape))

  def loss_fn(params, step, batch):
    images, labels, position = batch
    root = jax.random.fold_in(jax.random.key(spec.seed), step)
    keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(root, i), 3))(position)
    if spec.data.flip:
      flip = jax.vmap(jax.random.bernoulli)(keys[:, 2])[:, None, None, None]
      images = jnp.where(flip, images[:, :, ::-1], images)
    progress = {'progress': step / spec.train.steps} if nets.has_schedule(module) else {}
    apply = functools.partial(module.apply, params, train=True, **progress)
    if nets.draws(module):
      one = lambda hot, t, label, key: apply(
        hot[None], t[None], label[None], rngs={'dropout': key}
      )[0]
      many = lambda hot, t, cond: jax.vmap(one)(hot, t, cond, keys[:, 1])
    else:
      many = apply
    predictor = predictors.network(many, data.shape, levels)
    x = pixels.tokens(images, levels)
    nats = process.bound(predictor, x, keys[:, 0], levels, cond=labels)
    return jnp.mean(nats) / (size * np.log(2))

  return loss_fn


def train(run: Run) -> None:
  """Trains to train.steps, from the latest checkpoint of the workdir if there is one."""
  spec, data, optimiser = run.spec, run.data, trainer.make_optimiser(run.spec.train)

  def fresh():
    params = init(spec, data)
    return trainer.first(params, optimiser)

  trainer.fit(
    spec.train,
    trainer.once(fresh),
    lambda: trainer.updater(spec.train, optimiser, loss(spec, data)),
    lambda step, mine: base.labelled_batch(data, spec.seed, step, spec.train.batch, mine),
    about(spec, data),
    run.workdir,
    ahead=spec.data.stream,
  )


class Model:
  """A predictor with its weights on the devices.

  Attributes:
    hash: of the weights.
  """

  def __init__(self, run: Run):
    """Reads the weights; raises UserError where there are none of this network."""
    self.spec, self.data, self.workdir = run.spec, run.data, run.workdir
    self.levels, self.tokens = run.spec.masked.levels, int(np.prod(run.data.shape))
    if run.spec.masked.predictor == 'exact':
      weights = pixels.tokens(np.asarray(run.data.train), self.levels)
    else:
      abstract = jax.eval_shape(functools.partial(init, run.spec, run.data))
      dtype = jnp.dtype(run.spec.net.dtype)
      with Store(run.workdir) as store:
        build.check_about(store, about(run.spec, run.data))
        template = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), abstract)
        weights = store.weights({'net': template})['net']
    self.hash = build.tree_hash(weights)
    self._weights, self._kept = parallel.replicate(weights, local=True), {}

  def predictor(self, weights: Any) -> Predictor:
    """Of weights, which are the tokens of the training images where they are exact."""
    own = self.spec.masked
    if own.predictor == 'exact':
      return predictors.exact(weights, self.levels, own.epsilon, own.width).predictor
    apply = functools.partial(net(self.spec, self.data).apply, weights)
    return predictors.network(apply, self.data.shape, self.levels)

  def labels(self, ids: np.ndarray) -> np.ndarray:
    """The class of each sample, as drawing.labels_of."""
    return drawing.labels_of(self.spec, self.data, ids)

  def bits(self, images: np.ndarray, labels: np.ndarray, advance: Any = None) -> np.ndarray:
    """The bound on the bits of each token of images uint8 [N, H, W, C], float64 [N]."""
    draws, ids = self.spec.masked.draws, np.arange(len(images), dtype=np.uint32)

    def fn(weights, batch):
      x, labels, ids = batch
      keys = noise.sample_keys(self.spec.seed, ids)
      return process.bound(self.predictor(weights), x, keys, self.levels, draws, labels)

    batch = pixels.tokens(images, self.levels), labels, ids
    nats = self._mapped('bits', fn, len(images))(self._weights, batch, advance)
    return process.bits_per_token(nats, self.tokens)

  @functools.cached_property
  def cost(self) -> np.ndarray:
    """counts.lost of training images, kept in the workdir."""
    count = min(_COUNTED, len(self.data.train))
    mark = f'counts {self.settings()} {self.hash} {count} {self.spec.seed}'
    path = os.path.join(self.workdir, f'counts-{drawing.mark_of(mark)}.npz')

    def make():
      ids = np.arange(count, dtype=np.uint32)

      def fn(weights, batch):
        x, labels, ids = batch
        keys = noise.sample_keys(self.spec.seed, ids)
        return counts.known(self.predictor(weights), x, keys, self.levels, labels)

      x = pixels.tokens(np.asarray(self.data.train[:count]), self.levels)
      batch, tables = (x, self.data.train_labels[:count], ids), []
      for start in range(0, count, _AT_ONCE):  # each item has L^2 numbers
        part = jax.tree.map(lambda leaf, start=start: leaf[start : start + _AT_ONCE], batch)
        tables.append(np.mean(self._mapped('cost', fn, _AT_ONCE)(self._weights, part), 0))
      return {'lost': counts.lost(np.stack(tables))}

    return files.kept(path, mark, make, lambda found: 'lost' in found)['lost']

  def counts(self, name: str, calls: int) -> np.ndarray:
    """The tokens of each call, as masked.counts names them."""
    if name == 'best':
      return counts.best(self.cost, calls)
    return getattr(counts, name)(self.tokens, calls)

  def settings(self) -> dict[str, Any]:
    """What samples depend on besides order, counts and weights."""
    own = self.spec.masked
    out = {'levels': own.levels, 'predictor': own.predictor}
    return out | ({'epsilon': own.epsilon, 'width': own.width} if own.predictor == 'exact' else {})

  def drawer(
    self,
    order: str,
    calls: int,
    count: int,
    known: np.ndarray | None = None,
    name: str = 'uniform',
    classes: np.ndarray | None = None,
  ) -> drawing.Drawer:
    """A drawing.Drawer of images.

    Args:
      order: a name in reveal.ORDERS.
      calls: of the predictor; 0 is one a token.
      count: of samples in one draw, at most.
      known: tokens [K, L] that are given, to one sample after another in turn.
      name: of the counts, for first_hitting.
      classes: [K], of what is known; None has those of sample.label in turn.
    """
    labels = self.labels
    if classes is not None and drawing.takes_labels(self.spec, self.data):
      labels = lambda ids: classes[ids % len(classes)]
    calls, shape = calls or self.tokens, self.data.shape
    each = self.counts(name, calls) if order == 'first_hitting' else None

    def fn(weights, batch):
      ids, labels, start = batch
      found = reveal.sample(
        self.predictor(weights), self.levels, self.tokens, ids, self.spec.seed, calls, order,
        start, labels, each,
      )  # fmt: skip
      return found.x

    def draw(ids, advance):
      begin, ids = time.perf_counter(), np.asarray(ids, np.uint32)
      given = np.full((1, self.tokens), self.levels, np.int32) if known is None else known
      batch = ids, labels(ids), given[ids % len(given)]
      x = self._mapped((order, calls, name), fn, count)(self._weights, batch, advance)
      images = pixels.pictures(x, self.levels, shape)
      return {'x': images, 'nfe': np.int64(calls), 'seconds': time.perf_counter() - begin}

    settings = {'order': order, 'calls': calls, **self.settings()}
    settings['counts'] = None if each is None else each.tolist()
    takes = drawing.takes_labels(self.spec, self.data)
    depends = [settings, self.hash, self.spec.sample.label, list(shape), self.spec.seed]
    depends += [] if known is None else [build.tree_hash((known, labels(np.arange(len(known)))))]
    mark = drawing.mark_of(depends)
    words = [order, str(calls), self.spec.masked.predictor, name]
    words += ['restored'] * (known is not None)
    return drawing.Drawer(
      order,
      drawing.name_of(words, self.spec.seed, mark),
      settings,
      [],
      self.spec.seed,
      draw,
      labels if takes else None,
      self.hash,
      mark,
    )

  def _mapped(self, what, fn, count):
    """`fn` over batches; compiled once for each `what`."""
    own = self.spec.sample
    size = min(own.batch, -(-min(count, own.shard) // jax.local_device_count()))
    if (what, size) not in self._kept:
      self._kept[what, size] = parallel.map_batches(fn, size)
    return self._kept[what, size]
