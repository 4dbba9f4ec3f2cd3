"""The crafted set: what it promises, and that it is read back."""

import numpy as np
from absl.testing import absltest

from gmm_diffusion.data import crafted


class CraftedTest(absltest.TestCase):
  def test_images_are_consistent_and_recognised(self):
    data = crafted.load()
    for images in (data.train, data.test):
      reading = crafted.read(images)
      self.assertTrue(np.all(crafted.consistent(reading)))
      self.assertTrue(np.all(reading.recognised))
    np.testing.assert_array_equal(crafted.read(data.train).themes[:, 0], data.train_labels)

  def test_what_is_held_out_is_novel_and_nothing_else(self):
    seen, held_out = crafted.combinations()
    self.assertEqual((len(seen), len(held_out)), (243, 81))
    data = crafted.load()
    self.assertFalse(np.any(crafted.novel(crafted.read(data.train))))
    self.assertTrue(np.all(crafted.novel(crafted.read(data.test))))

  def test_no_patch_about_an_object_shows_another(self):
    data = crafted.load()
    bright = np.any(data.train != crafted.GROUND, -1)
    self.assertEqual(data.train.shape, (243, 12, 12, 3))
    for image in bright[:40]:
      places = np.argwhere(image)
      near = np.max(np.abs(places[:, None] - places[None]), -1) <= 3
      same = np.all(places[:, None] // 6 == places[None] // 6, -1)
      self.assertFalse(np.any(near & ~same))

  def test_mixed_cells_are_inconsistent_at_the_chance_level(self):
    # cells shuffled among images are independent: 5 standard errors of a share of 1.6 % of 4000,
    # and the themes' own shares
    random = np.random.RandomState(0)
    images = crafted.load().train[random.randint(243, size=4000)]
    mixed = images.copy()
    for rows in (slice(0, 6), slice(6, 12)):
      for columns in (slice(0, 6), slice(6, 12)):
        mixed[:, rows, columns] = images[random.permutation(4000), rows, columns]
    reading = crafted.read(mixed)
    self.assertTrue(np.all(reading.recognised))
    self.assertAlmostEqual(
      np.mean(crafted.consistent(reading)), crafted.CHANCE_CONSISTENT, delta=0.012
    )
    self.assertAlmostEqual(
      crafted.chance(reading), crafted.np.mean(crafted.consistent(reading)), delta=0.01
    )

  def test_one_cell_alone_agrees_with_nothing(self):
    images = np.broadcast_to(crafted.GROUND, (3, 12, 12, 3)).copy()
    images[1, 1:4, 1:4] = images[2, 1:4, 1:4] = crafted.THEMES[0]
    images[2, 8:11, 8:11] = crafted.THEMES[0]
    np.testing.assert_array_equal(crafted.consistent(crafted.read(images)), [False, False, True])

  def test_noise_is_not_recognised(self):
    noise = np.random.RandomState(0).randint(0, 256, (50, 12, 12, 3)).astype(np.uint8)
    self.assertFalse(np.any(crafted.read(noise).recognised))
    self.assertFalse(np.any(crafted.novel(crafted.read(noise))))


if __name__ == '__main__':
  absltest.main()
