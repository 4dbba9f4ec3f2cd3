"""Comparison, calibration, provenance and locality on cases whose answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy import stats

from gmm_diffusion.denoisers import score_machines
from gmm_diffusion.maths import grids, marginals, schedules
from gmm_diffusion.tasks.creativity import calibrate, compare, locality, provenance
from gmm_diffusion.types import Time

RANDOM = np.random.RandomState(0)


class CompareTest(parameterized.TestCase):
  def test_r_is_pearsons_and_r2_is_its_square(self):
    one, other = RANDOM.randn(9, 4, 5, 2), RANDOM.randn(9, 4, 5, 2)
    expected = np.array([stats.pearsonr(a.ravel(), b.ravel())[0] for a, b in zip(one, other)])
    np.testing.assert_allclose(compare.pearson(one, other), expected, atol=1e-12)
    found = compare.agreement(one, other)
    self.assertAlmostEqual(found['r'].value, np.median(expected))
    self.assertAlmostEqual(found['r2'].value, np.median(expected**2))
    np.testing.assert_allclose(compare.pearson(one, -3 * one + 2), -1)
    np.testing.assert_array_equal(compare.pearson(one * 0, other), 0)

  def test_nearest(self):
    known, images = RANDOM.randn(30, 3, 3, 1), RANDOM.randn(7, 3, 3, 1)
    squares = np.mean((images[:, None] - known[None]) ** 2, (2, 3, 4))
    index, distance = compare.nearest(images, known, block=3)
    np.testing.assert_array_equal(index, np.argmin(squares, 1))
    np.testing.assert_allclose(distance, np.sqrt(np.min(squares, 1)))
    found = compare.memorised(known[:5], known, images)
    self.assertEqual((found['distance'].value, found['memorised'].value), (0.0, 1.0))

  def test_intervals(self):
    # 95 % of the intervals of a median hold it: of 200, fewer than 170 have probability below 1e-6
    random = np.random.RandomState(1)
    held = [
      found.low < 0 < found.high
      for found in (compare.median(random.randn(60), 100) for _ in range(200))
    ]
    self.assertGreater(sum(held), 170)

  def test_intervals_of_r_stay_where_r_can_be(self):
    one = RANDOM.randn(8, 4, 4, 1)
    other = one + RANDOM.randn(8, 1, 1, 1) ** 2 * RANDOM.randn(*one.shape)  # r from 0.2 to 1
    for found in (compare.agreement(one, other), compare.agreement(one, -other)):
      self.assertTrue(-1 <= found['r'].low and found['r'].high <= 1, found)
      self.assertTrue(0 <= found['r2'].low and found['r2'].high <= 1, found)
      self.assertTrue(-1 <= found['cosine'].low and found['cosine'].high <= 1, found)

  def test_baselines(self):
    known = RANDOM.randn(20, 4, 4, 1)
    found = compare.baselines(known[:8], known)
    self.assertAlmostEqual(found['nearest training image'].value, 1)
    self.assertLess(found['random pair'].value, 0.6)


class CalibrationTest(absltest.TestCase):
  def test_the_size_of_the_machine_that_is_the_network(self):
    # the "network" is a machine with 5 x 5 patches above b = 0.5 and 3 x 3 below
    images = RANDOM.uniform(-1, 1, (6, 8, 8, 1)).astype(np.float32)
    network = score_machines.make('ELS', images, ((0.5, 3), (1.0, 5)))
    grid = grids.make(schedules.linear(), 4, 'uniform')
    states = [
      np.asarray(
        marginals.diffuse(images[:3], RANDOM.randn(3, 8, 8, 1).astype(np.float32), Time(0, a, b))
      )
      for a, b in zip(grid.a_t, grid.b_t)
    ]
    eps = lambda denoiser: jax.jit(lambda x, time: denoiser(x, time, None).eps)
    found = calibrate.calibrate(
      np.stack(states),
      grid,
      eps(network),
      lambda size: eps(score_machines.make('ELS', images, size)),
      (3, 5),
    )
    self.assertEqual(
      [size for _, size in found.sizes], [3 if b <= 0.5 else 5 for b in sorted(grid.b_t)]
    )
    np.testing.assert_allclose(found.cosines.max(1), 1, atol=1e-5)
    levels = [b for b, _ in found.sizes]
    self.assertEqual(levels, sorted(levels))
    for b, level in zip(sorted(grid.b_t), levels):
      self.assertLessEqual(b, level)


class ProvenanceTest(parameterized.TestCase):
  @parameterized.parameters('interior', 'all')
  def test_pieces_of_training_images(self, places):
    known = RANDOM.uniform(-1, 1, (5, 8, 9, 2)).astype(np.float32)
    copy = provenance.trace(known[3:4], known, 3, places=places, block=2)
    inside = np.s_[0, 1:-1, 1:-1]
    np.testing.assert_array_equal(copy.image[inside], 3)
    y, x = np.indices((8, 9))
    np.testing.assert_array_equal(copy.place[inside], np.stack([y, x], -1)[1:-1, 1:-1])
    np.testing.assert_allclose(copy.distance[inside], 0, atol=1e-3)
    if places == 'all':
      np.testing.assert_array_equal(copy.image, 3)
      self.assertEqual(provenance.pieces(copy).tolist(), [1])
      np.testing.assert_array_equal(provenance.mosaic(copy, known)[0], known[3:4])

  def test_a_collage(self):
    known = RANDOM.uniform(-1, 1, (4, 8, 8, 1)).astype(np.float32)
    collage = np.concatenate([known[1, :, :4], known[2, :, 4:]], 1)[None]
    trace = provenance.trace(collage, known, 3, 'zero', 'all')
    np.testing.assert_array_equal(trace.image[0, :, :3], 1)
    np.testing.assert_array_equal(trace.image[0, :, 5:], 2)
    self.assertGreaterEqual(provenance.pieces(trace)[0], 2)
    made, colours = provenance.mosaic(trace, known)
    np.testing.assert_array_equal(made[0, :, :3], collage[0, :, :3])
    self.assertEqual(colours.shape, (1, 8, 8, 3))


class LocalityTest(absltest.TestCase):
  def test_a_known_filter(self):
    def denoiser(x, time, cond):  # x_0 = 0.8 of the pixel and 0.6 of the one two to the right
      return marginals.from_x0(x, 0.8 * x + 0.6 * jnp.roll(x, -2, 2), time)

    found = locality.sensitivity(denoiser)(
      jnp.asarray(RANDOM.randn(3, 7, 9, 2), jnp.float32), Time(0.0, 0.6, 0.8)
    )
    expected = np.zeros((7, 9))
    expected[3, 4], expected[3, 6] = 0.8, 0.6
    np.testing.assert_allclose(found, expected, atol=1e-6)
    self.assertEqual((locality.reach(found), locality.reach(found, 0.6)), (5, 1))


if __name__ == '__main__':
  absltest.main()
