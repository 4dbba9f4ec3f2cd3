"""A folder of images from training to evaluation."""

import json
import os
from unittest import mock

import numpy as np
from absl.testing import absltest
from PIL import Image

from configs import common, folder
from gmm_diffusion import specs, tasks
from gmm_diffusion.data import base
from gmm_diffusion.engine import loss
from gmm_diffusion.metrics import features


class FolderTest(absltest.TestCase):
  def test_from_training_to_evaluation(self):
    root, workdir = self.create_tempdir().full_path, self.create_tempdir().full_path
    random = np.random.RandomState(0)
    for i in range(12):
      pixels = random.randint(0, 256, (9, 11, 3)).astype(np.uint8)
      Image.fromarray(pixels).save(os.path.join(root, f'{i}.png'))
    config = folder.get_config('runlocal')
    config.data.update(path=root, size=4, held_out=0.3)
    config.net = common.defaults().net
    config.net.update(name='cnn', channels=8, blocks=1, labels='none')
    config.train.update(steps=2, batch=4, sample_every=2)
    config.sampler.steps = 2
    config.evaluate.update(samplers=('ddim',), count=8)
    with mock.patch.dict(features.SETTINGS, steps=2, batch=4):
      tasks.run('all', workdir, config, 'test')
    with open(os.path.join(workdir, 'results.json'), encoding='utf-8') as file:
      records = json.load(file)
    with Image.open(os.path.join(workdir, 'progress', '00000002.png')) as picture:
      self.assertEqual(picture.size, (4 * 34, 4 * 34))  # four times four, at least 32 pixels wide
    found = {record.get('metric'): record for record in records}
    self.assertContainsSubset({'frechet', 'kernel'}, found)
    self.assertEqual(found['kernel']['n_reference'], 8)
    self.assertIn('rotation-', found['kernel']['features'])

  def test_flips_depend_on_the_position_alone(self):
    config = folder.get_config('runlocal')
    config.net.update(channels=8, multipliers=(1.0,), attention=(), head_channels=8)
    images = np.random.RandomState(0).randint(0, 256, (16, 4, 4, 3)).astype(np.uint8)
    labels, seen = np.zeros(16, np.int32), []
    data = base.Data(images, labels, images, labels, 0)

    def diffuse(x0, eps, time):
      del eps, time
      seen.append(np.asarray(x0))
      raise StopIteration

    with mock.patch.object(loss.marginals, 'diffuse', diffuse):
      loss_fn = loss.denoising_loss(specs.from_config(config), data)
      for rows in (slice(16), slice(8, 16)):
        with self.assertRaises(StopIteration):
          loss_fn({}, 3, (images[rows], labels[rows], np.arange(16)[rows]))
    plain = base.to_model(images)
    flipped = np.array([not np.array_equal(one, other) for one, other in zip(seen[0], plain)])
    self.assertBetween(flipped.sum(), 3, 13)  # by chance outside in 4 of 1000 seeds
    expected = np.where(flipped[:, None, None, None], plain[:, :, ::-1], plain)
    np.testing.assert_array_equal(seen[0], expected)
    np.testing.assert_array_equal(seen[1], expected[8:])


if __name__ == '__main__':
  absltest.main()
