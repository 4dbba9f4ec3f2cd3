"""The Python API: load, sample, fid; the public names come when they are used."""

import os
import subprocess
import sys
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

import gmm_diffusion
from configs import digits
from gmm_diffusion import samplers, specs, tasks
from gmm_diffusion.data import base, sources
from gmm_diffusion.engine import build
from gmm_diffusion.errors import UserError
from gmm_diffusion.metrics import frechet
from helpers import cases

IMAGES = sources.load(specs.Data('digits')).test


def exact():
  """A config that needs no training."""
  config = digits.get_config()
  config.denoiser.name = 'empirical'
  config.data.limit = 50
  config.sampler.update(name='ddim', steps=3)
  return config


class LoadTest(parameterized.TestCase):
  def test_a_config_and_a_name_and_a_file(self):
    x = gmm_diffusion.load('toy').sample(4, sampler='ddim', steps=2)
    self.assertEqual((x.shape, x.dtype), ((4, 2), np.float32))
    path = os.path.join(cases.ROOT, 'configs', 'toy.py:runlocal')
    np.testing.assert_array_equal(
      gmm_diffusion.load(path).sample(4, sampler='ddim', steps=2, seed=0), x
    )
    x = gmm_diffusion.load(exact()).sample(3)
    self.assertEqual((x.shape, x.dtype), ((3, 8, 8, 1), np.uint8))

  def test_a_workdir_that_was_only_trained(self):
    workdir = self.create_tempdir().full_path
    config = digits.get_config('runlocal')
    config.net.update(channels=8, multipliers=(1,), head_channels=8)
    config.train.update(steps=2, batch=4, checkpoint_every=2, log_every=1)
    tasks.run('train', workdir, config, 'command')
    model = gmm_diffusion.load(workdir)
    self.assertEqual((model.spec.net.channels, model.spec.train.steps), (8, 2))
    x = model.sample(2, sampler='ddim', steps=2, labels=[3, 4])
    self.assertEqual((x.shape, x.dtype), ((2, 8, 8, 1), np.uint8))
    # sampling with other settings changes nothing of what the workdir is
    config.sampler.update(name='ddim', steps=1)
    config.sample.count = 2
    tasks.run('sample', workdir, config, 'command')
    self.assertEqual(gmm_diffusion.load(workdir).spec.sampler.steps, 10)

  def test_a_workdir_of_before(self):
    # results.json held the config before config.json did
    workdir = self.create_tempdir().full_path
    config = exact()
    config.sample.count = 2
    tasks.run('sample', workdir, config, 'command')
    os.remove(os.path.join(workdir, 'config.json'))
    self.assertEqual(gmm_diffusion.load(workdir).spec.sampler.steps, 3)

  @parameterized.parameters(
    ('nothing', "there is no workdir 'nothing', and no config 'nothing': .*digits.*toy"),
    ('digits', "the weights of 'digits' are in no folder; give the workdir"),
    ('digits:x', "unknown config argument 'x'; valid: runlocal"),
    ('segmentation', "this config is of task 'segmentation'"),
    (3, 'loaded from a workdir or a config, got 3'),
    ({'sampler': {'stepz': 3}}, "unknown config key 'sampler.stepz'"),
  )
  def test_refused(self, source, message):
    with self.assertRaisesRegex(UserError, message) as caught:
      gmm_diffusion.load(source)
    self.assertNotIn('\n', str(caught.exception))

  def test_an_empty_workdir(self):
    with self.assertRaisesRegex(UserError, 'holds no finished run: neither config.json nor'):
      gmm_diffusion.load(self.create_tempdir().full_path)


class SampleTest(parameterized.TestCase):
  def test_options_seed_and_count(self):
    model = gmm_diffusion.load(exact())
    x = model.sample(6, sampler='ddim', steps=3)
    np.testing.assert_array_equal(model.sample(2), x[:2])  # those of the config
    self.assertTrue(np.any(model.sample(6, steps=2) != x))
    self.assertTrue(np.any(model.sample(6, seed=1) != x))
    self.assertTrue(np.any(model.sample(6, eta=1.0) != x))

  @parameterized.parameters(
    (dict(sampler='dim'), "unknown sampler 'dim'; valid: ddpm, ddim"),
    (dict(sampler='ddim', scale=3.0), "sampler 'ddim' takes no 'scale'; valid: .*steps"),
    (dict(step=3), "unknown config key 'sampler.step'"),
    (dict(steps='a'), "'sampler.steps' must be of type int, got 'a'"),
    (dict(seed=-1), 'seed must be in'),
    (dict(count=0), 'sample.count must be in'),
  )
  def test_refused(self, options, message):
    with self.assertRaisesRegex(UserError, message) as caught:
      gmm_diffusion.load(exact()).sample(**{'count': 2, **options})
    self.assertNotIn('\n', str(caught.exception))


