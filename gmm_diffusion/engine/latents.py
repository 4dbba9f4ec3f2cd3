"""Training in latents [LDM section 3]: the first stage, whose weights stay as they are, and the
latents of the training images, which are computed once.

They lie in WORKDIR/autoencoder and WORKDIR/latents. Latents are float16: of a VQ autoencoder before
quantisation, of a KL autoencoder mean and log-variance, so that each step draws anew.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmm_diffusion import files, parallel, specs
from gmm_diffusion.checkpoints.store import Store
from gmm_diffusion.data import base, npz, streams
from gmm_diffusion.engine import build, released, shards
from gmm_diffusion.errors import UserError

FOLDER = 'latents'  # of a workdir
_SIZE = 1024  # images of a file, at least
_FILES = 256  # at most, as each of them stays open
_MEASURED = 64  # images by which the scale of latents is found


def first_stage(spec: specs.Spec, data: base.Data, workdir: str) -> dict[str, Any]:
  """The variables of the autoencoder with its 'latent_scale', float32 on the host, which are put
  into WORKDIR/autoencoder where they are not there yet: from the workdir that the training starts
  from, from the file that the config names, or drawn at random.

  Raises:
    UserError: there is no such file, what is there is another autoencoder, or a setting is for
      pixels alone.
  """
  if spec.train.noisy:
    raise UserError(
      'train.noisy is for pixels, and this network is trained in latents; set it to 0'
    )
  build.denoiser(spec, data)  # other bad settings before anything slow
  spec = dataclasses.replace(spec, net=dataclasses.replace(spec.net, dtype='float32'))
  template = {'autoencoder': build.template(spec, data)['autoencoder']}
  about = {'autoencoder': build.about(spec, data)['autoencoder']}
  given = not spec.train.start and spec.autoencoder.weights.format not in ('', build.RANDOM)
  place = os.path.join(workdir, build.FIRST_STAGE)
  path = os.path.join(place, 'checkpoints')
  with files.locked(path) if parallel.is_main() else contextlib.nullcontext():
    with Store(place) as store:
      there = store.latest() is not None
      if there and given:
        released.check_origins(store, spec, data, workdir)
    if not there:
      made = _made(spec, data, workdir, template)
      made['latent_scale'] = np.float32(made['latent_scale'] or _scale(spec, data, made))
      files.make_workdir(place)
      origin = {'weights': released.origin(spec.autoencoder.weights, workdir)} if given else {}
      known = {'autoencoder': about['autoencoder'] | origin, 'hash': build.tree_hash(made)}
      released.save({'autoencoder': made}, known, place)
  files.remove_lock(path)
  with Store(place) as store:
    build.check_about(store, about)
    return store.weights(template)['autoencoder']


def _made(spec, data, workdir, template):
  """The variables from where the config says."""
  if spec.train.start:
    apart = os.path.join(spec.train.start, build.FIRST_STAGE)
    with Store(apart if os.path.isdir(apart) else spec.train.start) as store:
      build.check_about(store, {'autoencoder': build.about(spec, data)['autoencoder']})
      return store.weights(template)['autoencoder']
  if spec.autoencoder.weights.format == build.RANDOM:
    print('the autoencoder is random: images will be noise', flush=True)
    drawn = build.random_weights(template, spec.seed)['autoencoder']
    return dict(drawn, latent_scale=spec.autoencoder.scale)
  if not spec.autoencoder.weights.format:
    raise UserError(
      'a network in latents is trained on a released autoencoder; set autoencoder.weights.format '
      'and autoencoder.weights.path'
    )
  return released.read_part(spec, data, workdir, 'autoencoder')


def _scale(spec, data, arrays):
  """What makes the deviation of latents 1, by the first images."""
  count = min(_MEASURED, len(data.train))
  found = _encoder(spec)(
    parallel.replicate(arrays, local=True), np.asarray(data.train[:count]), None
  )
  return 1 / _as_latents(spec, found.astype(np.float32), 1.0).std()


def _as_latents(spec, stored, scale):
  """The latents that the network sees, of KL their mean."""
  return scale * stored[..., : spec.autoencoder.latent_channels]


def _encoder(spec):
  """(autoencoder on the devices, uint8 images, advance) -> what is stored, float16."""
  module = build.autoencoder(spec)
  method = 'encode' if spec.autoencoder.name == 'vq' else 'moments'

  def encode(arrays, images):
    x = jnp.asarray(base.LEVELS)[images]
    return module.apply({'params': arrays['params']}, x, method=method).astype(jnp.float16)

  return parallel.map_batches(encode, spec.autoencoder.batch)


class Latents:
  """What is stored of all images, and with data.flip behind them of their mirror images. Numbers
  give an array; all else stays on disk."""

  def __init__(self, paths: list[str]):
    self._parts = []
    for path in paths:
      with npz.Npz(path) as file:
        self._parts.append(file.mapped('latents'))

  def __len__(self):
    return sum(map(len, self._parts))

  def __getitem__(self, index: np.ndarray) -> np.ndarray:
    size = len(self._parts[0])  # the last one may be shorter
    return np.stack([self._parts[i // size][i % size] for i in np.asarray(index).tolist()])


def encoded(spec: specs.Spec, data: base.Data, workdir: str, arrays: dict[str, Any]) -> Latents:
  """The latents of the training images, from WORKDIR/latents as far as they are there. Several
  processes share the work, and a stop loses at most one file of each.

  Args:
    spec, data: of the run.
    workdir: of the run.
    arrays: of `first_stage`.
  """
  copies, count = 1 + spec.data.flip, len(data.train)
  spec = dataclasses.replace(spec, net=dataclasses.replace(spec.net, dtype='float32'))
  source = dataclasses.replace(spec.data, path='', stream=False, limit=0)
  ends = np.asarray(data.train[:1]), np.asarray(data.train[-1:])
  mark = files.fingerprint(build.tree_hash(arrays), source, count, *ends)
  encode, replicas = _encoder(spec), parallel.replicate(arrays, local=True)

  def image(number):
    found = data.train[number % count]
    return found if number < count else found[:, ::-1]

  def make(ids, advance):
    images = np.stack(list(streams.mapped(lambda i: image(ids[i]), len(ids))))
    return {'latents': encode(replicas, images, advance)}

  folder, total = os.path.join(workdir, FOLDER), copies * count
  size = max(_SIZE, -(-total // _FILES))
  shards.fill(folder, mark, total, size, make, 'encoding', whole=False)
  paths = [shards.path_of(folder, ids) for ids in shards.ranges(total, size)]
  out = Latents(paths)
  some = out[np.arange(min(_SIZE, len(out)))].astype(np.float32)
  deviation = _as_latents(spec, some, arrays['latent_scale']).std()
  shape = ' x '.join(map(str, some.shape[1:]))
  print(f'{len(out)} latents of {shape}, deviation {deviation:.3g}', flush=True)
  if not 0.5 < deviation < 2:
    print(
      'their deviation should be near 1; autoencoder.scale=0, in another --workdir, makes it so',
      flush=True,
    )
  return out


def drawn(
  spec: specs.Spec, arrays: dict[str, Any]
) -> Callable[[Any, Any], tuple[Any, Callable[[Any], Any]]]:
  """`given` of loss.denoising_loss: (what is stored [B, ...], a key for each) -> (latents, the
  network's input as it is)."""
  scale = np.float32(arrays['latent_scale'])

  def given(stored, keys):
    stored = stored.astype(jnp.float32)
    z = _as_latents(spec, stored, scale)
    if spec.autoencoder.name == 'kl':
      log_variance = stored[..., spec.autoencoder.latent_channels :]
      noise = jax.vmap(lambda key: jax.random.normal(key, z.shape[1:]))(keys)
      z = z + scale * jnp.exp(0.5 * log_variance) * noise
    return z, lambda inputs: inputs

  return given
