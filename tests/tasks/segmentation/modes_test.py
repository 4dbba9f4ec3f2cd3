"""The task 'segmentation' from the command line and in its parts."""

import json
import os

import numpy as np
from absl.testing import absltest

from configs import segmentation as config_lib
from gmm_diffusion import specs, tasks
from gmm_diffusion.errors import UserError
from gmm_diffusion.tasks.segmentation import benchmark, training
from gmm_diffusion.tasks.segmentation import scenes as data
from helpers import cases


class SegmentationTest(absltest.TestCase):
  def test_everything_on_two_devices(self):
    workdir = self.create_tempdir().full_path
    code, out, error = cases.python(
      '-m',
      'gmm_diffusion.main',
      '--config=configs/segmentation.py:runlocal',
      '--mode=all',
      f'--workdir={workdir}',
      '--config.segmentation.baseline=False',
      devices=2,
      flags=cases.FAST,
    )
    self.assertEqual(code, 0, error[-2000:])
    self.assertRegex(out, r'both +IoU@1 [\d.]+ ± [\d.]+ .*NoC@85')
    with open(os.path.join(workdir, 'results.json'), encoding='utf-8') as file:
      records = {(record['sampler'], record['metric']): record for record in json.load(file)}
    for arm in ('none', 'keys', 'values', 'both'):
      self.assertBetween(records[arm, 'IoU@2']['value'], 0, 1)
    self.assertGreater(records['both', 'milliseconds per click']['value'], 0)
    with open(os.path.join(workdir, 'report.html'), encoding='utf-8') as file:
      page = file.read()
    self.assertGreaterEqual(page.count('<figure>'), 4 * 5)
    self.assertTrue(os.path.exists(os.path.join(workdir, 'curve.png')))
    self.assertTrue(os.path.exists(os.path.join(workdir, 'training.png')))

  def test_damaged_and_old_curves_are_found_again(self):
    path = os.path.join(self.create_tempdir().full_path, 'none.npz')
    self.assertIsNone(benchmark._read(path, 'mark', 1))
    np.savez_compressed(
      path, mark='mark', curves=np.ones((1, 3)), mask0=np.ones((4, 5), bool), clicks0=[[1, 2, 1]]
    )
    self.assertEqual(benchmark._read(path, 'mark', 1)[2], [[(1, 2, True)]])
    self.assertIsNone(benchmark._read(path, 'other', 1))
    with open(path, 'rb') as file:
      whole = file.read()
    for length in (0, 10, len(whole) // 2, len(whole) - 5):
      with open(path, 'wb') as file:
        file.write(whole[:length])
      self.assertIsNone(benchmark._read(path, 'mark', 1))

  def test_more_objects_than_images(self):
    def chosen(count):
      config = config_lib.get_config()
      config.segmentation.objects = count
      return benchmark.Objects(specs.from_config(config))

    one, more = chosen(100), chosen(150)
    np.testing.assert_array_equal(one.images, np.arange(100))
    self.assertLen(more.scenes, 150)
    np.testing.assert_array_equal(more.images[:100], one.images)
    for i in range(100):
      np.testing.assert_array_equal(more.masks[i], one.masks[i])
    for k in range(100, 150):  # another object of an image that has more than one
      self.assertTrue((more.masks[k] != more.masks[more.images[k]]).any())
    self.assertLen(
      chosen(10000).scenes, sum(len(scene.objects) for scene in data.load(specs.Data()).test)
    )  # all there are, each once

  def test_batches_depend_on_seed_and_step_alone(self):
    spec = specs.from_config(config_lib.get_config('runlocal'))
    scenes = data.load(spec.data).train
    whole = training.make_batch(spec, scenes, 3, slice(0, 4))
    half = training.make_batch(spec, scenes, 3, slice(2, 4))
    for a, b in zip(whole, half):
      np.testing.assert_array_equal(a[2:], b)
    self.assertTrue((whole[0] != training.make_batch(spec, scenes, 4, slice(0, 4))[0]).any())
    image, mask, pixels, labels, _ = whole
    self.assertEqual(image.shape, (4, 48, 64, 3))
    for i in range(4):
      for pixel, label in zip(pixels[i], labels[i]):
        if label >= 0:
          self.assertEqual(mask[i][tuple(pixel)] == data.OBJECT, label == 1)

  def test_bad_settings(self):
    for changes, message in (
      ({'segmentation.crop': (50, 64)}, 'segmentation.crop must be two multiples of 16'),
      ({'segmentation.slots': 2}, 'segmentation.slots 2 must be at least segmentation.clicks 3'),
      ({'data.split': 'dev'}, "unknown data.split 'dev'; valid: val, test"),
      ({'task': 'painting'}, "unknown task 'painting'; valid: diffusion, segmentation"),
      (
        {'train.batch': 3, 'segmentation.channels': 0},
        r'segmentation.channels must be in \[1, 16384\]',
      ),
    ):
      config = config_lib.get_config('runlocal')
      config.update_from_flattened_dict(changes)
      with self.assertRaisesRegex(UserError, message):
        specs.from_config(config)
    workdir = self.create_tempdir().full_path
    with self.assertRaisesRegex(
      UserError, "task 'segmentation' has no mode 'sample'; valid: train, evaluate, all"
    ):
      tasks.run('sample', workdir, config_lib.get_config('runlocal'), 'test')
    with self.assertRaisesRegex(UserError, 'no checkpoint in .*train one first'):
      tasks.run('evaluate', workdir, config_lib.get_config('runlocal'), 'test')


if __name__ == '__main__':
  absltest.main()
