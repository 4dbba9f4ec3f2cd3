"""Metrics against golden values of the public implementations."""

import numpy as np
from absl.testing import absltest, parameterized

from gmm_diffusion.errors import UserError
from gmm_diffusion.metrics import frechet, precision_recall
from gmm_diffusion.metrics.inception_score import adm_score, inception_score, split_score
from gmm_diffusion.metrics.kernel import kernel_distance, kernel_subsets
from helpers import cases


def golden_features(seed, N, D, noise, amplitude, reference):
  """The feature sets of the golden values, regenerated; float64 copies of float32."""
  scale = 0.2 + 1.3 * np.random.RandomState(11).uniform(size=D)
  directions = np.random.RandomState(12).standard_normal((6, D))
  random = np.random.RandomState(seed)
  x = noise * scale * random.standard_normal((N, D))
  g = random.standard_normal((N, 6))
  for k in range(6):
    x += amplitude * (1.15 if reference else 1) * g[:, k : k + 1] * directions[k]
  return np.abs(x + 0.1 * reference).astype(np.float32).astype(np.float64)


SMALL = (
  golden_features(8001, 500, 64, 0.5, 0.6, False),
  golden_features(8002, 500, 64, 0.5, 0.6, True),
)
BIG = (
  golden_features(8003, 300, 2048, 0.15, 0.5, False),
  golden_features(8004, 350, 2048, 0.15, 0.5, True),
)
LOGITS = (
  2 * np.random.RandomState(8007).standard_normal((1000, 20)) + np.linspace(0, 1, 20)
).astype(np.float32)


