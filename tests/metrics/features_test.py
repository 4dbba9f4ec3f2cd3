"""Feature networks, and streams of images through them."""

import os
import shutil
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from gmm_diffusion import specs
from gmm_diffusion.data import sources
from gmm_diffusion.data.image_sets import ArraySet
from gmm_diffusion.errors import UserError
from gmm_diffusion.metrics import features, frechet, inception
from gmm_diffusion.nets.inception import Outputs
from helpers.fake_features import IMAGES, fake


class NetworksTest(absltest.TestCase):
  def test_identity_and_unknown(self):
    data = sources.load(specs.Data('toy'))
    found = features.load('identity', data, '')
    np.testing.assert_array_equal(found.extract(data.test[:5]).features, data.test[:5])
    self.assertIsNone(found.extract(data.test[:5]).logits)
    self.assertEqual(found.dimensions, {'features': 2})
    with self.assertRaisesRegex(
      UserError,
      "unknown evaluate.features 'inceptoin'; valid: classifier, rotation, identity, inception",
    ):
      features.load('inceptoin', data, '')
    with self.assertRaisesRegex(UserError, 'needs images; valid here: identity'):
      features.load('classifier', data, '')
    with self.assertRaisesRegex(UserError, 'which has no images; use evaluate.features=inception'):
      features.load('classifier', sources.load(specs.Data('none', size=8)), '')

  def test_classifier_is_accurate_cached_and_checked(self):
    data = sources.load(specs.Data('digits'))
    folder, other = (self.create_tempdir().full_path for _ in range(2))
    self.enter_context(mock.patch.dict(features.SETTINGS, steps=150))
    first = features.load('classifier', data, folder)
    found = first.extract(data.test)
    self.assertGreater(np.mean(found.logits.argmax(1) == data.test_labels), 0.95)
    self.assertAlmostEqual(np.sqrt(np.mean(first.extract(data.train).features ** 2)), 1, places=5)
    self.assertEqual(
      {'features': found.features.shape[1], 'logits': found.logits.shape[1]}, first.dimensions
    )
    name = f'classifier-{first.name.split("-")[1]}.npz'
    path = shutil.copy(os.path.join(folder, name), other)
    second = features.load('classifier', data, other)
    self.assertEqual(first.name, second.name)
    np.testing.assert_array_equal(second.extract(data.test).features, found.features)
    with open(path, 'wb') as file:
      file.write(b'not a network')
    with mock.patch.object(features, '_train', side_effect=lambda net, data, x, *more: x) as again:
      features.load('classifier', data, other)  # damaged: trained again
      features.load('classifier', data, other)
    again.assert_called_once()

  def test_tuning_looks_at_a_network_of_each_kind(self):
    digits = sources.load(specs.Data('digits'))
    others = {
      ('classifier', 'rotation'): digits,
      ('rotation',): digits._replace(classes=1),
      ('classifier',): digits._replace(train=digits.train[:, :, :4]),
      (): sources.load(specs.Data('toy')),
    }
    for kinds, data in others.items():
      with mock.patch.object(features, 'learned', side_effect=lambda kind, *more: (kind, *more)):
        found = features.for_tuning(data, 'cache')
      self.assertEqual([kind for kind, *_ in found], list(kinds))
      self.assertTrue(all(seed for *_, seed in found))  # the judge has 0

  def test_gradients(self):
    """A ramp has one direction in all parts, 45 degrees are the third of nine, and colour is not
    seen."""
    down, right = np.mgrid[:13, :14]
    ramps = np.stack([15 * right, 10 * (down + right)]).astype(np.uint8)[..., None]
    data = sources.load(specs.Data('digits'))._replace(train=ramps)
    network = features.load('gradients', data, '')
    found = network.extract(ramps).features
    self.assertEqual(found.shape, (2, network.dimensions['features']))
    directions = found.reshape(2, 9, 9, 2, 2)
    for ramp, wanted in ((0, 0), (1, 2)):
      np.testing.assert_array_equal(directions[ramp].argmax(1), wanted)
      self.assertAlmostEqual(np.linalg.norm(directions[ramp, 0]), 1, delta=0.01)
    colour = np.repeat(ramps, 3, -1)
    np.testing.assert_allclose(network.extract(colour).features, found, rtol=1e-5)
    with self.assertRaisesRegex(UserError, "'gradients' need images of at least 4 x 4; valid here"):
      features.load('gradients', sources.load(specs.Data('toy')), '')

  def test_inception(self):
    folder = self.create_tempdir().full_path
    with self.assertRaisesRegex(
      UserError,
      f'no Inception weights at {folder}/{inception.NAME}; use --mode=fetch with '
      f'evaluate.features=inception and evaluate.cache={folder}, or download https://github.com/',
    ):
      features.load('inception', None, folder)
    with self.assertRaisesRegex(
      UserError, 'no Inception weights at /nowhere/weights.pth; download'
    ):
      features.load('inception', None, folder, '/nowhere/weights.pth')
    seen = []

    def call(images):
      seen.append(images)
      return Outputs(*(np.full((len(images), 2), i, np.float32) for i in range(6)))

    with (
      mock.patch.object(inception, 'load', return_value='params'),
      mock.patch.object(
        inception,
        'activations',
        side_effect=lambda params, per_device: call if params == 'params' else None,
      ),
    ):
      found = features.load('inception', None, folder)
    out = found.extract(IMAGES)
    np.testing.assert_array_equal(seen[0], np.concatenate([IMAGES] * 3, -1))
    self.assertEqual([int(field[0, 0]) for field in out], [0, 1, 2])  # pool3, logits, spatial
    self.assertEqual(found.dimensions, {'features': 2048, 'logits': 1008, 'spatial': 2023})
    self.assertEqual(found.name, 'inception-6726825d-bilinear_tf1_299-float32')
    self.assertTrue(found.published)  # moments that others have published are of these features
    self.assertEqual(
      features.preprocessing(found, (4, 4, 1)),
      'TF1 bilinear to 299 x 299, (x - 128) / 128, grey repeated to RGB',
    )
    self.assertNotIn('grey', features.preprocessing(found, (4, 4, 3)))


