"""Golden networks: weights regenerated from tensor names, and laid out for Flax.

The goldens hold inputs and outputs only. The weights of a tensor are a function of its name and
shape: standard normals seeded with the CRC-32 of the name, scaled by the rules below.
"""

import json
import os
import zlib

import numpy as np

TESTDATA = os.path.join(os.path.dirname(__file__), 'testdata')


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


def flax_params(manifest, dtype):
  """Nested parameters from torch names: 'input_blocks.1.0.in_layers.2.weight' and so on."""
  tree = {}
  for name, shape, kind in manifest:
    if kind != 'param':
      continue
    value = tensor(name, shape)
    module, leaf = _place(name.split('.'), len(shape))
    if leaf == 'kernel':
      value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.reshape(shape[:2]).T
    node = tree
    for part in module:
      node = node.setdefault(part, {})
    node[leaf] = value.astype(dtype)
  return {'params': tree}


def _place(parts, rank):
  """Torch name -> (path of Flax modules, leaf)."""
  *module, leaf = parts
  path, norm = [], rank == 1 and leaf == 'weight'
  inner = ('in_layers', 'emb_layers', 'out_layers', 'skip_connection', 'norm', 'qkv', 'proj_out', 'op', 'conv')
  start = next((i for i, part in enumerate(module) if part in inner), len(module))
  if start < len(module) and module[start] in ('op', 'conv'):
    start = len(module)
  path = ['_'.join(module[:start])] if start else []
  if start < len(module):
    path.append('_'.join(module[start:]))
  if path[-1].split('_')[-2:] in (['layers', '0'],) or path[-1] in ('norm', 'out_0'):
    path.append('norm')
    return path, 'scale' if norm else 'bias'
  if module == ['label_emb']:
    return path, 'embedding'
  return path, 'bias' if leaf == 'bias' else 'kernel'
