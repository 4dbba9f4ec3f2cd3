"""Nearest training images, and how often samples are nearer than new images."""

import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given
from hypothesis import strategies as st

from gmm_diffusion.metrics import copies


class NearestTest(parameterized.TestCase):
  @given(st.integers(1, 30), st.integers(1, 60), st.integers(0, 99))
  def test_against_all_distances(self, count, others, seed):
    random = np.random.RandomState(seed)
    x, y = random.randn(count, 3), random.randn(others, 3)
    with absltest.mock.patch.object(copies, '_BLOCK', 7):
      distance, index = copies.nearest(x, y)
    every = np.linalg.norm(x[:, None] - y[None], axis=-1)
    np.testing.assert_allclose(distance, every.min(1), atol=1e-12)
    np.testing.assert_allclose(every[np.arange(count), index], every.min(1), atol=1e-12)

  def test_a_copy_has_no_distance(self):
    y = np.random.RandomState(0).randn(50, 64).astype(np.float32) * 100
    distance, index = copies.nearest(y[::-1], y)
    np.testing.assert_array_equal(index, np.arange(50)[::-1])
    np.testing.assert_array_equal(distance, 0)


class NearerTest(parameterized.TestCase):
  def test_extremes_and_ties(self):
    new = np.array([2.0, 3.0, 5.0])
    self.assertEqual(copies.nearer(np.zeros(4), new)[:], (1, 1, 1))
    self.assertEqual(copies.nearer(np.full(4, 9.0), new)[:], (0, 0, 0))
    # of 2 x 3 pairs: 3 beats 5 and ties with 3; 2 beats 3 and 5 and ties with 2
    self.assertAlmostEqual(copies.nearer(np.array([3.0, 2.0]), new).value, (1.5 + 2.5) / 6)

  def test_interval_covers(self):
    """P(z < z' + 1) of normal numbers is Phi(1 / sqrt(2)). Of 1,000 intervals of 95 % between 92 %
    and 98 % cover it: by chance not once in 10,000."""
    random, expected = np.random.RandomState(0), 0.76025
    hits = 0
    for _ in range(1000):
      found = copies.nearer(random.randn(60), random.randn(90) + 1)
      hits += found.low <= expected <= found.high
    self.assertBetween(hits, 920, 980)


if __name__ == '__main__':
  absltest.main()
