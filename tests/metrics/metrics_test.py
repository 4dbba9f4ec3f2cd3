"""Metrics against golden values of the public implementations."""

import os

import cases
import numpy as np
from absl.testing import absltest, parameterized

from gmm_diffusion import metrics, specs
from gmm_diffusion.aliases import UserError
from gmm_diffusion.data import sources
from gmm_diffusion.metrics import features, frechet, precision_recall
from gmm_diffusion.metrics.estimates import bootstrap
from gmm_diffusion.metrics.inception_score import inception_score
from gmm_diffusion.metrics.kernel import kernel_distance


def golden_features(seed, N, D, noise, amplitude, reference):
  """The feature sets of the golden values, regenerated; float64 copies of float32."""
  scale = 0.2 + 1.3 * np.random.RandomState(11).uniform(size=D)
  directions = np.random.RandomState(12).standard_normal((6, D))
  random = np.random.RandomState(seed)
  x = noise * scale * random.standard_normal((N, D))
  g = random.standard_normal((N, 6))
  for k in range(6):
    x += amplitude * (1.15 if reference else 1) * g[:, k:k + 1] * directions[k]
  return np.abs(x + 0.1 * reference).astype(np.float32).astype(np.float64)


SMALL = golden_features(8001, 500, 64, 0.5, 0.6, False), golden_features(8002, 500, 64, 0.5, 0.6, True)
LOGITS = (2 * np.random.RandomState(8007).standard_normal((1000, 20)) + np.linspace(0, 1, 20)).astype(np.float32)


class GoldenTest(parameterized.TestCase):

  def test_features_are_those_of_the_golden_file(self):
    golden = cases.golden('g8_metrics')
    np.testing.assert_allclose(SMALL[0][0, :8], golden['small/check_first_row_sample'], rtol=1e-6)

  def test_frechet(self):
    found = frechet.frechet_distance(*SMALL, resamples=2)
    np.testing.assert_allclose(found.value, 5.632259391489342, rtol=1e-10)

  def test_kernel(self):
    np.testing.assert_allclose(kernel_distance(*SMALL, resamples=2).value, 2.474063517210896, rtol=1e-10)

  def test_precision_recall(self):
    precision, recall = precision_recall.improved_precision_recall(*SMALL, k=3, resamples=2)
    self.assertAlmostEqual(precision.value, 0.94, places=7)
    self.assertAlmostEqual(recall.value, 0.838, places=7)

  def test_inception_score(self):
    np.testing.assert_allclose(inception_score(LOGITS, resamples=2).value, 3.2469708365808345, rtol=1e-10)


class FrechetTest(absltest.TestCase):

  def test_diagonal_gaussians(self):
    first = frechet.Statistics(np.array([1.0, 0.0]), np.diag([4.0, 1.0]))
    second = frechet.Statistics(np.array([0.0, 2.0]), np.diag([1.0, 9.0]))
    self.assertAlmostEqual(frechet.distance(first, second), 1 + 4 + (2 - 1) ** 2 + (1 - 3) ** 2)

  def test_fewer_samples_than_dimensions(self):
    # rank-deficient covariances: the distance to itself is still zero, and symmetric
    x, y = np.random.RandomState(0).randn(2, 10, 40)
    a, b = frechet.statistics(x), frechet.statistics(y)
    self.assertAlmostEqual(frechet.distance(a, a), 0, places=6)
    self.assertAlmostEqual(frechet.distance(a, b), frechet.distance(b, a), places=6)

  def test_counts_are_repetitions(self):
    x = np.random.RandomState(0).randn(5, 3)
    counts = np.array([2.0, 0, 1, 3, 1])
    found = frechet.statistics(x, counts)
    expected = frechet.statistics(np.repeat(x, counts.astype(int), 0))
    np.testing.assert_allclose(found.mean, expected.mean)
    np.testing.assert_allclose(found.covariance, expected.covariance)


class BootstrapTest(absltest.TestCase):

  def test_interval_of_a_mean(self):
    # the standard error of a mean is known: std / sqrt(n); 400 resamples know it to about 4 %
    x = np.random.RandomState(0).randn(1000)
    found = bootstrap(lambda counts: counts @ x / counts.sum(), 1000, 400)
    self.assertAlmostEqual(found.value, x.mean())
    self.assertAlmostEqual((found.high - found.low) / 2, 1.96 * x.std() / np.sqrt(1000), delta=0.01)

  def test_printed_with_the_digits_that_mean_something(self):
    self.assertEqual(str(metrics.Estimate(0.12345, 0.1, 0.1469)), '0.123 ± 0.023')


class PrecisionRecallTest(absltest.TestCase):

  def test_disjoint_and_equal_sets(self):
    x = np.random.RandomState(0).randn(50, 3)
    for other, expected in ((x, 1.0), (x + 100, 0.0)):
      precision, recall = precision_recall.improved_precision_recall(x, other, 3, 2)
      self.assertEqual((precision.value, recall.value), (expected, expected))

  def test_blocks_do_not_matter(self):
    x = np.random.RandomState(0).randn(2500, 2)
    d = np.sort(np.linalg.norm(x[:, None] - x[None], axis=-1), 1)[:, 3]
    np.testing.assert_allclose(precision_recall.radii(x, 3), d, atol=1e-7)

  def test_too_few(self):
    with self.assertRaisesRegex(UserError, '3 samples have no neighbour number 3'):
      precision_recall.radii(np.ones((3, 2)), 3)


class FeaturesTest(absltest.TestCase):

  def test_identity_and_unknown(self):
    data = sources.load(specs.Data('toy'))
    found, logits = features.load('identity', data, '').extract(data.test[:5])
    np.testing.assert_array_equal(found, data.test[:5])
    self.assertIsNone(logits)
    with self.assertRaisesRegex(UserError, "unknown evaluate.features 'inception'; valid: classifier, identity"):
      features.load('inception', data, '')
    with self.assertRaisesRegex(UserError, "needs images; valid here: identity"):
      features.load('classifier', data, '')

  def test_classifier_is_accurate_cached_and_checked(self):
    data = sources.load(specs.Data('digits'))
    folder = self.create_tempdir().full_path
    first = features.load('classifier', data, folder)
    found, logits = first.extract(data.test)
    self.assertGreater(np.mean(logits.argmax(1) == data.test_labels), 0.95)
    self.assertAlmostEqual(np.sqrt(np.mean(first.extract(data.train)[0] ** 2)), 1, places=5)
    second = features.load('classifier', data, folder)
    self.assertEqual(first.name, second.name)
    np.testing.assert_array_equal(second.extract(data.test)[0], found)
    path, = (entry.path for entry in os.scandir(folder))
    with open(path, 'wb') as file:
      file.write(b'not a network')
    with self.assertRaisesRegex(UserError, 'cannot read feature network'):
      features.load('classifier', data, folder)

  def test_non_finite_features(self):
    with self.assertRaisesRegex(UserError, '1 of 3 samples have non-finite features'):
      metrics.compare(np.array([[0.0], [np.nan], [1.0]]), np.ones((5, 1)), None, 3, 2)


if __name__ == '__main__':
  absltest.main()
