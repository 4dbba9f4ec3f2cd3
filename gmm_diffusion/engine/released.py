"""Released weights: --mode=fetch downloads them, --mode=convert makes a checkpoint of them that
sampling loads."""

import contextlib
import hashlib
import os
import shutil
import time
import urllib.parse
from typing import Any

import jax
import numpy as np

from gmm_diffusion import files, parallel, specs
from gmm_diffusion.checkpoints import importers, tensor_files
from gmm_diffusion.checkpoints.fetch import check, needed, sha256_of
from gmm_diffusion.checkpoints.fetch import fetch as download
from gmm_diffusion.checkpoints.store import Store
from gmm_diffusion.data import base
from gmm_diffusion.engine import build
from gmm_diffusion.errors import UserError


def is_released(spec: specs.Spec) -> bool:
  """Whether the network's weights come from a file of others."""
  return spec.net.weights.format not in ('', build.RANDOM)


def place(weights: specs.Weights, workdir: str) -> str:
  """Where a weights file is, or should be."""
  if weights.path:
    return os.path.abspath(os.path.expanduser(weights.path))
  if not weights.url:
    raise UserError(
      'net.weights, autoencoder.weights or classifier.weights has neither path nor url; give the '
      'path of the file'
    )
  stem, extension = os.path.splitext(urllib.parse.urlsplit(weights.url).path)
  # the whole address, as many files are called diffusion_pytorch_model or model
  name = stem.strip('/').replace('/resolve/main', '').replace('/', '_') + (
    '.ckpt' if extension == '.zip' else extension
  )
  return os.path.join(os.path.abspath(workdir), 'released', name)


def _wanted(spec: specs.Spec, data: base.Data) -> dict[str, specs.Weights]:
  """Where the weights of each part that is not trained here come from; a file may hold several."""
  out = {name: weights for name, (_, _, weights) in build.parts(spec, data).items()}
  if not spec.net.weights.format:  # trained here, perhaps on a released autoencoder
    trained = ('', build.RANDOM)
    out = {name: weights for name, weights in out.items() if weights.format not in trained}
  for name, weights in out.items():
    if weights.format not in importers.FORMATS:
      raise UserError(
        f'unknown {name}.weights.format {weights.format!r}; valid: {", ".join(importers.FORMATS)}'
      )
  return out


def fetch(spec: specs.Spec, data: base.Data, workdir: str, required: bool = True) -> None:
  """--mode=fetch: downloads what the config names and is not there; unless there has to be
  something, it may name nothing."""
  wanted = {} if spec.net.weights.format == build.RANDOM else _wanted(spec, data)
  if not wanted and required:
    raise UserError(
      f'nothing to fetch: net.weights.format is {spec.net.weights.format!r}; valid: '
      f'{", ".join(importers.FORMATS)}'
    )
  paths = set()
  for weights in wanted.values():
    path = place(weights, workdir)
    if path in paths:
      continue
    paths.add(path)
    if weights.path and os.path.exists(path):
      print(f'{path} is there')
    elif weights.url:
      download(weights.url, path, weights.size, weights.sha256)
    elif not os.path.exists(path):
      raise UserError(
        f'there is nothing at {path}, and the config has no address for it; put the file there'
      )


def _find(name: str, weights: specs.Weights, workdir: str) -> str:
  """The file or folder to read for a part."""
  path = place(weights, workdir)
  if not os.path.exists(path):
    raise UserError(
      f'no weights at {path}; use --mode=fetch, or '
      f'{needed(weights.url, path, weights.size, weights.sha256)}'
      if weights.url
      else f'no weights at {path}; put the file there, or set {name}.weights.path'
    )
  if not os.path.isdir(path) and not weights.path:
    check(weights.url, path, weights.size, weights.sha256)
  importers.file_of(path)  # of a folder: says at once if it has none
  return path


def convert(spec: specs.Spec, data: base.Data, workdir: str) -> None:
  """--mode=convert: released weights -> checkpoint 0 of the workdir; does nothing if it is
  there."""
  if not is_released(spec):
    raise UserError(
      f'nothing to convert: net.weights.format is {spec.net.weights.format!r}; valid: '
      f'{", ".join(importers.FORMATS)}'
    )
  path = os.path.join(workdir, 'checkpoints')
  # whoever comes second waits for the first, and finds what it made; the hosts of one run work on
  # one checkpoint together, so one of them waits for all
  with files.locked(path) if parallel.is_main() else contextlib.nullcontext():
    with Store(workdir) as store:
      there = store.latest() is not None
      if there:
        _check(store, spec, data, workdir)
    if not there:
      converted, about = _read(spec, data, workdir), build.about(spec, data)
      for name, weights in _wanted(spec, data).items():
        about[name]['weights'] = origin(weights, workdir)
      save(converted, about, workdir)
  files.remove_lock(path)
  print(f'{"already converted:" if there else "converted to"} {store.path}')


