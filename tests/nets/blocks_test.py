"""Blocks against their formulas in NumPy; golden_test.py checks the networks made of them."""

import math

import jax
import numpy as np
from absl.testing import absltest, parameterized

from gmm_diffusion.nets.blocks import SpatialTransformer
from helpers import cases


def normalised(x, part, eps):
  x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
  return x * part['scale'] + part['bias']


def attention(part, x, context, heads):
  """Tokens [N, C] over a context [M, C']."""
  split = lambda y: y.reshape(len(y), heads, -1).swapaxes(0, 1)
  q, k, v = (
    split(y @ part[name]['kernel'])
    for name, y in (('to_q', x), ('to_k', context), ('to_v', context))
  )
  weights = np.exp(q @ k.swapaxes(1, 2) / math.sqrt(q.shape[-1]))
  out = (weights / weights.sum(-1, keepdims=True)) @ v
  return linear(part['to_out.0'], out.swapaxes(0, 1).reshape(len(x), -1))


def linear(part, x):
  return x @ part['kernel'] + part['bias']


def gelu(x):
  return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


class SpatialTransformerTest(cases.X64TestCase):
  @parameterized.parameters(1, 2, 3)
  def test_blocks_follow_each_other(self, depth):
    random = np.random.default_rng(0)
    module = SpatialTransformer(2, float, depth)
    x, context = random.standard_normal((1, 2, 3, 32)), random.standard_normal((1, 5, 7))
    shapes = jax.eval_shape(module.init, jax.random.key(0), x, context)
    params = jax.tree.map(lambda leaf: 0.3 * random.standard_normal(leaf.shape), shapes)['params']

    groups = x[0].reshape(6, 32)  # one channel in each of the 32 groups
    h = (groups - groups.mean(0)) / np.sqrt(groups.var(0) + 1e-6)
    h = linear(params['proj_in'], h * params['norm']['scale'] + params['norm']['bias'])
    for i in range(depth):
      part = lambda name, i=i: params[f'transformer_blocks.{i}.{name}']
      y = normalised(h, part('norm1'), 1e-5)
      h = h + attention(part('attn1'), y, y, 2)
      h = h + attention(part('attn2'), normalised(h, part('norm2'), 1e-5), context[0], 2)
      value, gate = np.split(
        linear(part('ff.net.0.proj'), normalised(h, part('norm3'), 1e-5)), 2, 1
      )
      h = h + linear(part('ff.net.2'), value * gelu(gate))
    expected = x + linear(params['proj_out'], h).reshape(x.shape)
    found = jax.jit(module.apply)({'params': params}, x, context)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11)


if __name__ == '__main__':
  absltest.main()
