"""GrabCut on two colours."""

import numpy as np
from absl.testing import absltest

from gmm_diffusion.tasks.segmentation import grabcut, metrics
from gmm_diffusion.tasks.segmentation.annotator import Click


class GrabCutTest(absltest.TestCase):
  @absltest.skipUnless(grabcut.available(), 'OpenCV is optional')
  def test_separates_two_colours(self):
    picture = np.full((40, 60, 3), 30, np.uint8)
    picture[10:30, 15:35] = (200, 40, 40)
    picture = np.clip(
      picture + np.random.RandomState(0).randint(-8, 8, picture.shape), 0, 255
    ).astype(np.uint8)
    found = grabcut.segment(picture, [Click(20, 25, True), Click(5, 50, False)])
    self.assertGreater(
      metrics.iou(found, np.pad(np.ones((20, 20), np.uint8), ((10, 10), (15, 25)))), 0.9
    )


if __name__ == '__main__':
  absltest.main()
