"""What metrics are computed on. A feature network is a pair of functions behind one name.

`classifier` is a small network trained on the same data, once, and kept under the hash of its
data and settings: its distances compare samplers on one data set, and nothing else.
"""

import hashlib
import os
from typing import Any, Callable, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import serialization
from tqdm import tqdm

from gmm_diffusion import parallel
from gmm_diffusion.aliases import UserError
from gmm_diffusion.data import sources


class Features(NamedTuple):
  """A feature network.

  Attributes:
    extract: data in the form of `Data.train` [N, ...] -> (features [N, D], logits [N, C] or None).
    name: for records, with the hash of the weights.
  """

  extract: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]
  name: str


class Classifier(nn.Module):
  """Three strided convolutions and a hidden layer of 64; returns (features, logits)."""

  classes: int

  @nn.compact
  def __call__(self, x):
    for channels in (32, 64, 128):
      x = nn.relu(nn.Conv(channels, (3, 3), 2 if min(x.shape[1:3]) > 4 else 1)(x))
    features = nn.relu(nn.Dense(64)(x.reshape(len(x), -1)))
    return features, nn.Dense(self.classes)(features)


SETTINGS = {'steps': 1000, 'batch': 128, 'learning_rate': 1e-3, 'weight_decay': 1e-4, 'version': 1}


def fingerprint(*arrays: np.ndarray) -> str:
  """Twelve hexadecimal digits of the SHA-256 of arrays."""
  digest = hashlib.sha256()
  for array in arrays:
    digest.update(f'{array.dtype}{array.shape}'.encode())
    digest.update(np.ascontiguousarray(array))
  return digest.hexdigest()[:12]


def _train(net: Classifier, data: sources.Data, params: Any) -> Any:
  steps = SETTINGS['steps']
  optimiser = optax.adamw(optax.cosine_decay_schedule(SETTINGS['learning_rate'], steps), weight_decay=SETTINGS['weight_decay'])
  x = sources.to_model(data.train)

  @jax.jit
  def update(params, state, images, labels):
    def loss(p):
      return optax.softmax_cross_entropy_with_integer_labels(net.apply(p, images)[1], labels).mean()

    updates, state = optimiser.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state

  state = optimiser.init(params)
  for step in tqdm(range(steps), desc='feature network', unit='step', dynamic_ncols=True):
    index = sources.batch_indices(0, step, len(x), SETTINGS['batch'])
    params, state = update(params, state, x[index], data.train_labels[index])
  return params


def classifier(data: sources.Data, cache: str) -> Features:
  """The classifier of a data set, trained or read from the folder `cache`."""
  if not data.is_image:
    raise UserError("features 'classifier' needs images; valid here: identity")
  net = Classifier(data.classes)
  params = net.init(jax.random.key(0), jnp.zeros((1,) + data.shape))
  key = hashlib.sha256(f'{fingerprint(data.train, data.train_labels)}{sorted(SETTINGS.items())}'.encode()).hexdigest()[:12]
  path = os.path.join(cache, f'classifier-{key}.msgpack')
  if os.path.exists(path):
    with open(path, 'rb') as file:
      content = file.read()
    try:
      params = serialization.from_bytes(params, content)
    except Exception as error:  # msgpack and flax raise many kinds
      raise UserError(f'cannot read feature network {path}; remove the file to train it again') from error
  else:
    params = jax.device_get(_train(net, data, params))
    os.makedirs(cache, exist_ok=True)
    with open(path + '.tmp', 'wb') as file:
      file.write(serialization.to_bytes(params))
    os.replace(path + '.tmp', path)
  call, shared = parallel.map_batches(lambda p, x: net.apply(p, x), 256), parallel.replicate(params, local=True)
  # features of mean square one on the training set, so that distances have a readable size
  size = np.sqrt(np.mean(np.square(call(shared, sources.to_model(data.train))[0], dtype=np.float64)))

  def extract(x):
    features, logits = call(shared, sources.to_model(x))
    return features / size, logits

  name = f'classifier-{key}-{fingerprint(*jax.tree.leaves(jax.tree.map(np.asarray, params)))}'
  return Features(extract, name)


def identity(data: sources.Data, cache: str) -> Features:
  """The data itself, flattened."""
  del cache
  return Features(lambda x: (sources.to_model(x).reshape(len(x), -1), None), f'identity-{int(np.prod(data.shape))}')


FEATURES = {'classifier': classifier, 'identity': identity}


def load(name: str, data: sources.Data, cache: str) -> Features:
  """A feature network by name."""
  if name not in FEATURES:
    raise UserError(f'unknown evaluate.features {name!r}; valid: {", ".join(FEATURES)}')
  return FEATURES[name](data, cache)
