"""References: any store, the cache, and what does not fit; which metrics are possible."""

import glob
import os
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from gmm_diffusion import metrics
from gmm_diffusion.data.image_sets import ArraySet
from gmm_diffusion.errors import UserError
from gmm_diffusion.metrics import features, frechet, references
from helpers.fake_features import IMAGES, fake

WIDE = fake()._replace(dimensions={'features': 2048, 'logits': 1008, 'spatial': 2023})


class Counting:
  """Features that count the images they saw."""

  def __init__(self):
    self.seen = 0
    self.features = fake(self.extract)

  def extract(self, images):
    self.seen += len(images)
    return fake().extract(images)


class CacheTest(parameterized.TestCase):
  def test_each_store_gives_the_same(self):
    folder, cache = self.create_tempdir().full_path, self.create_tempdir().full_path
    pngs = os.path.join(folder, 'pngs')
    os.makedirs(pngs)
    for i, image in enumerate(IMAGES):
      Image.fromarray(image[..., 0]).save(os.path.join(pngs, f'{i:03d}.png'))
    np.savez(
      os.path.join(folder, 'x.npz'), IMAGES, mu=np.zeros(3), sigma=np.eye(3)
    )  # on features that only this project has, statistics beside images do not count
    counting, expected = Counting(), frechet.statistics(fake().extract(IMAGES).features)
    for path in (pngs, os.path.join(folder, 'x.npz')):
      found = references.load(
        references.find(path, counting.features, (4, 4, 1)), counting.features, {'features'}, cache
      )
      np.testing.assert_allclose(
        found.moments.covariance, expected.covariance, rtol=1e-12, atol=1e-14
      )
      np.testing.assert_array_equal(found.features, fake().extract(IMAGES).features)
      self.assertEqual((found.size, found.what, found.spatial), (50, path, None))
    self.assertEqual(counting.seen, 100)

  def test_cache(self):
    cache, counting, source = (
      self.create_tempdir().full_path,
      Counting(),
      references.Source('x', ArraySet(IMAGES, 'x')),
    )
    load = lambda kinds, source=source: references.load(source, counting.features, kinds, cache)
    first = load({'features', 'spatial'})
    again = load({'features', 'spatial'}, references.Source('y', ArraySet(IMAGES.copy(), 'y')))
    self.assertEqual((counting.seen, again.hash, again.size), (50, first.hash, 50))
    for a, b in zip(
      (first.features, *first.moments, *first.spatial),
      (again.features, *again.moments, *again.spatial),
    ):
      np.testing.assert_array_equal(a, b)
    load({'moments'})  # less than what is there
    self.assertEqual(counting.seen, 50)
    load({'moments'}, references.Source('x', ArraySet(IMAGES[:49], 'x')))  # other images
    references.load(
      source, counting.features._replace(name='other'), {'moments'}, cache
    )  # another network
    self.assertEqual(counting.seen, 149)
    self.assertLen(os.listdir(cache), 3)

  def test_more_is_asked_for_than_was_kept(self):
    cache, counting, source = (
      self.create_tempdir().full_path,
      Counting(),
      references.Source('x', ArraySet(IMAGES, 'x')),
    )
    for kinds, seen in (
      (set(), 50),
      ({'moments'}, 50),
      ({'features'}, 100),
      ({'spatial'}, 150),
      ({'spatial'}, 150),
    ):
      found = references.load(source, counting.features, kinds, cache)
      self.assertEqual(counting.seen, seen)
      self.assertEqual(
        (found.features is not None, found.spatial is not None),
        ('features' in kinds, 'spatial' in kinds),
      )

  @parameterized.parameters('flipped', 'cut', 'empty')
  def test_damaged_cache(self, damage):
    cache, counting, source = (
      self.create_tempdir().full_path,
      Counting(),
      references.Source('x', ArraySet(IMAGES, 'x')),
    )
    first = references.load(source, counting.features, {'features'}, cache)
    (path,) = glob.glob(os.path.join(cache, '*'))
    with open(path, 'r+b') as file:
      if damage == 'flipped':
        content = file.read()
        at = content.index(first.features.tobytes()) + 100
        file.seek(at)
        file.write(bytes([content[at] ^ 1]))
      else:
        file.truncate({'cut': os.path.getsize(path) // 2, 'empty': 0}[damage])
    again = references.load(source, counting.features, {'features'}, cache)
    self.assertEqual(counting.seen, 100)
    np.testing.assert_array_equal(first.features, again.features)
    references.load(source, counting.features, {'features'}, cache)
    self.assertEqual(counting.seen, 100)
    self.assertEqual(os.listdir(cache), [os.path.basename(path)])

  def test_skipped_images_are_not_forgotten_by_the_cache(self):
    folder, cache = self.create_tempdir().full_path, self.create_tempdir().full_path
    for i, image in enumerate(IMAGES):
      Image.fromarray(image[..., 0]).save(os.path.join(folder, f'{i:03d}.png'))
    bad = os.path.join(folder, '007.png')
    with open(bad, 'r+b') as file:
      file.truncate(os.path.getsize(bad) - 30)
    load = lambda skip: references.load(
      references.find(folder, fake(), (4, 4, 1), skip_unreadable=skip), fake(), set(), cache
    )
    self.assertEqual(load(True).size, 49)
    self.assertEqual(load(True).size, 49)
    with self.assertRaisesRegex(UserError, 'cannot read image .*007.png'):
      load(False)


class FindTest(parameterized.TestCase):
  def test_mean_and_covariance(self):
    path = os.path.join(self.create_tempdir().full_path, 'stats.npz')
    known = frechet.statistics(fake().extract(IMAGES).features)
    np.savez(path, mu=known.mean, sigma=known.covariance)
    source = references.find(path, fake(), (9, 9, 3))  # says nothing of sizes
    found = references.load(source, fake(), {'moments'}, '')
    self.assertEqual((found.size, found.features, source.size('moments')), (None, None, None))
    sample = features.Extracted(fake().extract(IMAGES[:30]).features)
    expected = frechet.frechet_distance(sample.features, fake().extract(IMAGES).features)
    np.testing.assert_allclose(
      metrics.compare(sample, found, ['frechet'], 3)['frechet'], expected, rtol=1e-9
    )
    self.assertEqual(metrics.choose((), fake(), source, 30, 3)[0], ['frechet', 'score'])
    with self.assertRaisesRegex(
      UserError,
      "'kernel' needs reference images, and .*stats.npz .mu, sigma. has only their mean and "
      'covariance',
    ):
      metrics.choose(('kernel',), fake(), source, 30, 3)

  @parameterized.parameters(
    (
      dict(mu=np.zeros(7), sigma=np.eye(7)),
      r'are \[7\] and \[7, 7\]; the features fake need \[6\] and \[6, 6\]',
    ),
    (dict(mu=np.zeros(6), sigma=np.zeros((6, 5))), r'are \[6\] and \[6, 5\]'),
    (
      dict(mu=np.full(6, np.nan), sigma=np.eye(6)),
      'are not the finite mean and symmetric covariance',
    ),
    (
      dict(mu=np.zeros(6), sigma=np.triu(np.ones((6, 6)))),
      'are not the finite mean and symmetric covariance',
    ),
    (dict(mu=np.array([{}] * 6, object), sigma=np.eye(6)), 'are object and float64; valid: real'),
    (dict(mu=np.zeros(6, complex), sigma=np.eye(6)), 'are complex128 and float64; valid: real'),
    (
      dict(mu=np.zeros(6), sigma=np.full((6, 6), np.inf)),
      'are not the finite mean and symmetric covariance',
    ),
    (
      dict(mu=np.full(6, 1e200), sigma=np.eye(6)),
      'are not the finite mean and symmetric covariance',
    ),
    (dict(mu=np.zeros(6), sigma=-np.eye(6)), 'are not the finite mean and symmetric covariance'),
    (dict(x=np.zeros(6)), 'has no arr_0 but x'),
    (
      dict(arr_0=IMAGES.repeat(2, 1)),
      'has images of 8 x 4 x 1, the samples are 4 x 4 x 1; give a reference of the same size',
    ),
    (
      dict(arr_0=IMAGES.repeat(3, -1)),
      'has images of 4 x 4 x 3, the samples are 4 x 4 x 1; .* and number of channels',
    ),
  )
  def test_refused(self, arrays, message):
    path = os.path.join(self.create_tempdir().full_path, 'x.npz')
    np.savez(path, **arrays)
    with self.assertRaisesRegex(UserError, message) as caught:
      references.find(path, fake(), (4, 4, 1))
    self.assertNotIn('\n', str(caught.exception))


class StoredStatisticsTest(parameterized.TestCase):
  """ADM's reference batches: statistics of a whole set beside some of its images."""

  def setUp(self):
    super().setUp()
    self.path = os.path.join(self.create_tempdir().full_path, 'batch.npz')
    random = np.random.RandomState(1)
    self.known = frechet.statistics(random.randn(99, 6) + 3)  # not those of the images
    self.spatial = frechet.statistics(random.randn(99, 7) - 1)
    self.counting = Counting()
    self.features = self.counting.features._replace(published=True)

  def save(self, **more):
    np.savez(self.path, arr_0=IMAGES, mu=self.known.mean, sigma=self.known.covariance, **more)

  def found(self, kinds, features=None):
    features = features or self.features
    source = references.find(self.path, features, (4, 4, 1))
    return source, references.load(source, features, kinds, self.create_tempdir().full_path)

  def test_distances_are_to_them_and_the_images_serve_the_rest(self):
    self.save(mu_s=self.spatial.mean, sigma_s=self.spatial.covariance)
    source, found = self.found({'moments', 'features', 'spatial'})
    sample = fake().extract(IMAGES[:30])
    values = metrics.compare(sample, found, ['frechet', 'spatial_frechet', 'precision'], 3)
    for name, field, known in (
      ('frechet', 'features', self.known),
      ('spatial_frechet', 'spatial', self.spatial),
    ):
      expected = frechet.frechet_distance(getattr(sample, field), known)
      np.testing.assert_allclose(values[name], expected, rtol=1e-9)
    self.assertEqual(values['precision'].value, 1)  # the samples are among the images
    np.testing.assert_array_equal(found.features, fake().extract(IMAGES).features)
    self.assertEqual((source.size('moments'), source.size('features')), (None, 50))
    self.assertIn('mu, sigma, mu_s, sigma_s for Frechet distances, its 50 images for', found.what)

  def test_spatial_statistics_that_are_not_stored_come_from_the_images(self):
    self.save()
    source, found = self.found({'moments', 'spatial'})
    np.testing.assert_array_equal(found.moments.mean, self.known.mean)
    expected = frechet.statistics(fake().extract(IMAGES).spatial)
    np.testing.assert_allclose(found.spatial.mean, expected.mean, rtol=1e-9)
    self.assertEqual(source.size('spatial'), 50)

  def test_no_image_is_read_for_what_is_stored(self):
    self.save()
    with_statistics = self.found({'moments'})[1]
    self.assertEqual((self.counting.seen, with_statistics.size), (0, 50))
    only_images = self.found({'moments'}, self.features._replace(published=False))[1]
    self.assertNotEqual(with_statistics.hash, only_images.hash)
    self.assertEqual(self.counting.seen, 50)

  def test_of_other_features_are_refused(self):
    np.savez(self.path, arr_0=IMAGES, mu=np.zeros(5), sigma=np.eye(5))
    with self.assertRaisesRegex(UserError, r'are \[5\] and \[5, 5\]; the features fake need \[6\]'):
      self.found({'moments'})


class FiniteTest(absltest.TestCase):
  def test_a_metric_that_is_not_finite_is_an_error(self):
    sample = fake().extract(IMAGES)
    reference = references.Reference(
      frechet.statistics(sample.features), None, None, None, '', 'here'
    )
    bad = metrics.Estimate(np.inf, np.nan, np.inf)
    with (
      mock.patch.object(frechet, 'frechet_distance', return_value=bad),
      self.assertRaisesRegex(UserError, "metric 'frechet' is inf, .nan, inf.; .* here are too"),
    ):
      metrics.compare(sample, reference, ['frechet'], 3)


class ChooseTest(parameterized.TestCase):
  def source(self, count):
    return references.Source('x', ArraySet(np.zeros((count, 1), np.uint8), 'x'))

  @parameterized.parameters(
    (
      'fid',
      WIDE,
      5000,
      5000,
      "unknown evaluate.metrics 'fid'; valid: frechet, frechet_infinity, spatial_frechet, kernel, ",
    ),
    (
      'frechet',
      WIDE,
      10,
      5000,
      "metric 'frechet': 10 samples are too few for a Frechet distance on 2048 features: their "
      'covariance '
      'has at most 9 directions.*use at least 256',
    ),
    ('frechet', WIDE, 5000, 255, "metric 'frechet': 255 reference images are too few"),
    (
      'frechet_infinity',
      WIDE,
      6143,
      5000,
      "metric 'frechet_infinity': 6143 samples are too few .*use at least 6144",
    ),
    (
      'spatial_frechet',
      WIDE,
      252,
      5000,
      '252 samples are too few for a Frechet distance on 2023 features',
    ),
    (
      'spatial_frechet',
      fake()._replace(dimensions={'features': 6}),
      5000,
      5000,
      "'spatial_frechet' needs spatial, which features fake do not have",
    ),
    (
      'score',
      fake()._replace(dimensions={'features': 6}),
      5000,
      5000,
      "'score' needs logits, which features fake do not have",
    ),
    (
      'kernel_subsets',
      WIDE,
      999,
      5000,
      "metric 'kernel_subsets': 999 samples are too few, it needs at least 1000",
    ),
    ('kernel_subsets', WIDE, 5000, 999, '999 reference images are too few'),
    ('recall', WIDE, 3, 5000, "metric 'recall': 3 samples are too few, it needs at least 4"),
    ('kernel', WIDE, 2, 5000, '2 samples are too few'),
  )
  def test_refused_where_it_is_named(self, name, network, samples, count, message):
    with self.assertRaisesRegex(UserError, message) as caught:
      metrics.choose((name,), network, self.source(count), samples, 3)
    self.assertNotIn('\n', str(caught.exception))

  def test_left_out_with_a_reason_where_it_is_standard(self):
    found, reasons = metrics.choose((), WIDE, self.source(5000), 10, 3)
    self.assertEqual(found, ['kernel', 'precision', 'recall', 'score'])
    self.assertLen(reasons, 2)
    self.assertIn('10 samples are too few', reasons[0])
    self.assertEqual(
      metrics.choose((), WIDE, self.source(5000), 300, 3), (list(metrics.STANDARD), [])
    )
    with self.assertRaisesRegex(
      UserError, 'none of the metrics can be computed; .*2 samples are too few'
    ):
      metrics.choose((), WIDE, self.source(5000), 2, 3)

  def test_every_metric_of_the_table(self):
    random = np.random.RandomState(0)
    draw = lambda n: features.Extracted(
      *(random.randn(n, width).astype(np.float32) for width in (6, 3, 7))
    )
    sample, known = draw(150), draw(140)
    reference = references.Reference(
      frechet.statistics(known.features),
      known.features,
      frechet.statistics(known.spatial),
      140,
      '',
      '',
    )
    self.enter_context(mock.patch.object(metrics, 'SUBSET', 100))
    names = metrics.choose(tuple(metrics.METRICS), fake(), self.source(140), 150, 3)[0]
    self.assertEqual(
      metrics.kinds(names), ({'features', 'logits', 'spatial'}, {'features', 'moments', 'spatial'})
    )
    found = metrics.compare(sample, reference, names[::-1], 3)
    self.assertEqual(list(found), names[::-1])
    for name, value in found.items():
      self.assertTrue(value.low < value.value < value.high, name)
    np.testing.assert_allclose(found['kernel_subsets'].value, found['kernel'].value, atol=0.1)
    np.testing.assert_allclose(found['precision_adm'].value, found['precision'].value, atol=0.01)
    self.assertNotEqual(found['precision'].value, found['recall'].value)
    self.assertNotEqual(found['frechet'].value, found['spatial_frechet'].value)


if __name__ == '__main__':
  absltest.main()
