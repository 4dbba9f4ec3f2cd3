"""The Inception features that published FIDs are computed on: public weights, resize, pool3 and
more.

Images go in as they are stored, 0..255 uint8, and are resized as TensorFlow 1 does
(nets/inception.py): another resize, range or network gives numbers that cannot be compared.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmm_diffusion import parallel
from gmm_diffusion.checkpoints import fetch, tensor_files
from gmm_diffusion.checkpoints.importers import recipe
from gmm_diffusion.errors import UserError
from gmm_diffusion.nets.inception import SIDE, Inception, Outputs, preprocess

NAME = 'pt_inception-2015-12-05-6726825d.pth'
URL = 'https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/' + NAME
SIZE = 95_628_359  # bytes
SHA256 = '6726825d'  # the first digits, which are also in the name


def place(cache: str, path: str = '') -> str:
  """Where the weights are: at `path`, or under their public name in the folder `cache`."""
  return os.path.expanduser(path) or os.path.join(cache, NAME)


def download(path: str) -> None:
  """Downloads the public weights to path, unless they are there; errors as fetch.fetch."""
  fetch.fetch(URL, path, SIZE, SHA256)


def load(path: str) -> Any:
  """Parameters from the public weights at path, float32.

  Raises:
    UserError: no such file, or another size or SHA-256, with what to download.
  """
  if not os.path.exists(path):
    folder, name = os.path.split(path)
    how = f'use --mode=fetch with evaluate.features=inception and evaluate.cache={folder}, or '
    raise UserError(
      f'no Inception weights at {path}; {how * (name == NAME)}'
      f'{fetch.needed(URL, path, SIZE, SHA256)}'
    )
  fetch.check(URL, path, SIZE, SHA256)
  with tensor_files.open_tensors(path) as source:
    return read(source, path)


def read(source: recipe.Tensors, path: str) -> Any:
  """Parameters from tensors under the names of the public weights; the batch counters of its
  normalisation are not used."""
  template = jax.eval_shape(
    Inception().init, jax.random.key(0), jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32)
  )
  plan = recipe.plain(template)
  recipe.check(
    plan,
    source.shapes,
    [name for name in source.shapes if not name.endswith('.num_batches_tracked')],
    path,
  )
  return recipe.read(plan, source, path, 'Inception weights')


def activations(params: Any, per_device: int = 64) -> Callable[..., Outputs]:
  """(images, advance=None) -> Outputs as float32 host arrays; one trace for each image size.

  Args:
    params: of the network.
    per_device: images on each device at a time.

  The images are uint8 [N, H, W, 3] in 0..255, of any size; others raise UserError.
  """
  call = parallel.map_batches(
    lambda params, images: Inception().apply(params, preprocess(images)), per_device
  )
  shared = parallel.replicate(params, local=True)

  def checked(images, advance=None):
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not images.size:
      raise UserError(
        f'Inception features need images of shape [N, H, W, 3] and dtype uint8 in 0..255, got '
        f'{images.dtype} {list(images.shape)}; convert them (grey images: repeat the channel)'
      )
    return call(shared, images, advance)

  return checked
