"""Released weights, that is files that others published, as variables of the networks here.

A format (FORMATS) is a layout of such files. Each has an importer, a module here, which says in a
Recipe (recipe.py) of which tensors each parameter is made. The tensors come from a Source, an open
file (checkpoints/tensor_files.py). A checkpoint is something else: what this package writes and
reads itself (checkpoints/store.py).
"""

import functools
import os
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmm_diffusion.checkpoints import tensor_files
from gmm_diffusion.checkpoints.importers import (
  compvis,
  diffusers,
  diffusers_config,
  dit,
  guided_diffusion,
  recipe,
)
from gmm_diffusion.checkpoints.importers.recipe import Recipe
from gmm_diffusion.errors import UserError
from gmm_diffusion.nets.autoencoder import Autoencoder
from gmm_diffusion.nets.unet import Classifier
from gmm_diffusion.types import Array

FORMATS = ('guided_diffusion', 'compvis', 'diffusers', 'dit')
# of the folder of a diffusers model
WEIGHT_FILES = (
  'diffusion_pytorch_model.safetensors',
  'diffusion_pytorch_model.safetensors.index.json',
  'diffusion_pytorch_model.bin',
  'diffusion_pytorch_model.bin.index.json',
)


def load_weights(path: str, format: str, module: Any, shape: tuple[int, ...]) -> Any:
  """Variables of a network from a file of released weights.

  For example of the folder of a diffusers model:

    net = UNet(3, channels=128, multipliers=(1, 2, 2, 2), attention=(16,), head_channels=0,
               scale_shift=False, resblock_updown=False, pad_end=True, eps=1e-6, freq_shift=1,
               sin_first=True)
    variables = load_weights('ddpm-cifar10-32', 'diffusers', net, (32, 32, 3))
    eps = net.apply(variables, x, t)

  Args:
    path: a file (.safetensors, .pt, .pth, .ckpt, .bin, .index.json), or the folder of one diffusers
      model; its config.json, if it is there, must agree with the network.
    format: the layout of the file, one of FORMATS.
    module: a UNet, DiT, Classifier or Autoencoder (nets/) with the sizes of the released one.
    shape: [H, W, C] of one input: what the network denoises, or the images of an autoencoder.

  Returns:
    {'params': ...} of float32 host arrays.

  Raises:
    UserError: the format is unknown; the file is missing, damaged or refers to code; tensors are
      missing, left over, of another shape or not finite.
  """
  if format not in FORMATS:
    raise UserError(f'unknown format of weights {format!r}; valid: {", ".join(FORMATS)}')
  file = file_of(path)
  if format == 'diffusers' and os.path.isdir(path):
    diffusers_config.check(os.path.join(path, 'config.json'), module, shape[0])
  part = {Autoencoder: 'autoencoder', Classifier: 'classifier'}.get(type(module), 'net')
  template = abstract(module, tuple(shape))
  with tensor_files.open_tensors(file) as source:
    plan, owned = recipe_of(format, part, module, template, source.shapes, shape[0])
    recipe.check(plan, source.shapes, owned, file)
    return recipe.read(plan, source, file, f'reading {part}')


@functools.lru_cache  # it takes seconds for a large network, and a run asks several times
def abstract(module: Any, shape: tuple[int, ...]) -> Any:
  """Shapes and dtypes of the variables of a network for one input of shape [H, W, C]."""
  x, t = jnp.zeros((1, *shape)), jnp.zeros(1)
  if isinstance(module, Autoencoder):
    inputs: tuple[Array, ...] = (x,)
  elif isinstance(module, Classifier):
    inputs = x, t
  elif getattr(module, 'context_dim', 0) and not module.classes:
    inputs = x, t, jnp.zeros((1, 1, module.context_dim))
  else:
    inputs = x, t, jnp.zeros(1, jnp.int32)
  return jax.eval_shape(module.init, jax.random.key(0), *inputs)


def file_of(path: str) -> str:
  """The file of tensors at path, which may be the folder of a diffusers model."""
  if not os.path.isdir(path):
    return path
  for name in WEIGHT_FILES:
    if os.path.exists(os.path.join(path, name)):
      return os.path.join(path, name)
  raise UserError(
    f'folder {path} has none of {", ".join(WEIGHT_FILES)}; give the folder of one diffusers model, '
    f'such as .../unet'
  )


def latent_scale(path: str) -> float | None:
  """The factor of the latents that a latent diffusion file holds where it was measured in
  training."""
  name = 'scale_factor'
  with tensor_files.open_tensors(path) as source:
    if name not in source.shapes:
      return None
    value = source.read(name).astype(np.float64)
  if value.size != 1 or not (np.isfinite(value).all() and value.all()):
    raise UserError(
      f'tensor {name!r} of {path} must be one finite number other than 0, it has shape '
      f'{list(value.shape)}; copy or download the file again'
    )
  return value.item()


def recipe_of(
  form: str, part: str, module: Any, template: Any, names: Collection[str], side: int
) -> tuple[Recipe, list[str]]:
  """(recipe, those of the file's names that belong to the part).

  Args:
    form: one of FORMATS.
    part: 'net', 'autoencoder' or 'classifier'.
    module, template: the network and its abstract variables.
    names: of the tensors in the file.
    side: of a sample.
  """
  if form == 'dit':
    return dit.recipe(part, module, template, names, side)
  return {'guided_diffusion': guided_diffusion, 'compvis': compvis, 'diffusers': diffusers}[
    form
  ].recipe(part, module, template, names)