class FidTest(parameterized.TestCase):
  def test_arrays_folders_and_files_agree(self):
    folder, cache = self.create_tempdir().full_path, self.create_tempdir().full_path
    for i, image in enumerate(IMAGES[:100]):
      Image.fromarray(image[..., 0]).save(os.path.join(folder, f'{i:03d}.png'))
    path = os.path.join(self.create_tempdir().full_path, 'b.npz')
    np.savez(path, IMAGES[100:])
    flat = lambda x: base.to_model(x).reshape(len(x), -1).astype(np.float64)
    expected = frechet.frechet_distance(flat(IMAGES[:100]), flat(IMAGES[100:]))
    for a, b in ((folder, path), (IMAGES[:100], IMAGES[100:])):
      found = gmm_diffusion.fid(a, b, features='identity', cache=cache)
      np.testing.assert_allclose(found, expected, rtol=1e-6)
      self.assertBetween(found.value, found.low, found.high)

  @parameterized.parameters(
    (IMAGES, IMAGES, {'features': 'inception', 'cache': 'nowhere'}, 'no Inception weights at'),
    (IMAGES / 2, IMAGES, {}, r'uint8 \[N, H, W, 1 or 3\], got float64 \[297, 8, 8, 1\]'),
    (IMAGES[:5], IMAGES, {}, '5 samples are too few for a Frechet distance'),
    (IMAGES, IMAGES[:5], {}, '5 reference images are too few for a Frechet distance'),
    (IMAGES, IMAGES.repeat(2, 1), {}, 'has images of 16 x 8 x 1, the others are 8 x 8 x 1'),
    (IMAGES, 'nowhere', {}, 'there is nothing at nowhere'),
    (IMAGES, IMAGES, {'features': 'clip'}, "unknown features 'clip'; valid: 'inception', 'iden"),
  )
  def test_refused(self, a, b, options, message):
    with self.assertRaisesRegex(UserError, message) as caught:
      gmm_diffusion.fid(a, b, **{'features': 'identity', **options})
    self.assertNotIn('\n', str(caught.exception))


