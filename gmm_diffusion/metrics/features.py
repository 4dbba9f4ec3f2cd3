"""What metrics are computed on. A feature network is a function from images to arrays, behind a
name.

`inception` is the network of published values. `classifier` is a small network trained on the same
data, once, and kept under the hash of its data and settings: its distances compare samplers on one
data set, and nothing else. `rotation` is the same network for data without classes: it learns to
tell by how many quarter turns an image was turned [Gidaris et al. 2018]. `gradients` are no
network: what they say does not depend on what any network has learned.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from tqdm import tqdm

from gmm_diffusion import files, parallel
from gmm_diffusion.data import base
from gmm_diffusion.data.image_sets import ArraySet, ImageSet
from gmm_diffusion.errors import UserError
from gmm_diffusion.metrics import inception
from gmm_diffusion.metrics.frechet import Accumulator, Statistics


class Extracted(NamedTuple):
  """What a feature network says of N images, float32; None is what it does not have, or what was
  not asked for.

  Attributes:
    features: [N, D].
    logits: [N, C], for scores.
    spatial: [N, S], for the spatial Frechet distance.
  """

  features: Any = None
  logits: np.ndarray | None = None
  spatial: np.ndarray | None = None


class Features(NamedTuple):
  """A feature network.

  Attributes:
    extract: data in the form of `Data.train` [N, ...] -> Extracted.
    name: for records, with the hash of the weights, the resize and the dtype.
    dimensions: the fields of Extracted that it fills, and their widths.
    shape: of the images that it takes; () is any.
    published: whether others publish statistics of the same features.
  """

  extract: Callable[[np.ndarray], Extracted]
  name: str
  dimensions: dict[str, int]
  shape: tuple[int, ...] = ()
  published: bool = False


class FeatureNet(nn.Module):
  """Three strided convolutions and a hidden layer of 64; returns (features, logits)."""

  classes: int

  @nn.compact
  def __call__(self, x):
    for channels in (32, 64, 128):
      x = nn.relu(nn.Conv(channels, (3, 3), 2 if min(x.shape[1:3]) > 4 else 1)(x))
    features = nn.relu(nn.Dense(64)(x.reshape(len(x), -1)))
    return features, nn.Dense(self.classes)(features)


SETTINGS: dict[str, Any] = {
  'steps': 1000,
  'batch': 128,
  'learning_rate': 1e-3,
  'weight_decay': 1e-4,
  'version': 1,
}


def _train(net: FeatureNet, data: base.Data, params: Any, turn: bool, seed: int) -> Any:
  steps = SETTINGS['steps']
  optimiser = optax.adamw(
    optax.cosine_decay_schedule(SETTINGS['learning_rate'], steps),
    weight_decay=SETTINGS['weight_decay'],
  )

  @jax.jit
  def update(params, state, images, labels):
    def loss(p):
      return optax.softmax_cross_entropy_with_integer_labels(net.apply(p, images)[1], labels).mean()

    updates, state = optimiser.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state

  state = optimiser.init(params)
  for step in tqdm(range(int(steps)), desc='feature network', unit='step', dynamic_ncols=True):
    index = base.batch_indices(seed, step, len(data.train), int(SETTINGS['batch']))
    images, labels = base.to_model(data.train[index]), data.train_labels[index]
    if turn:
      labels = np.random.RandomState([seed, step]).randint(4, size=len(index)).astype(np.int32)
      images = np.stack([np.rot90(image, n) for image, n in zip(images, labels)])
    params, state = update(params, state, images, labels)
  return params


_PARTS, _DIRECTIONS = 4, 9  # of `gradients`
TUNING = 1  # seed of the networks that tuning looks at; those of the judge have 0
PER_DEVICE = 64  # images in the Inception network at a time on each device


def classifier(data: base.Data, cache: str, weights: str) -> Features:
  """The classifier of a data set, trained or read from the folder `cache`."""
  del weights
  return _trained('classifier', data, cache)


def rotation(data: base.Data, cache: str, weights: str) -> Features:
  """The network that tells how images of a data set were turned, trained or read from `cache`."""
  del weights
  return _trained('rotation', data, cache)


class Learned(NamedTuple):
  """A network that was trained on a data set: net, its parameters, what it belongs to, and the root
  mean square of its features on the training set."""

  net: FeatureNet
  params: Any
  key: str
  size: float

  def features(self, x: Any) -> Any:
    """Features of data in [-1, 1], [B, ...] -> [B, 64], of mean square one on the training set; a
    pure function."""
    return self.net.apply(self.params, x)[0] / self.size


def learned(kind: str, data: base.Data, cache: str, seed: int = 0) -> Learned:
  """The network of the features 'classifier' or 'rotation', trained or read from the folder
  `cache`. Those of other seeds than 0 see the data as it does, and are not it."""
  if not len(data.train):
    raise UserError(
      f"features {kind!r} are trained on the config's data, which has no images; use "
      'evaluate.features=inception'
    )
  if not data.is_image:
    raise UserError(f'features {kind!r} needs images; valid here: identity')
  turn = kind == 'rotation'
  if not turn and data.classes < 2:
    raise UserError(
      "features 'classifier' need data with classes; valid here: rotation, identity, inception"
    )
  if turn and data.shape[0] != data.shape[1]:
    raise UserError("features 'rotation' need square images; valid here: identity, inception")
  net = FeatureNet(4 if turn else data.classes)
  params = net.init(jax.random.key(seed), jnp.zeros((1,) + data.shape))
  about = (
    f'{files.fingerprint(data.train, np.asarray(data.train_labels))}{sorted(SETTINGS.items())}'
  )
  key = hashlib.sha256((about + f' seed {seed}' * bool(seed)).encode()).hexdigest()[:12]
  shapes = {name: leaf.shape for name, leaf in traverse_util.flatten_dict(params, sep='/').items()}
  make = lambda: jax.device_get(_train(net, data, params, turn, seed))
  found = files.kept(
    os.path.join(cache, f'{kind}-{key}.npz'),
    key,
    lambda: traverse_util.flatten_dict(make(), sep='/'),
    lambda found: {name: leaf.shape for name, leaf in found.items()} == shapes,
  )
  params = traverse_util.unflatten_dict(found, sep='/')
  call = parallel.map_batches(lambda p, x: net.apply(p, x)[0], 256)
  shared, known = parallel.replicate(params, local=True), ArraySet(data.train, 'training items')
  parts = [call(shared, base.to_model(block)) for block in known.batches(_batch(data.shape))]
  size = np.sqrt(np.mean(np.square(np.concatenate(parts), dtype=np.float64)))
  return Learned(net, params, key, float(size))


def for_tuning(data: base.Data, cache: str) -> list[Learned]:
  """The networks that tuning looks at: of each kind that the data can train, and of another seed
  than those of the judge."""
  kinds = {
    'classifier': data.classes > 1,
    'rotation': data.is_image and data.shape[0] == data.shape[1],
  }
  if not data.is_image or not len(data.train):
    return []
  return [learned(kind, data, cache, TUNING) for kind, can in kinds.items() if can]


def _trained(kind: str, data: base.Data, cache: str) -> Features:
  """Features of a network that is trained on the data; logits only where they are of classes."""
  net, params, key, size = learned(kind, data, cache)
  call, shared = (
    parallel.map_batches(lambda p, x: net.apply(p, x), 256),
    parallel.replicate(params, local=True),
  )

  def extract(x):
    features, logits = call(shared, base.to_model(x))
    return Extracted(features / np.float64(size), None if kind == 'rotation' else logits)

  weights = files.fingerprint(*jax.tree.leaves(jax.tree.map(np.asarray, params)))
  name = f'{kind}-{key}-{weights}-float32'
  widths = {'features': 64} | ({} if kind == 'rotation' else {'logits': data.classes})
  return Features(extract, name, widths, data.shape)


def identity(data: base.Data, cache: str, weights: str) -> Features:
  """The data itself, flattened."""
  del cache, weights
  width = int(np.prod(data.shape))
  return Features(
    lambda x: Extracted(base.to_model(x).reshape(len(x), -1)),
    f'identity-{width}',
    {'features': width},
    data.shape,
  )


def inception_features(data: base.Data, cache: str, weights: str) -> Features:
  """The Inception network from the file `weights`, or else from that of its public name in the
  folder `cache`."""
  del data
  params = inception.load(inception.place(cache, weights))
  call = inception.activations(params, PER_DEVICE)

  def extract(images):
    if images.shape[-1] == 1:  # grey
      images = np.repeat(images, 3, -1)
    found = call(images)
    return Extracted(found.pool3, found.logits, found.spatial)

  return Features(
    extract,
    f'inception-{inception.SHA256}-bilinear_tf1_299-float32',
    {'features': 2048, 'logits': 1008, 'spatial': 2023},
    published=True,
  )


def gradients(data: base.Data, cache: str, weights: str) -> Features:
  """Histograms of oriented gradients [Dalal & Triggs 2005] of the grey image: 9 directions in each
  of 4 x 4 parts, of which 2 x 2 together have length one. No network learned them."""
  del cache, weights
  if not data.is_image or min(data.shape[:2]) < _PARTS:
    raise UserError(
      f"features 'gradients' need images of at least {_PARTS} x {_PARTS}; valid here: identity"
    )

  def extract(x):
    down, right = np.gradient(np.mean(x, -1, dtype=np.float32), axis=(1, 2))
    length, turn = np.hypot(down, right), np.arctan2(down, right) % np.pi
    kind = np.minimum((turn / np.pi * _DIRECTIONS).astype(np.int8), _DIRECTIONS - 1)
    down, right = (np.arange(_PARTS) * side // _PARTS for side in kind.shape[1:])
    sums = lambda x: np.add.reduceat(np.add.reduceat(x, down, 1), right, 2)
    each = np.stack([sums(length * (kind == i)) for i in range(_DIRECTIONS)], -1)
    blocks = np.lib.stride_tricks.sliding_window_view(each, (2, 2), (1, 2))
    blocks = blocks.reshape(len(x), (_PARTS - 1) ** 2, 4 * _DIRECTIONS)
    blocks = blocks / (np.linalg.norm(blocks, axis=2, keepdims=True) + 1.0)
    return Extracted(blocks.reshape(len(x), -1))

  return Features(
    extract, 'gradients', {'features': 4 * _DIRECTIONS * (_PARTS - 1) ** 2}, data.shape
  )


FEATURES = {
  'classifier': classifier,
  'rotation': rotation,
  'identity': identity,
  'inception': inception_features,
  'gradients': gradients,
}


def check_name(name: str) -> None:
  """Raises UserError for a name that is not in the table."""
  if name not in FEATURES:
    raise UserError(f'unknown evaluate.features {name!r}; valid: {", ".join(FEATURES)}')


def load(name: str, data: base.Data, cache: str, weights: str = '') -> Features:
  """A feature network by name; `weights` is the file of those that are not made here."""
  check_name(name)
  return FEATURES[name](data, cache, weights)


def preprocessing(features: Features, shape: tuple[int, ...]) -> str:
  """What happens to images of this shape on their way into the network, for records."""
  if features.shape:
    return 'none' if len(shape) < 3 else 'x / 127.5 - 1'
  return 'TF1 bilinear to 299 x 299, (x - 128) / 128' + (
    ', grey repeated to RGB' if shape[-1] == 1 else ''
  )


def _batch(shape: tuple[int, ...]) -> int:
  """Images in one call of extract: about 64 MB."""
  return int(np.clip(2**26 // int(np.prod(shape)) // PER_DEVICE * PER_DEVICE, PER_DEVICE, 1024))


def _ahead(batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
  """The same batches, each read while the one before is used."""
  batches = iter(batches)
  with futures.ThreadPoolExecutor(1) as pool:
    future = pool.submit(next, batches, None)
    while (batch := future.result()) is not None:
      future = pool.submit(next, batches, None)
      yield batch


def stream(features: Features, images: ImageSet, title: str, batch: int = 0) -> Iterator[Extracted]:
  """What the network says of stored images, batch by batch (0: as many as are quick), with a
  progress bar where there is a title."""
  if features.shape and images.shape != features.shape:
    raise UserError(
      f'{images.what} has images of {sizes(images.shape)}, the features {features.name} need '
      f'{sizes(features.shape)}'
    )
  with tqdm(
    total=len(images), desc=title, unit='image', dynamic_ncols=True, disable=not title
  ) as bar:
    for part in _ahead(images.batches(batch or _batch(images.shape))):
      yield features.extract(part)
      bar.update(len(part))


def check_finite(found: Extracted, what: str, first: int) -> None:
  """Raises UserError where a feature is not finite; `first` is the number of the first image."""
  assert found.features is not None
  bad = ~np.isfinite(found.features).all(1)
  if bad.any():
    raise UserError(
      f'{bad.sum()} of {what} have non-finite features, the first is number {first + bad.argmax()}'
    )


def sizes(shape: tuple[int, ...]) -> str:
  """A shape for people: 32 x 32 x 3."""
  return ' x '.join(map(str, shape))


def gather(
  features: Features,
  images: ImageSet,
  title: str,
  keep: Iterable[str],
  moments: Iterable[str] = (),
  batch: int = 0,
) -> tuple[Extracted, dict[str, Statistics], int]:
  """(Extracted with the fields in `keep`, statistics of those in `moments`, number of images), in
  one pass.

  Memory: 4 bytes a value of what is kept, and one batch. Raises UserError where a feature is not
  finite.
  """
  kept = {name: np.empty((len(images), features.dimensions[name]), np.float32) for name in keep}
  sums, done = {name: Accumulator() for name in moments}, 0
  for found in stream(features, images, title, batch):
    check_finite(found, images.what, done)
    assert found.features is not None
    n = len(found.features)
    for name, array in kept.items():
      array[done : done + n] = getattr(found, name)
    for name, total in sums.items():
      total.add(getattr(found, name))
    done += n
  if done < 2:
    raise UserError(f'{images.what} has {done} readable images; metrics need at least 3')
  return (
    Extracted(**{name: array[:done] for name, array in kept.items()}),
    {name: total.statistics() for name, total in sums.items()},
    done,
  )
