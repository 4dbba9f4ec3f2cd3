"""IoU, clicks needed and intervals on curves of known means."""

import numpy as np
from absl.testing import absltest

from gmm_diffusion.tasks.segmentation import metrics


class MetricsTest(absltest.TestCase):
  def test_iou(self):
    mask = np.array([[1, 1, 0, 2]], np.uint8)
    self.assertEqual(metrics.iou(np.array([[True, False, True, True]]), mask), 1 / 3)
    self.assertEqual(metrics.iou(mask == 1, mask), 1)

  def test_summary(self):
    curves = np.array([[0.2, 0.86, 0.95], [0.1, 0.2, 0.3]])
    np.testing.assert_array_equal(metrics.clicks_needed(curves, 0.85), [2, 3])
    found = metrics.summary(curves, np.arange(2))
    self.assertEqual(
      {name: found[name].value for name in ('IoU@1', 'IoU@3', 'NoC@85', 'NoC@90', 'failures@90')},
      {
        'IoU@1': 0.15000000000000002,
        'IoU@3': 0.625,
        'NoC@85': 2.5,
        'NoC@90': 3,
        'failures@90': 0.5,
      },
    )
    self.assertGreater(found['IoU@3'].high - found['IoU@3'].low, 0.5)  # two objects say little

  def test_differences_are_paired(self):
    curves = np.random.RandomState(0).rand(50, 20)
    found = metrics.differences(curves + 0.1, curves, np.arange(50))
    self.assertAlmostEqual(found['IoU@5'].value, 0.1)
    self.assertAlmostEqual(found['IoU@5'].half, 0)
    other = metrics.differences(curves, curves[::-1], np.arange(50))['IoU@5']
    self.assertGreater(other.half, 0.05)
    self.assertAlmostEqual(
      metrics.differences(curves, np.zeros_like(curves), np.arange(50))['NoC@85'].value,
      metrics.summary(curves, np.arange(50))['NoC@85'].value - 20,
    )

  def test_objects_of_one_image_are_one_sample(self):
    curves, images = np.random.RandomState(0).rand(50, 20), np.arange(50)
    once = metrics.summary(curves, images)['IoU@5']
    twice = metrics.summary(np.repeat(curves, 2, 0), np.repeat(images, 2))['IoU@5']
    self.assertAlmostEqual(once.value, twice.value)
    self.assertAlmostEqual(once.half, twice.half)


if __name__ == '__main__':
  absltest.main()