class BetweenTest(parameterized.TestCase):
  def test_ends_at_both_images(self):
    model, images = gmm_diffusion.load(exact()), IMAGES[:4]
    x = model.between(images[:2], images[2:], count=3, steps=12)
    self.assertEqual((x.shape, x.dtype), ((3, 2, 8, 8, 1), np.uint8))
    np.testing.assert_array_equal(x[0], images[:2])
    np.testing.assert_array_equal(x[2], images[2:])
    self.assertGreater(np.abs(x[1].astype(int) - x[0]).max(), 10)

  def test_changed_images(self):
    """Little noise changes little, and all of the steps forget the image."""
    model, images = gmm_diffusion.load(exact()), IMAGES[:40]
    far = {}
    for strength in (0.1, 1.0):
      x = model.change(images, strength, steps=20, seed=3)
      self.assertEqual((x.shape, x.dtype), (images.shape, np.uint8))
      far[strength] = np.mean((x.astype(float) - images) ** 2)
    drawn = model.sample(40, steps=20, seed=3)
    self.assertLess(far[0.1], 0.5 * np.mean((drawn.astype(float) - images) ** 2))
    # b / a is 160 where the noise begins, so that the images hardly matter
    self.assertLess(np.mean(np.any(x != drawn, axis=(1, 2, 3))), 0.2)

  def test_changing_is_that_of_the_sampler(self):
    model = gmm_diffusion.load(exact())
    x = model.change(IMAGES[:3], 0.5, sampler='unipc', steps=8, order=2, seed=2)
    spec, data = model.spec, model.data
    denoiser = build.denoiser(spec, data)(build.weights(spec, data, ''))
    same = samplers.draw(
      denoiser, build.schedule(spec.schedule), data.shape, range(3), 2, 'unipc', 8,
      spec.sampler.grid, cond=np.zeros(3, np.int32), start=base.to_model(IMAGES[:3]), strength=0.5,
      order=2,
    )  # fmt: skip
    np.testing.assert_allclose(x.astype(int), base.to_image(same).astype(int), atol=1)

  def test_changing_does_not_restore(self):
    config = exact()
    config.inverse.operator = 'box'  # which would need a measurement
    x = gmm_diffusion.load(config).change(IMAGES[:2], 0.5)
    np.testing.assert_array_equal(x, gmm_diffusion.load(exact()).change(IMAGES[:2], 0.5))

  def test_another_seed_changes_otherwise_without_another_trace(self):
    model = gmm_diffusion.load(exact())
    one = model.change(IMAGES[:2], 0.8, seed=1)
    kept = len(model._model._kept)
    self.assertTrue(np.any(model.change(IMAGES[:2], 0.8, seed=2) != one))
    self.assertLen(model._model._kept, kept)

  def test_changing_what_does_not_fit(self):
    model = gmm_diffusion.load(exact())
    for images, strength, words in (
      (IMAGES[:2] / 255, 0.5, r'an array \[B, 8, 8, 1\] of uint8, got \[2, 8, 8, 1\] of float64'),
      (IMAGES[:0], 0.5, r'got \[0, 8, 8, 1\] of uint8'),
      (IMAGES[0], 0.5, r'got \[8, 8, 1\] of uint8'),
      (IMAGES[:2], 0.0, r'strength must be in \(0, 1\], got 0'),
    ):
      with self.assertRaisesRegex(UserError, words):
        model.change(images, strength)
    with self.assertRaisesRegex(UserError, "sampler 'ddim' takes no 'order'"):
      model.change(IMAGES[:2], sampler='ddim', order=2)
    with self.assertRaisesRegex(UserError, 'images are changed by models of pixels'):
      gmm_diffusion.load('toy').change(IMAGES[:2])

  def test_the_class_is_none_or_that_given(self):
    config, seen = digits.get_config('runlocal'), []
    config.net.weights.format = 'random'
    for labels, label in (('null', ''), ('plain', '3')):
      config.net.labels = labels
      model = gmm_diffusion.load(config)

      def ask(what, bind, measure, batch):
        seen.append(batch[2])
        return np.zeros((2, 2, 8, 8, 1))

      with mock.patch.object(model._model, 'ask', ask):
        model.between(IMAGES[:2], IMAGES[2:4], 2, label=label)
    np.testing.assert_array_equal(seen, [[10, 10], [3, 3]])
    with self.assertRaisesRegex(UserError, 'model needs a class; give label, a number in 0..9'):
      model.between(IMAGES[:2], IMAGES[2:4])

  @parameterized.parameters(
    (
      IMAGES[:2],
      IMAGES[:1],
      {},
      r'two arrays \[B, 8, 8, 1\] of uint8, got \[2, 8, 8, 1\] of uint8',
    ),
    (IMAGES[:1] / 255, IMAGES[:1], {}, r'of uint8, got \[1, 8, 8, 1\] of float64'),
    (IMAGES[:0], IMAGES[:0], {}, r'got \[0, 8, 8, 1\]'),
    (IMAGES[:1], IMAGES[:1], {'count': 1}, 'count and steps must be at least 2, got 1 and 40'),
    (IMAGES[:1], IMAGES[:1], {'steps': 1}, 'count and steps must be at least 2, got 9 and 1'),
    (IMAGES[:1], IMAGES[:1], {'steps': 100}, 'gamma 0.8 in 100 steps lets rounding errors grow'),
    (IMAGES[:1], IMAGES[:1], {'gamma': 0.0}, 'gamma 0 in 40 steps'),
  )
  def test_refused(self, first, last, options, message):
    with self.assertRaisesRegex(UserError, message):
      gmm_diffusion.load(exact()).between(first, last, **options)


class NamesTest(absltest.TestCase):
  def test_all_of_them_are_there(self):
    for name in gmm_diffusion.__all__:
      self.assertIsNotNone(getattr(gmm_diffusion, name), name)
      self.assertIn(name, dir(gmm_diffusion))
    self.assertFalse(hasattr(gmm_diffusion, 'nothing'))

  def test_import_is_light(self):
    code = "import sys, gmm_diffusion; assert not {'jax', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, '-c', code], check=True, cwd=cases.ROOT)


if __name__ == '__main__':
  absltest.main()
