"""Networks of few bits, against the same network with rounded kernels."""

import os
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from gmm_diffusion import specs
from gmm_diffusion.data import sources
from gmm_diffusion.engine import build
from gmm_diffusion.maths import quantise
from gmm_diffusion.nets import quantised
from helpers import cases

NETS = {
  'unet': specs.Net(channels=8, multipliers=(1.0, 2.0), blocks=1, attention=(4,), head_channels=8),
  'em': specs.Net(
    channels=8, multipliers=(1.0,), blocks=1, attention=(8,), head_channels=8, attention_kind='em'
  ),
  'soft': specs.Net(
    channels=8, multipliers=(1.0,), blocks=1, attention=(8,), head_channels=8, attention_kind='soft'
  ),
  'dit': specs.Net(name='dit', channels=8, blocks=1, heads=2, patch=2),
  'cnn': specs.Net(name='cnn', channels=8, blocks=1),
}


MEMORY = """
import jax, numpy as np
from gmm_diffusion import specs
from gmm_diffusion.data import sources
from gmm_diffusion.engine import build
from gmm_diffusion.nets import quantised

net = specs.Net(channels=64, multipliers=(1.0, 2.0), blocks=2, attention=(), head_channels=64)
spec = specs.Spec(net=net)
data = sources.load(spec.data)
module = build.net(spec, data)
few = build.template(spec, data, {'weights': 8, 'activations': 0})['net']

def loop(weights, x, t, labels):
  step = lambda x, _: (quantised.apply(module, weights, x, t, labels), None)
  return jax.lax.scan(step, x, None, 10)[0]

shapes = ((1, 8, 8, 1), np.float32), ((1,), np.float32), ((1,), np.int32)
arguments = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
found = jax.jit(loop).lower(few, *arguments).compile().memory_analysis()
whole = build.template(spec, data)['net']
print(sum(4 * leaf.size for leaf in jax.tree.leaves(whole)), found.temp_size_in_bytes)
"""


def made(name):
  """(module, host variables, paths, arguments) of a small network with random weights."""
  spec = specs.Spec(net=NETS[name])
  data = sources.load(spec.data)
  variables = build.random_weights(build.template(spec, data), 0)['net']
  random = np.random.RandomState(0)
  x = jnp.asarray(random.randn(3, *data.shape), jnp.float32)
  arguments = x, jnp.asarray([10.0, 400.0, 900.0]), jnp.asarray([0, 3, 10])
  return build.net(spec, data), variables, build.layers(spec, data), arguments


def applied(module, weights, *arguments):
  """quantised.apply, compiled as a whole."""
  return jax.jit(lambda *given: quantised.apply(module, *given))(weights, *arguments)


class QuantisedTest(parameterized.TestCase):
  @parameterized.product(name=list(NETS), bits=(8, 4))
  def test_weights_are_the_rounded_ones(self, name, bits):
    module, variables, paths, arguments = made(name)
    few = quantised.of(variables, paths, bits, {})
    expected = jax.tree.map(np.copy, variables)
    for path in paths:
      layer = quantised._at(expected['params'], path)
      step = few['quantised'][path]['step'].reshape((1,) * (layer['kernel'].ndim - 1) + (-1,))
      layer['kernel'] = quantise.rounded(layer['kernel'], step, *quantise.limits(bits, True))
    np.testing.assert_allclose(
      applied(module, few, *arguments), jax.jit(module.apply)(expected, *arguments), atol=1e-5
    )
    kernels = sum('kernel' in str(p[-1]) for p, _ in jax.tree_util.tree_leaves_with_path(variables))
    self.assertLen(paths, kernels)  # every convolution and dense layer
    size = lambda tree: sum(
      np.asarray(leaf).nbytes
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
      if 'kernel' in str(path[-1])
    )
    # the odd axes of a few kernels stay unpacked
    self.assertBetween(size(few['params']), size(variables) * bits / 32, size(variables) / 4)
    if bits == 4:
      self.assertLess(size(few['params']), size(variables) / 7)

  def test_template_is_what_is_made(self):
    spec = specs.Spec(net=NETS['unet'])
    data = sources.load(spec.data)
    _, variables, paths, _ = made('unet')
    for bits, activations in ((8, 0), (4, 8)):
      inputs = {path: (0.1, -8, 7) for path in paths} if activations else {}
      few = quantised.of(variables, paths, bits, inputs)
      wanted = build.template(spec, data, {'weights': bits, 'activations': activations})['net']
      form = lambda tree: jax.tree.map(lambda leaf: (np.shape(leaf), np.dtype(leaf.dtype)), tree)
      self.assertEqual(form(few), form(wanted))

  def test_inputs_are_rounded_and_nothing_else(self):
    module, variables, paths, arguments = made('cnn')
    whole = jax.jit(module.apply)(variables, *arguments)
    fine = {path: (2.0**-12, -(2**20), 2**20) for path in paths}
    few = quantised.of(variables, paths, 8, {})
    near = applied(module, few, *arguments)
    finest = applied(module, quantised.of(variables, paths, 8, fine), *arguments)
    np.testing.assert_allclose(finest, near, atol=5e-3)
    first = paths[0]
    one = fine | {first: (0.5, -1, 1)}
    seen = {}

    with quantised.watched(lambda path, x: seen.update({path: np.asarray(x)})):
      coarse = quantised.apply(module, quantised.of(variables, paths, 8, one), *arguments)
    self.assertGreater(np.abs(coarse - near).max(), 0.01 * np.abs(whole).max())
    self.assertEqual(set(seen), set(paths))

  def test_kernels_are_not_held_as_floats(self):
    # the scheduler of GPUs; that of CPUs prepares all kernels at once
    flag = '--xla_cpu_enable_concurrency_optimized_scheduler=false'
    with mock.patch.dict(os.environ, XLA_FLAGS=f'{os.environ["XLA_FLAGS"]} {flag}'):
      code, out, error = cases.python('-c', MEMORY)
    self.assertEqual(code, 0, error[-2000:])
    floats, beside = map(int, out.split()[-2:])
    self.assertLess(beside, floats / 3)

  def test_derivatives_are_those_of_the_network(self):
    module, variables, paths, (x, t, labels) = made('dit')
    fine = quantised.of(variables, paths, 8, {path: (2.0**-10, -(2**20), 2**20) for path in paths})
    plain = quantised.of(variables, paths, 8, {})
    summed = lambda x, weights: jnp.sum(jnp.sin(quantised.apply(module, weights, x, t, labels)))
    of = lambda weights: jax.jit(jax.grad(summed))(x, weights)
    found, expected = of(fine), of(plain)
    self.assertLess(np.abs(found - expected).max(), 0.1 * np.abs(expected).max())

  @parameterized.parameters(((4, 3),), ((3, 3, 6, 5),))
  def test_packing(self, shape):
    codes = np.random.RandomState(0).randint(-8, 8, shape)
    packed = quantised.pack(codes)
    self.assertEqual(packed.nbytes, codes.size / 2)
    np.testing.assert_array_equal(quantised.unpack(jnp.asarray(packed)), codes)


if __name__ == '__main__':
  absltest.main()
