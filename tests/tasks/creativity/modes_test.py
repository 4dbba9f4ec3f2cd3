"""Task 'creativity' end to end at the smallest size; machines over several devices; bad
settings."""

import json
import os

import numpy as np
from absl.testing import absltest, parameterized

from gmm_diffusion import tasks
from gmm_diffusion.errors import UserError
from helpers import cases
from helpers.creativity_config import tiny


class AllTest(absltest.TestCase):
  def test_everything_is_written(self):
    workdir = self.create_tempdir().full_path
    tasks.run('all', workdir, tiny(), 'test')
    for name in (
      'report.html',
      'same_noise.png',
      'consistency.png',
      'provenance.png',
      'locality.png',
      'gumbel/checkpoints',
    ):
      self.assertTrue(os.path.exists(os.path.join(workdir, name)), name)
    cases.sample_set(os.path.join(workdir, 'gumbel'), 'ddim', '.png')
    with open(os.path.join(workdir, 'results.json'), encoding='utf-8') as file:
      found = {record['metric']: record['value'] for record in json.load(file)}
    self.assertEqual(set(found['agreement']['gumbel']), {'ELS', 'IS'})
    self.assertBetween(found['agreement']['gumbel']['IS']['r']['value'], -1, 1)
    self.assertEqual(set(found['quality']), {'gumbel', 'machine ELS', 'machine IS'})
    self.assertLen(found['early']['gumbel']['consistent'], 6)
    # the ideal machine copies, so its samples are consistent
    self.assertEqual(found['quality']['machine IS']['consistent']['value'], 1.0)
    with open(os.path.join(workdir, 'report.html'), encoding='utf-8') as file:
      page = file.read()
    for text in ('consistent', '25.44 %', 'another data set', 'data:image/png;base64', '±'):
      self.assertIn(text, page)


DEVICES = """
import sys
import jax
import numpy as np
from configs import creativity as config_file
from gmm_diffusion import specs
from gmm_diffusion.data import base, sources
from gmm_diffusion.tasks.creativity import machines
config = config_file.get_config('digits,runlocal')
config.sampler.steps = 2
config.creativity.images = 11
spec = specs.from_config(config)
base.to_image = lambda x: x  # floats, not rounded to images
assert jax.device_count() == int(sys.argv[2])
np.save(sys.argv[1], machines.machine_samples(spec, sources.load(spec.data), 'ELS', 3, 2))
"""


class DevicesTest(absltest.TestCase):
  def test_training_images_split_unevenly(self):
    found = []
    for devices in (1, 3):
      path = os.path.join(self.create_tempdir().full_path, 'x.npy')
      code, _, error = cases.python('-c', DEVICES, path, str(devices), devices=devices)
      self.assertEqual(code, 0, error[-2000:])
      found.append(np.load(path))
    self.assertGreater(np.std(found[0]), 0.1)
    np.testing.assert_allclose(*found, atol=1e-4)


class BadTest(parameterized.TestCase):
  @parameterized.parameters(
    (
      dict(machines=('ELS', 'XLS')),
      "unknown name 'XLS' in creativity.networks or creativity.machines; valid: IS, ES, LS",
    ),
    (dict(networks=('hard',)), "unknown name 'hard' .* valid: none, softmax"),
    (dict(pairs=9), r'creativity.pairs must be in 2..4 \(sample.count\), got 9'),
    (dict(sizes=(3, 4)), 'patch size must be odd'),
    (dict(sizes=()), 'creativity.sizes must not be empty'),
    (dict(probes=4), r'creativity.probes in 1..3 \(pairs\), got .* and 4'),
    (dict(sizes=(13,)), 'patch size 13 is larger than the images of 12 x 12'),
  )
  def test_settings(self, options, message):
    workdir = self.create_tempdir().full_path
    with self.assertRaisesRegex(UserError, message):
      tasks.run('all', workdir, tiny(**options), 'test')
    self.assertEqual(os.listdir(workdir), [])

  def test_mode(self):
    with self.assertRaisesRegex(
      UserError, "task 'creativity' has no mode 'sample'; valid: train, evaluate, all"
    ):
      tasks.run('sample', self.create_tempdir().full_path, tiny(), 'test')

  def test_labels(self):
    config = tiny()
    config.net.labels = 'plain'
    with self.assertRaisesRegex(UserError, "set net.labels to 'none', got 'plain'"):
      tasks.run('train', self.create_tempdir().full_path, config, 'test')


if __name__ == '__main__':
  absltest.main()