def _address(weights):
  return os.path.abspath(os.path.expanduser(weights.path)) if weights.path else weights.url


def origin(weights: specs.Weights, workdir: str) -> dict[str, Any]:
  """What identifies released weights: the hash of their file, and the published one, which may be
  of an archive. Address and time save hashing a file again that was not touched."""
  path = place(weights, workdir)
  return {
    'address': _address(weights),
    'sha256': _sha256(path),
    'published': weights.sha256.lower(),
    'modified': _modified(path),
  }


def _modified(path):
  return os.stat(importers.file_of(path)).st_mtime_ns


def _sha256(path):
  """Of a file of weights; of an index together with its shards."""
  path = importers.file_of(path)
  if not path.endswith(tensor_files.INDEX):
    return sha256_of(path)
  shards = sorted(set(files.read_json(path, {})['weight_map'].values()))
  paths = [path] + [os.path.join(os.path.dirname(path), shard) for shard in shards]
  return hashlib.sha256(''.join(map(sha256_of, paths)).encode()).hexdigest()


def _check(store, spec, data, workdir):
  """Raises UserError unless a checkpoint was made of the files that the config names."""
  build.check_about(store, build.about(spec, data))
  check_origins(store, spec, data, workdir)


def check_origins(store: Store, spec: specs.Spec, data: base.Data, workdir: str) -> None:
  """The same of where the parts that are there came from, and of nothing else."""
  about = store.about()
  for name, weights in _wanted(spec, data).items():
    if name not in about:
      continue
    stored: Any = about[name].get('weights')
    path = place(weights, workdir)
    # a conversion that did not store hashes has an address alone, a trained step has nothing
    stored = stored if isinstance(stored, dict) else {'address': stored}
    stored = {'address': '', 'sha256': '', 'published': '', 'modified': None} | stored
    known = [stored[key] for key in ('sha256', 'published') if stored[key]]
    same = stored['address'] == _address(weights)
    if weights.sha256 and known:
      same = any(value.startswith(weights.sha256.lower()) for value in known)
    elif known and os.path.exists(path) and not (same and stored['modified'] == _modified(path)):
      same = stored['sha256'] == _sha256(path)
    if not same:
      raise UserError(
        f'the checkpoint in {store.path} was made with {name}.weights = {stored["address"]} '
        f'(sha256 {stored["sha256"][:12] or "not known"}), the config says {_address(weights)}, '
        f'which is another file; use its config, or another --workdir'
      )


def _read(spec: specs.Spec, data: base.Data, workdir: str) -> dict[str, Any]:
  """The weights of each part, from the released files."""
  for name, weights in _wanted(spec, data).items():  # none is read before all are there
    _find(name, weights, workdir)
  out = {name: read_part(spec, data, workdir, name) for name in build.parts(spec, data)}
  if not out.get('autoencoder', {'latent_scale': 1})['latent_scale']:
    raise UserError(
      'autoencoder.scale 0 is found in training; set it to the scale of the released network'
    )
  return out


def read_part(spec: specs.Spec, data: base.Data, workdir: str, name: str) -> dict[str, Any]:
  """The weights of 'net', 'autoencoder' or 'classifier', from its released file."""
  module, _, weights = build.parts(spec, data)[name]
  path = _find(name, weights, workdir)
  shape = build.sample_shape(spec, data) if name == 'net' else data.shape
  out = importers.load_weights(path, weights.format, module, shape)
  if name == 'autoencoder':
    # a file of latent diffusion holds the factor where it was measured in training
    measured = importers.latent_scale(importers.file_of(path))
    out['latent_scale'] = np.float32(spec.autoencoder.scale if measured is None else measured)
  return out


def save(converted: dict[str, Any], about: dict[str, Any], workdir: str) -> None:
  """Writes weights that are not trained any further, as checkpoint 0."""
  size, free = (
    sum(leaf.nbytes for leaf in jax.tree.leaves(converted)),
    shutil.disk_usage(workdir).free,
  )
  if size > free:
    raise UserError(
      f'the checkpoint needs {size / 1e9:.2f} GB, but {free / 1e9:.2f} GB are free in {workdir}; '
      f'give another --workdir'
    )
  store = Store(workdir, create=True, copy=False)
  store.remove_unfinished()  # of conversions that were killed
  try:
    with store:
      store.save(0, converted, None, about)
  except UserError:
    for _ in range(10):  # threads of the failed save write for a moment, and make folders again
      store.remove_unfinished()
      time.sleep(0.1)
    raise


def ensure(spec: specs.Spec, data: base.Data, workdir: str) -> None:
  """Converts released weights that are there and not yet converted; says what to do where they are
  not there."""
  if spec.denoiser.name == 'network' and is_released(spec):
    with Store(workdir) as store:
      there = store.latest() is not None
      if there:
        _check(store, spec, data, workdir)
    if not there:
      convert(spec, data, workdir)
