"""The configs of released models train a network of one's own, each in its small size."""

import glob
import os
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from gmm_diffusion.checkpoints.store import Store
from helpers import cli


def tfds(size, classes):
  """A module that has prepared every set: items of size x size + 1 in classes."""
  module, random = mock.MagicMock(), np.random.RandomState(0)
  rows = [
    {'image': random.randint(0, 256, (size, size + 1, 3)).astype(np.uint8), 'label': i % classes}
    for i in range(20)
  ]
  label = mock.Mock(spec=['names', 'num_classes'], names=[], num_classes=classes)
  module.builder.return_value.info = mock.Mock(
    features={'image': None, 'label': label}, splits={'train': rows}
  )
  module.data_source.side_effect = lambda *_, decoders, **__: [
    {**row, **({'image': b''} if decoders else {})} for row in rows
  ]
  return module


class TrainingConfigsTest(parameterized.TestCase):
  @parameterized.parameters(
    ('cifar10.py:train', 'train'),
    ('imagenet64.py:train', 'train'),
    ('imagenet256.py:dit,train', 'train', 'sample'),
  )
  def test_trains(self, config, *modes):
    workdir = self.create_tempdir().full_path
    classes = 10 if config.startswith('cifar') else 1000
    steps = '--config.train.steps=2', '--config.train.batch=4', '--config.sample.count=2'
    with mock.patch.dict('sys.modules', tensorflow_datasets=tfds(40, classes)):
      for mode in modes:
        code, _, error = cli.here(
          f'{config},runlocal', mode, workdir, *steps, '--config.sampler.steps=2'
        )
        self.assertEqual(code, 0, error)
    self.assertEqual(Store(workdir).latest(), 2)
    pictures = glob.glob(os.path.join(workdir, 'samples', '*.png'))
    self.assertLen(pictures, modes.count('sample'))


if __name__ == '__main__':
  absltest.main()
