"""A trained network as one file."""

import os

import jax
import numpy as np
from absl.testing import absltest, parameterized

import gmm_diffusion
from configs import segmentation as config_lib
from gmm_diffusion import specs
from gmm_diffusion.errors import UserError
from gmm_diffusion.tasks.segmentation import networks, training, weights
from helpers import segmenter

NAMES = ('encoder', 'channels', 'blocks', 'heads', 'head_channels', 'key_steps', 'value_steps')


class WeightsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.path = os.path.join(self.create_tempdir().full_path, 'net.npz')
    segmenter.network().save(self.path)

  def test_a_network_survives_its_file(self):
    found, known = networks.load(self.path), segmenter.network()
    self.assertEqual((found.module, found.size, found.slots), (known.module, 64, 20))
    jax.tree.map(np.testing.assert_array_equal, found.params, known.params)
    clicks = [(20, 30, True), (5, 5, False)]
    mask = gmm_diffusion.segment(segmenter.image(), clicks, self.path)
    np.testing.assert_array_equal(mask, gmm_diffusion.segment(segmenter.image(), clicks, known))

  def test_how_clicks_enter_is_in_the_file(self):
    network = segmenter.network(segmenter.MODULE.clone(clicks='values'))
    network.save(self.path)
    self.assertEqual(networks.load(self.path).module, network.module)

  def test_in_the_place_of_a_workdir(self):
    config = config_lib.get_config('runlocal')
    config.segmentation.update({name: getattr(segmenter.MODULE, name) for name in NAMES})
    config.segmentation.weights = self.path
    module, params = training.load(specs.from_config(config), '/nowhere')
    self.assertEqual(module, segmenter.MODULE)
    jax.tree.map(np.testing.assert_array_equal, params, segmenter.parameters())
    config.segmentation.heads = 2
    with self.assertRaisesRegex(UserError, "net.npz is of .*'heads': 1.* the config says .*: 2"):
      training.load(specs.from_config(config), '/nowhere')

  def test_damaged_files(self):
    with open(self.path, 'rb') as file:
      whole = file.read()
    for content in (b'', whole[:50], whole[:-30], whole.replace(b'"heads"', b'"headz"')):
      with open(self.path, 'wb') as file:
        file.write(content)
      with self.assertRaises(UserError) as caught:
        networks.load(self.path)
      self.assertNotIn('\n', str(caught.exception))

  def test_files_of_other_things(self):
    np.savez(self.path, images=np.zeros(3))
    with self.assertRaisesRegex(UserError, 'holds no network for segmentation; give a file that'):
      networks.load(self.path)
    about = training.about(segmenter.MODULE)
    few = {'params': {'labels': np.zeros((2, 1, 8), np.float32)}}
    weights.write(self.path, weights.Content({**about, 'size': 64, 'slots': 6}, few))
    with self.assertRaisesRegex(UserError, 'has other weights than it says'):
      networks.load(self.path)
    about['segmentation']['later'] = 1
    weights.write(self.path, weights.Content({**about, 'size': 64, 'slots': 6}, few))
    with self.assertRaisesRegex(UserError, "is of another version .*'later'.*; train it again"):
      networks.load(self.path)
    with self.assertRaisesRegex(UserError, "a network is written as .npz, got 'net.pt'"):
      segmenter.network().save('net.pt')


if __name__ == '__main__':
  absltest.main()
