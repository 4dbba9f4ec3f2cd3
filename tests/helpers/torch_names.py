"""Golden networks: weights regenerated from tensor names, brought in by the importers.

The goldens hold inputs and outputs only. The weights of a tensor are a function of its name and
shape: standard normals seeded with the CRC-32 of the name, scaled by the rules below.
"""

import json
import os
import zlib

import jax
import numpy as np
from flax import traverse_util

from gmm_diffusion.checkpoints import importers
from gmm_diffusion.checkpoints.importers import recipe as recipes

TESTDATA = os.path.join(os.path.dirname(os.path.dirname(__file__)), 'testdata')


def golden(name):
  """(arrays, config, manifest) of testdata/<name>.npz."""
  arrays = np.load(os.path.join(TESTDATA, name + '.npz'))
  return arrays, json.loads(str(arrays['config'])), json.loads(str(arrays['manifest']))


def tensor(name, shape):
  """The float32 weights of a tensor."""
  z = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
  if len(shape) >= 2:
    return z / np.float32(np.sqrt(np.prod(shape[1:])))
  return 1 + np.float32(0.1) * z if name.endswith('weight') else np.float32(0.1) * z


def tensors(arrays, manifest, prefix=''):
  """{prefix + name: float32 array} of a golden network, as its released file would have them."""
  out = {prefix + name: tensor(name, shape) for name, shape, kind in manifest if kind == 'param'}
  out.update(
    {prefix + name: arrays['fixed:' + name] for name, _, kind in manifest if kind == 'fixed'}
  )
  return out


class InMemory:
  """Tensors of a dict as a source."""

  def __init__(self, values):
    self.values = values
    self.shapes = {name: value.shape for name, value in values.items()}

  def read(self, name):
    return self.values[name]


def load(form, part, module, inputs, values, side=0):
  """The network's variables, through the importer of the format; inputs as for module.init."""
  template = jax.eval_shape(module.init, jax.random.key(0), *inputs)
  source = InMemory(values)
  recipe, owned = importers.recipe_of(form, part, module, template, source.shapes, side)
  recipes.check(recipe, source.shapes, owned, 'golden')
  out = recipes.read(recipe, source, 'golden', 'reading')
  shapes = lambda tree: {
    path: leaf.shape for path, leaf in traverse_util.flatten_dict(tree).items()
  }
  assert shapes(out) == shapes(template)
  return out
