"""Samples of machines are kept for the same settings and training images alone."""

import glob
import os
from unittest import mock

import numpy as np
from absl.testing import absltest

from gmm_diffusion import specs
from gmm_diffusion.data import sources
from gmm_diffusion.engine.runs import Run
from gmm_diffusion.tasks.creativity import machines
from helpers.creativity_config import tiny


class StoredTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    spec = specs.from_config(tiny())
    self.run_ = Run(spec, sources.load(spec.data), self.create_tempdir().full_path, 'test')
    self.drawn = []

    def draw(spec, data, name, size, count):
      self.drawn.append(size)
      return np.full((count, *data.shape), data.train[0, 0, 0, 0], np.uint8)

    self.enter_context(mock.patch.object(machines, 'machine_samples', draw))

  def test_other_training_images_are_not_those_of_before(self):
    first = machines.stored_samples(self.run_, 'ELS', 3)
    np.testing.assert_array_equal(machines.stored_samples(self.run_, 'ELS', 3), first)
    self.assertLen(self.drawn, 1)
    data = self.run_.data._replace(train=255 - self.run_.data.train)  # the same path and settings
    other = machines.stored_samples(self.run_._replace(data=data), 'ELS', 3)
    self.assertLen(self.drawn, 2)
    self.assertTrue((other != first).all())
    unseen = self.run_.data.train.copy()
    unseen[self.run_.spec.creativity.images :] = 0  # what machines do not see changes nothing
    machines.stored_samples(
      self.run_._replace(data=self.run_.data._replace(train=unseen)), 'ELS', 3
    )
    self.assertLen(self.drawn, 2)
    machines.stored_samples(self.run_, 'ELS', ((0.5, 3), (1.0, 5)))
    self.assertLen(self.drawn, 3)
    np.testing.assert_array_equal(machines.stored_samples(self.run_, 'ELS', 3), first)
    self.assertLen(self.drawn, 3)

  def test_damaged_files_are_made_again(self):
    first = machines.stored_samples(self.run_, 'ELS', 3)
    [path] = glob.glob(os.path.join(self.run_.workdir, 'machines', '*.npz'))
    with open(path, 'rb') as file:
      whole = file.read()
    for n, length in enumerate((0, 10, len(whole) // 2, len(whole) - 5)):
      with open(path, 'wb') as file:
        file.write(whole[:length])
      np.testing.assert_array_equal(machines.stored_samples(self.run_, 'ELS', 3), first)
      self.assertLen(self.drawn, n + 2)


if __name__ == '__main__':
  absltest.main()
