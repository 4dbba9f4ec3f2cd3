"""Intervals: the jackknife against known standard errors, and against the spread of repeated
draws."""

from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from gmm_diffusion.metrics import estimates, frechet, inception_score, kernel, precision_recall

REPEATS = 60


def errors(metric, draw):
  """(standard deviation of metric over draws, mean of its own standard errors)."""
  found = [metric(draw(np.random.RandomState(seed))) for seed in range(REPEATS)]
  return np.std([estimate.value for estimate in found], ddof=1), np.mean(
    [estimate.half for estimate in found]
  ) / 1.96


def leave_one_out(metric, x):
  """Influences by doing it."""
  value = metric(x)
  return np.array([(len(x) - 1) * (value - metric(np.delete(x, i, 0))) for i in range(len(x))])


class ShareTest(parameterized.TestCase):
  def test_known_interval(self):
    found = estimates.of_share(np.array([True] * 3 + [False] * 97))
    np.testing.assert_allclose(
      found, [0.03, 0.01025, 0.08452], atol=1e-4
    )  # Wilson's interval of 3 in 100
    self.assertGreater(estimates.of_share(np.zeros(100, bool)).high, 0.03)

  @parameterized.parameters(0, 1, 7, 200, 1000)
  def test_intervals_hold_the_share_and_stay_in_0_1(self, n):
    for count in {0, n // 2, n} if n else {0}:
      found = estimates.of_share(np.arange(max(1, n)) < count)
      self.assertTrue(0 <= found.low <= found.value <= found.high <= 1, found)


class JackknifeTest(parameterized.TestCase):
  def test_interval_of_a_mean(self):
    x = np.random.RandomState(0).randn(1000)
    found = estimates.jackknife(x.mean(), x)
    self.assertAlmostEqual(found.half, 1.96 * x.std(ddof=1) / np.sqrt(1000))
    self.assertAlmostEqual((found.low + found.high) / 2, x.mean())

  def test_printed_with_the_digits_that_mean_something(self):
    self.assertEqual(str(estimates.Estimate(0.12345, 0.1, 0.1469)), '0.123 ± 0.023')

  def test_blocks_cover(self):
    self.assertEqual(estimates.blocks(7, 3), [slice(0, 3), slice(3, 6), slice(6, 7)])

  # The standard deviation of 60 draws is known to 9 %, so a factor within 0.7 and 1.45 is more than
  # three of that; the jackknife errs upwards where a value is not smooth (recall) or its gradient
  # almost vanishes.
  @parameterized.parameters(
    (8, 300, 0.3, 1.45), (32, 300, 0.1, 1.45), (32, 24, 0.1, 1.7), (64, 64, 0.3, 1.7)
  )
  def test_frechet(self, D, N, shift, most):
    # 24 samples in 32 dimensions: the covariances are rank deficient
    scale, target = np.linspace(0.5, 1.5, D), frechet.Statistics(np.zeros(D), np.eye(D))
    spread, error = errors(
      lambda x: frechet.frechet_distance(x, target),
      lambda random: random.randn(N, D) * scale + shift,
    )
    self.assertBetween(error / spread, 0.75, most)

  def test_frechet_to_a_reference_of_lower_rank(self):
    y = np.random.RandomState(100).randn(10, 16)
    spread, error = errors(
      lambda x: frechet.frechet_distance(x, y), lambda random: random.randn(200, 16) + 0.2
    )
    self.assertBetween(error / spread, 0.75, 1.45)

  @parameterized.parameters((40, 6), (12, 16))
  def test_influence_is_the_gradient_in_the_weights_of_the_samples(self, N, D):
    # the distance to weighted samples, differentiated numerically
    random = np.random.RandomState(0)
    x, target = random.randn(N, D), frechet.statistics(random.randn(50, D) * 1.5 + 0.3)
    own = frechet.statistics(x)
    biased = own._replace(covariance=own.covariance * (N - 1) / N)
    found = frechet.influence(x, biased, target, frechet._factor(target.covariance))

    def at(weights):
      weights = weights / weights.sum()
      mean = weights @ x
      return frechet.distance(target, frechet.Statistics(mean, (x - mean).T * weights @ (x - mean)))

    h = 1e-4
    numeric = np.array([(at(1 + h * row) - at(1 - h * row)) / (2 * h) for row in np.eye(N)]) * N
    np.testing.assert_allclose(found - found.mean(), numeric, rtol=2e-4, atol=2e-4)

  def test_kernel(self):
    y = np.random.RandomState(100).randn(300, 4) + 0.3
    spread, error = errors(
      lambda x: kernel.kernel_distance(x, y), lambda random: random.randn(150, 4)
    )
    self.assertBetween(error / spread, 0.7, 1.4)
    x = np.random.RandomState(0).randn(12, 4)
    expected = estimates.jackknife(
      0, leave_one_out(lambda z: kernel.kernel_distance(z, y).value, x)
    ).half
    self.assertAlmostEqual(kernel.kernel_distance(x, y).half, expected, places=9)

  def test_kernel_subsets(self):
    # few subsets: most of the error is theirs; many: that of having 100 samples, which the variance
    # of subsets of 40 overstates, as they are drawn from a reference too
    y = np.random.RandomState(100).randn(300, 4) + 0.3
    for subsets in (2, 40):
      spread, error = errors(
        lambda x: kernel.kernel_subsets_distance(x, y, subsets, 40),
        lambda random: random.randn(100, 4),
      )  # pylint: disable=cell-var-from-loop
      self.assertBetween(error / spread, 0.7, 2.6)

  def test_kernel_in_blocks(self):
    # more than one block of rows; the triangle must count each pair once
    random = np.random.RandomState(0)
    x, y = random.randn(2100, 2), random.randn(2060, 2) + 0.5
    k = lambda a, b: (a @ b.T / 2 + 1) ** 3
    mean = lambda z: (k(z, z).sum() - np.trace(k(z, z))) / (len(z) * (len(z) - 1))
    self.assertAlmostEqual(
      kernel.kernel_distance(x, y).value, mean(x) + mean(y) - 2 * k(x, y).mean(), places=9
    )

  def test_score(self):
    logits = lambda random: 2 * random.standard_normal((200, 5))
    spread, error = errors(inception_score.inception_score, logits)
    self.assertBetween(error / spread, 0.7, 1.4)

  def test_precision_and_recall(self):
    y = np.random.RandomState(100).randn(200, 8) * 1.2
    draw = lambda random: random.randn(200, 8)
    for which in (0, 1):
      spread, error = errors(
        lambda x: precision_recall.improved_precision_recall(x, y, 3)[which], draw
      )  # pylint: disable=cell-var-from-loop
      self.assertBetween(error / spread, 0.7, 1.6)

  @parameterized.parameters(1, 3, 2048)
  def test_recall_counts_what_one_sample_alone_covers(self, block):
    way = precision_recall.DISTANCES['float64']._replace(block=block)
    self.enter_context(mock.patch.dict(precision_recall.DISTANCES, float64=way))
    # on a line, far apart: each sample covers the points next to it, and the radius of the others
    # does not reach
    x = np.array([[0.0], [0.1], [10.0], [10.1]])
    y = np.array([[0.05], [10.05], [10.06], [50.0], [50.1]])
    found = precision_recall.improved_precision_recall(x, y, 1)[1]
    self.assertEqual((found.value, found.half), (0.6, 0.0))  # all three are covered twice
    y = np.array([[-0.05], [0.05], [10.15], [10.16], [50.0]])
    found = precision_recall.improved_precision_recall(x, y, 1)[1]
    alone = np.array([1, 0, 0, 2]) * 3 / 5
    self.assertAlmostEqual(found.half, 1.96 * alone.std(ddof=1) / 2)


if __name__ == '__main__':
  absltest.main()