class GoldenTest(parameterized.TestCase):
  def test_features_are_those_of_the_golden_file(self):
    golden = cases.golden('g8_metrics')
    np.testing.assert_allclose(SMALL[0][0, :8], golden['small/check_first_row_sample'], rtol=1e-6)

  def test_frechet(self):
    found = frechet.frechet_distance(*SMALL)
    np.testing.assert_allclose(found.value, 5.632259391489342, rtol=1e-10)

  def test_frechet_of_fewer_samples_than_dimensions(self):
    # the public ones have rounding of 1e-6; without it, the last trace comes from the features
    # themselves
    found = frechet.distance(*map(frechet.statistics, BIG))
    x, y = (features - features.mean(0) for features in BIG)
    gap, trace = (
      BIG[0].mean(0) - BIG[1].mean(0),
      np.linalg.norm(x @ y.T / np.sqrt(299 * 349), 'nuc'),
    )
    exact = gap @ gap + (x**2).sum() / 299 + (y**2).sum() / 349 - 2 * trace
    np.testing.assert_allclose(found, exact, rtol=1e-12)
    for peer in (219.243475005841, 219.2434750604034, 219.2436635613276):
      np.testing.assert_allclose(found, peer, rtol=1e-5)

  def test_spatial_frechet(self):
    spatial = (
      golden_features(8005, 260, 2023, 0.4, 0.5, False),
      golden_features(8006, 300, 2023, 0.4, 0.5, True),
    )
    np.testing.assert_allclose(
      frechet.distance(*map(frechet.statistics, spatial)), 482.5082444977879, rtol=1e-5
    )

  @parameterized.parameters(
    (SMALL, 10, 100, 2.055749094653577, 1.506103788756351),
    (BIG, 5, 200, 0.6057790372317043, 0.12496821667057058),
  )
  def test_kernel_subsets(self, features, subsets, size, mean, std):
    np.testing.assert_allclose(kernel_subsets(*features, subsets, size), (mean, std), rtol=1e-9)

  @parameterized.parameters(
    (10, None, 3.1875434961546145, 0.12722038564983829),
    (10, 2020, 3.1868482837129646, 0.12995658588051137),
    (1, None, 3.2469708365808345, 0),
    (1, 2020, 3.2469708365808345, 0),
    (7, None, 3.2010090288439614, 0.08813873338203845),
    (7, 2020, 3.207391127852179, 0.1029860235637971),
  )
  def test_split_score(self, splits, seed, mean, std):
    np.testing.assert_allclose(
      split_score(LOGITS, splits, seed), (mean, std), rtol=1e-9, atol=1e-12
    )

  @parameterized.parameters(
    (5000, 3.2469708365808345), (250, 3.229066126006897), (300, 3.2086996332123245)
  )
  def test_adm_score(self, size, expected):
    np.testing.assert_allclose(adm_score(LOGITS, size), expected, rtol=1e-10)

  @parameterized.parameters(('small', SMALL, 0.942, 0.84), ('big', BIG, 0.96, 0.8428571428571429))
  def test_adm_precision_recall(self, name, features, *expected):
    # to the last bit, radii included
    golden, way = cases.golden('g8_metrics'), precision_recall.DISTANCES['adm_float16']
    for key, x in zip(('sample', 'ref'), features):
      np.testing.assert_array_equal(
        precision_recall.radii(x, 3, way), golden[f'{name}/adm_radii_{key}']
      )
    found = precision_recall.improved_precision_recall(*features, 3, 'adm_float16')
    self.assertEqual(tuple(estimate.value for estimate in found), expected)

  @parameterized.parameters((SMALL, 0.94, 0.838), (BIG, 0.96, 0.8457142857142858))
  def test_adm_precision_recall_where_float16_overflows(self, features, *expected):
    found = precision_recall.improved_precision_recall(
      *(40 * x for x in features), 3, 'adm_float16'
    )
    self.assertEqual(tuple(estimate.value for estimate in found), expected)

  @parameterized.parameters(('small', SMALL), ('big', BIG))
  def test_radii(self, name, features):
    golden = cases.golden('g8_metrics')
    for key, x in zip(('sample', 'ref'), features):
      np.testing.assert_allclose(
        precision_recall.radii(x, 3), golden[f'{name}/radii_{key}'], rtol=1e-10
      )

  def test_kernel(self):
    np.testing.assert_allclose(kernel_distance(*SMALL).value, 2.474063517210896, rtol=1e-10)

  def test_precision_recall(self):
    precision, recall = precision_recall.improved_precision_recall(*SMALL, k=3)
    self.assertAlmostEqual(precision.value, 0.94, places=7)
    self.assertAlmostEqual(recall.value, 0.838, places=7)
    precision, recall = precision_recall.improved_precision_recall(*BIG, k=3)
    self.assertAlmostEqual(precision.value, 0.96, places=6)
    self.assertAlmostEqual(recall.value, 0.845714271068573, places=6)

  def test_inception_score(self):
    np.testing.assert_allclose(inception_score(LOGITS).value, 3.2469708365808345, rtol=1e-10)


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

  def test_statistics_of_batches(self):
    x = np.random.RandomState(0).randn(5000, 3).astype(np.float32) + 1000
    total = frechet.Accumulator()
    for start, stop in ((0, 1), (1, 2500), (2500, 5000)):
      total.add(x[start:stop])
    for found in (total.statistics(), frechet.statistics(x)):
      np.testing.assert_allclose(found.mean, x.mean(0, np.float64), rtol=1e-12)
      np.testing.assert_allclose(
        found.covariance, np.cov(x.T.astype(np.float64)), rtol=1e-9, atol=1e-12
      )

  def test_constant_features(self):
    a, b = (
      frechet.statistics(np.ones((5, 3))),
      frechet.statistics(np.random.RandomState(0).randn(5, 3)),
    )
    self.assertAlmostEqual(
      frechet.distance(a, b), ((a.mean - b.mean) ** 2).sum() + np.trace(b.covariance)
    )
    self.assertEqual(frechet.distance(a, a), 0)

  def test_statistics_as_reference(self):
    x, y = SMALL
    self.assertEqual(
      frechet.frechet_distance(x, frechet.statistics(y)), frechet.frechet_distance(x, y)
    )

  def test_too_few_samples(self):
    message = (
      '10 samples are too few for a Frechet distance on 2048 features: their covariance has at '
      'most 9 directions, and the distance would mostly say how few they are; use at least 256'
    )
    with self.assertRaisesRegex(UserError, message):
      frechet.frechet_distance(np.ones((10, 2048)), BIG[1])
    with self.assertRaisesRegex(UserError, '10 reference samples are too few'):
      frechet.frechet_distance(BIG[0], np.ones((10, 2048)))
    with self.assertRaisesRegex(UserError, '500 samples are too few .* use at least 600'):
      frechet.frechet_infinity(np.ones((500, 200)), np.ones((500, 200)))
    with self.assertRaisesRegex(
      UserError,
      'cannot fit a line to distances at 15 sizes from 500 to 500; valid: 3 sizes or more',
    ):
      frechet.frechet_infinity(*SMALL, smallest=500)

  def test_infinity_has_less_bias(self):
    # Twelve sets of 500 Gaussian samples of known distance; the mean of the extrapolated ones is
    # within four standard errors of it (false alarm: one in 4000 or so, seed fixed), the plain ones
    # are all too large.
    D = 16
    scale = np.linspace(0.5, 1.5, D)
    target = frechet.Statistics(np.zeros(D), np.eye(D))
    truth = frechet.distance(target, frechet.Statistics(np.full(D, 0.1), np.diag(scale**2)))
    sets = [np.random.RandomState(seed).randn(500, D) * scale + 0.1 for seed in range(12)]
    plain = np.array([frechet.frechet_distance(x, target).value for x in sets])
    found = [frechet.frechet_infinity(x, target) for x in sets]
    values = np.array([estimate.value for estimate in found])
    self.assertGreater(plain.mean() - truth, 4 * plain.std() / np.sqrt(12))
    self.assertLess(abs(values.mean() - truth), 4 * values.std() / np.sqrt(12))
    self.assertLess(abs(values.mean() - truth), abs(plain.mean() - truth) / 2)
    self.assertEqual(found[0], frechet.frechet_infinity(sets[0], target))
    self.assertGreaterEqual(sum(estimate.low < truth < estimate.high for estimate in found), 8)