class GatherTest(parameterized.TestCase):
  @parameterized.parameters(1, 7, 50, 0)
  def test_batches_do_not_matter(self, batch):
    found, moments, count = features.gather(
      fake(), ArraySet(IMAGES, 'x'), 'test', ('features', 'spatial'), ('features', 'spatial'), batch
    )
    whole = fake().extract(IMAGES)
    self.assertEqual((count, found.logits), (50, None))
    for name in ('features', 'spatial'):
      np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))
      for a, b in zip(moments[name], frechet.statistics(getattr(whole, name))):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)

  def test_skipped_images_leave_no_rows(self):
    images = ArraySet(IMAGES, 'x')
    images.batches = lambda size: iter([IMAGES[:20], IMAGES[25:]])
    found, moments, count = features.gather(fake(), images, 'test', ('features',), ('features',))
    self.assertEqual((count, len(found.features)), (45, 45))
    np.testing.assert_allclose(
      moments['features'].mean, found.features.mean(0, np.float64), rtol=1e-12
    )

  def test_refused(self):
    def broken(images):
      x = np.zeros((len(images), 6))
      x[
        (images[:, 0, 0, 0] == IMAGES[30, 0, 0, 0]) & (images[:, 1, 1, 0] == IMAGES[30, 1, 1, 0]), 2
      ] = np.nan
      return features.Extracted(x)

    with self.assertRaisesRegex(
      UserError, '^1 of x have non-finite features, the first is number 30$'
    ):
      features.gather(fake(broken), ArraySet(IMAGES, 'x'), 'test', ('features',), batch=8)
    with self.assertRaisesRegex(
      UserError, 'x has images of 4 x 4 x 1, the features fake need 8 x 8 x 1'
    ):
      features.gather(
        fake()._replace(shape=(8, 8, 1)), ArraySet(IMAGES, 'x'), 'test', ('features',)
      )
    with self.assertRaisesRegex(UserError, 'x has 1 readable images; metrics need at least 3'):
      features.gather(fake(), ArraySet(IMAGES[:1], 'x'), 'test', ('features',))

  def test_an_error_while_reading_ends_the_stream(self):
    images = ArraySet(IMAGES, 'x')

    def batches(size):
      yield IMAGES[:size]
      raise UserError('unreadable')

    images.batches = batches
    with self.assertRaisesRegex(UserError, 'unreadable'):
      features.gather(fake(), images, 'test', ('features',), batch=8)


if __name__ == '__main__':
  absltest.main()
