"""--mode=evaluate on a folder of one's own images and masks, from the command line."""

import json
import os
import tempfile
from unittest import mock

import numpy as np
from absl.testing import absltest
from PIL import Image

from gmm_diffusion.tasks.segmentation import benchmark, model, report, scenes
from helpers import cli, segmenter

SHAPES = {'small': (48, 64), 'tall': (90, 70)}  # the second is worked on at another size
METRICS = ('IoU@1', 'IoU@2', 'IoU@3', 'NoC@85', 'NoC@90')


def mask_of(shape):
  """An object, a band around it that nobody has labelled, and the background."""
  mask = np.zeros(shape, np.uint8)
  mask[8:36, 8:44] = 128
  mask[14:30, 14:36] = 255
  return mask


def evaluate(folder):
  """Of the images and masks in a folder: ({(row, metric): record}, report.html, {row: Course})."""
  workdir = tempfile.mkdtemp(dir=folder)
  with mock.patch.object(report, 'write', wraps=report.write) as written:
    code, _, error = cli.here(
      'segmentation.py:runlocal',
      'evaluate',
      workdir,
      f'--config.data.images={folder}/images',
      f'--config.data.masks={folder}/masks',
      f'--config.segmentation.weights={folder}/net.npz',
      '--config.segmentation.baseline=False',
      '--config.segmentation.size=64',
    )
  assert not code, error
  with open(os.path.join(workdir, 'results.json'), encoding='utf-8') as file:
    records = {(one['sampler'], one['metric']): one for one in json.load(file)}
  with open(os.path.join(workdir, 'report.html'), encoding='utf-8') as file:
    return records, file.read(), written.call_args.args[2]


class OwnFolderTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = cls.enterClassContext(tempfile.TemporaryDirectory())
    for part in ('images', 'masks'):
      os.mkdir(os.path.join(cls.folder, part))
    segmenter.network().save(os.path.join(cls.folder, 'net.npz'))
    for seed, (name, shape) in enumerate(SHAPES.items()):
      segmenter.write_image(os.path.join(cls.folder, 'images', f'{name}.png'), (*shape, 3), seed)
      Image.fromarray(mask_of(shape)).save(os.path.join(cls.folder, 'masks', f'{name}.png'))
    cls.records, cls.report, cls.courses = evaluate(cls.folder)

  def test_quality_against_clicks_is_reported_of_the_images(self):
    for arm in model.ARMS:
      for metric in METRICS:
        record = self.records[arm, metric]
        self.assertEqual((record['n'], record['images'], record['split']), (2, 2, 'test'))
      curves = self.courses[arm].curves
      self.assertEqual(curves.shape, (2, 3))
      for k in (1, 2, 3):
        self.assertAlmostEqual(self.records[arm, f'IoU@{k}']['value'], curves[:, k - 1].mean(), 6)
      self.assertBetween(self.records[arm, 'NoC@85']['value'], 1, 3)
    self.assertIn('2 objects of 2 images (test set), each clicked 3 times', self.report)
    for text in (*METRICS, 'small: truth', 'tall: truth', 'value propagation: IoU '):
      self.assertIn(text, self.report)

  def test_iou_is_that_of_the_pixels_that_are_labelled(self):
    differ = []
    for arm in model.ARMS:
      course = self.courses[arm]
      for i, shape in enumerate(SHAPES.values()):
        mask, predicted = mask_of(shape), course.masks[i]
        self.assertEqual(predicted.shape, shape)  # of the image as it came in
        iou = lambda where: (
          (predicted & (mask == 255))[where].sum() / (predicted | (mask == 255))[where].sum()
        )
        self.assertAlmostEqual(course.curves[i, -1], iou(mask != 128), 6)
        differ.append(iou(mask >= 0) != iou(mask != 128))
        self.assertNotIn(128, [mask[click.row, click.column] for click in course.clicks[i]])
    self.assertTrue(any(differ))  # had the band been background, it would have counted

  def test_what_is_said_of_pixels_of_128_changes_nothing(self):
    real = benchmark.predictor

    def turned(objects, *more):
      """A predictor that says the opposite of the network where the mask is 128."""
      predict = real(objects, *more)
      unknown = [mask == scenes.IGNORE for mask in objects.masks]
      return lambda clicks, advance: [
        [mask ^ where for mask, where in zip(row, unknown)] for row in predict(clicks, advance)
      ]

    with mock.patch.object(benchmark, 'predictor', turned):
      records, _, courses = evaluate(self.folder)
    for arm in model.ARMS:
      self.assertEqual(courses[arm].clicks, self.courses[arm].clicks)
      self.assertTrue((courses[arm].masks[0] != self.courses[arm].masks[0]).any())
      for metric in METRICS:
        self.assertEqual(records[arm, metric]['value'], self.records[arm, metric]['value'])


if __name__ == '__main__':
  absltest.main()