class PrecisionRecallTest(absltest.TestCase):
  def test_disjoint_and_equal_sets(self):
    x = np.random.RandomState(0).randn(50, 3)
    for other, expected in ((x, 1.0), (x + 100, 0.0)):
      precision, recall = precision_recall.improved_precision_recall(x, other, 3)
      self.assertEqual((precision.value, recall.value), (expected, expected))

  def test_blocks_do_not_matter(self):
    x = np.random.RandomState(0).randn(2500, 2)
    d = np.sort(np.linalg.norm(x[:, None] - x[None], axis=-1), 1)[:, 3]
    np.testing.assert_allclose(precision_recall.radii(x, 3), d, atol=1e-7)

  def test_too_few(self):
    with self.assertRaisesRegex(UserError, '3 samples have no neighbour number 3'):
      precision_recall.radii(np.ones((3, 2)), 3)

  def test_unknown_distances(self):
    with self.assertRaisesRegex(UserError, "unknown distances 'half'; valid: float64, adm_float16"):
      precision_recall.improved_precision_recall(np.ones((9, 2)), np.ones((9, 2)), 3, 'half')


class SubsetsTest(absltest.TestCase):
  def test_bad_sizes(self):
    with self.assertRaisesRegex(
      UserError,
      'cannot draw subsets of 1000 from 500 samples and 500 of reference; valid: 2 to 500',
    ):
      kernel_subsets(*SMALL)
    with self.assertRaisesRegex(
      UserError, 'cannot split 1000 samples into 0 parts; valid: 1 to 1000'
    ):
      split_score(LOGITS, 0)
    with self.assertRaisesRegex(UserError, 'cannot split samples into parts of 0'):
      adm_score(LOGITS, 0)


if __name__ == '__main__':
  absltest.main()
