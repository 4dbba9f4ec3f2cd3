"""The Inception features against golden outputs of the public ones, with weights regenerated from
tensor names."""

import json
import os
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from flax import traverse_util

from gmm_diffusion.errors import UserError
from gmm_diffusion.metrics import inception
from gmm_diffusion.nets.inception import Inception, resize
from helpers import cases, torch_names

ROWS = [0, 1, 7, 149, 297, 298]
FIELDS = {
  '2048': 'pool3',
  'logits_unbiased': 'logits',
  'spatial': 'spatial',
  '64': 'means64',
  '192': 'means192',
  '768': 'means768',
}


def tensor(name, shape, gain):
  """The weights of G6: variances are positive, and convolutions larger than elsewhere."""
  if name.endswith('running_var'):
    z = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    return np.float32(0.5) + np.abs(z)
  found = torch_names.tensor(name, shape)
  return found * np.float32(gain) if len(shape) == 4 else found


class GoldenTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    first = cases.golden('g6_inception_32')
    gain = json.loads(str(first['config']))['conv_gain']
    values = {
      name: tensor(name, shape, gain) if kind != 'int' else np.zeros(shape, np.int64)
      for name, shape, kind in json.loads(str(first['manifest']))
    }
    cls.params = inception.read(torch_names.InMemory(values), 'golden')
    cls.call = staticmethod(inception.activations(cls.params, 2))

  @parameterized.parameters('32', '256', '299_a', '299_b')
  def test_features(self, name):
    # the reference's own float32 run is off by up to 6e-7 of the largest value
    golden = cases.golden('g6_inception_' + name)
    found = self.call(golden['in:images'])
    for key, field in FIELDS.items():
      if 'out:' + key in golden:
        expected = golden['out:' + key].reshape(len(golden['in:images']), -1)
        np.testing.assert_allclose(
          getattr(found, field), expected, rtol=0, atol=3e-6 * np.abs(expected).max(), err_msg=field
        )

  @parameterized.parameters('32', '256')
  def test_resize(self, name):
    golden = cases.golden('g6_inception_' + name)
    found = resize(jnp.asarray(golden['in:images'], jnp.float32))[:, np.array(ROWS)]
    np.testing.assert_allclose(
      found.transpose(0, 3, 1, 2), golden['out:resized_rows'], rtol=0, atol=1e-4
    )

  def test_number_of_parameters(self):
    shapes = traverse_util.flatten_dict(
      jax.eval_shape(Inception().init, jax.random.key(0), jnp.zeros((1, 299, 299, 3)))
    )
    self.assertEqual(
      sum(leaf.size for path, leaf in shapes.items() if not path[-1].startswith('running')),
      23_850_960,
    )

  def test_only_images_as_they_are_stored(self):
    for bad in (
      np.zeros((1, 8, 8, 3), np.float32),
      np.zeros((1, 8, 8, 1), np.uint8),
      np.zeros((0, 8, 8, 3), np.uint8),
    ):
      with self.assertRaisesRegex(
        UserError, r'need images of shape \[N, H, W, 3\] and dtype uint8 in 0..255, got'
      ):
        self.call(bad)


class LoadTest(absltest.TestCase):
  def test_wrong_file(self):
    folder = self.create_tempdir().full_path
    path = os.path.join(folder, 'weights.pth')
    message = (
      'no Inception weights at .*weights.pth; download https://github.com/mseitzer/'
      '.*95,628,359 bytes, sha256 6726825d'
    )
    with self.assertRaisesRegex(UserError, message) as caught:
      inception.load(path)
    self.assertNotIn('\n', str(caught.exception))
    with open(path, 'wb') as file:
      file.write(b'other')
    with self.assertRaisesRegex(
      UserError, 'has 5 bytes, not 95,628,359; .*download https://github.com/mseitzer/'
    ):
      inception.load(path)
    with open(path, 'wb') as file:
      file.truncate(inception.SIZE)  # zeros, without using the disk
    with self.assertRaisesRegex(
      UserError, 'has sha256 [0-9a-f]{64}, not 6726825d; .*download https://github.com/mseitzer/'
    ):
      inception.load(path)


if __name__ == '__main__':
  absltest.main()
