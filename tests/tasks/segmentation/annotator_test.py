"""The simulated annotator on small masks."""

import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given, settings, strategies

from gmm_diffusion.tasks.segmentation import annotator, scenes
from gmm_diffusion.tasks.segmentation.annotator import Click


class AnnotatorTest(parameterized.TestCase):
  def test_clicks_the_centre_of_the_largest_error(self):
    mask = np.zeros((20, 30), np.uint8)
    mask[2:9, 3:10] = scenes.OBJECT
    self.assertEqual(annotator.next_click(mask, np.zeros(mask.shape, bool), []), Click(5, 6, True))
    wrong = mask == scenes.OBJECT
    wrong[9:20, 15:26] = True  # a larger region that is too much
    self.assertEqual(annotator.next_click(mask, wrong, []), Click(14, 20, False))
    mask[9:20, 15:26] = scenes.IGNORE
    self.assertIsNone(annotator.next_click(mask, wrong, []))

  def test_never_clicks_a_pixel_twice(self):
    mask = np.zeros((5, 5), np.uint8)
    mask[2, 2] = scenes.OBJECT
    self.assertIsNone(annotator.next_click(mask, np.zeros(mask.shape, bool), [Click(2, 2, True)]))

  @settings(max_examples=20)
  @given(strategies.integers(0, 2**31), strategies.integers(1, 8))
  def test_clicks_to_train_with_are_right(self, seed, count):
    random = np.random.RandomState(seed)
    mask = (random.rand(12, 16) < 0.3).astype(np.uint8)
    mask[0, 0] = scenes.OBJECT
    for click in annotator.first_clicks(mask, count, random):
      self.assertEqual(click.positive, mask[click.row, click.column] == scenes.OBJECT)


if __name__ == '__main__':
  absltest.main()
