"""The crafted set: what it promises, and that it is read back."""

import numpy as np
from absl.testing import absltest

from gmm_diffusion.creativity import crafted


class CraftedTest(absltest.TestCase):

  def test_images_are_consistent_and_recognised(self):
    data = crafted.load(300, 100)
    for images in (data.train, data.test):
      reading = crafted.read(images)
      self.assertTrue(np.all(crafted.consistent(reading)))
      self.assertTrue(np.all(reading.recognised))
    np.testing.assert_array_equal(crafted.read(data.train).themes[:, 0], data.train_labels)

  def test_what_is_held_out_is_novel_and_nothing_else(self):
    seen, held_out = crafted.combinations()
    self.assertEqual((len(seen), len(held_out)), (243, 81))
    data = crafted.load(300, 100)
    self.assertFalse(np.any(crafted.novel(crafted.read(data.train))))
    self.assertTrue(np.all(crafted.novel(crafted.read(data.test))))

  def test_no_patch_about_an_object_shows_another(self):
    data = crafted.load(200, 1)
    padded = np.pad(data.train, ((0, 0), (4, 4), (4, 4), (0, 0)), constant_values=30)
    patches = np.lib.stride_tricks.sliding_window_view(padded, (9, 9), (1, 2))  # [N, 18, 18, 3, 9, 9]
    bright = np.any(data.train != crafted.GROUND, -1)
    y, x = np.indices((18, 18))
    cell = (y // 9) * 2 + x // 9
    for n in range(20):
      for i, j in np.argwhere(bright[n]):
        rows, columns = np.argwhere(np.any(patches[n, i, j] != 30, 0)).T
        cells = cell[np.clip(i + rows - 4, 0, 17), np.clip(j + columns - 4, 0, 17)]
        self.assertLessEqual(len(set(cells.tolist())), 1)

  def test_mixed_cells_are_inconsistent_at_the_chance_level(self):
    # cells shuffled among images are independent: 5 standard errors of a share of 1.6 % of 4000
    images = crafted.load(4000, 1).train
    random = np.random.RandomState(0)
    mixed = images.copy()
    for rows in (slice(0, 9), slice(9, 18)):
      for columns in (slice(0, 9), slice(9, 18)):
        mixed[:, rows, columns] = images[random.permutation(4000), rows, columns]
    reading = crafted.read(mixed)
    self.assertTrue(np.all(reading.recognised))
    self.assertAlmostEqual(np.mean(crafted.consistent(reading)), crafted.CHANCE_CONSISTENT, delta=5 * np.sqrt(0.0156 / 4000))
    self.assertAlmostEqual(crafted.chance(reading), crafted.CHANCE_CONSISTENT, delta=0.003)

  def test_noise_is_not_recognised(self):
    noise = np.random.RandomState(0).randint(0, 256, (50, 18, 18, 3)).astype(np.uint8)
    self.assertFalse(np.any(crafted.read(noise).recognised))
    self.assertFalse(np.any(crafted.novel(crafted.read(noise))))


if __name__ == '__main__':
  absltest.main()
