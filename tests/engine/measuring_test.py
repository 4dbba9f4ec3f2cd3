"""Restoration from the command line's settings: measurements, samples, and what is refused."""

import dataclasses
import functools
import json
import os

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from configs import digits as config_lib
from gmm_diffusion import specs
from gmm_diffusion.data import base, sources
from gmm_diffusion.engine import build, drawing, measuring
from gmm_diffusion.errors import UserError
from helpers import cli


def spec_of(denoiser='empirical', **inverse):
  config = config_lib.get_config('runlocal')
  config.denoiser.name = denoiser
  config.sampler.update(name='ddim', steps=20)
  config.inverse.update(inverse)
  return specs.from_config(config)


DATA = sources.load(specs.Data())


def restored(spec, count, batch=64):
  spec = dataclasses.replace(spec, sample=dataclasses.replace(spec.sample, batch=batch))
  made = drawing.prepare(spec, spec.sampler, DATA)
  return drawing.Model(spec, DATA, build.weights(spec, DATA, '')).sample(made, count).x


def mark(spec, data=DATA):
  made = drawing.prepare(spec, spec.sampler, data)
  return drawing.Model(spec, data, data.train[:2]).drawer(made, 1).mark


@functools.cache
def unguided():
  return restored(spec_of(), 16)


class MeasureTest(parameterized.TestCase):
  @parameterized.parameters('middle', 'bottom', 'right', 'random')
  def test_half_or_a_quarter_is_hidden(self, hidden):
    seen = measuring.known(hidden, (8, 8, 1))
    self.assertEqual(np.mean(seen), 0.75 if hidden == 'middle' else 0.5)

  def test_a_mask_of_ones_own(self):
    folder = self.create_tempdir().full_path
    path = os.path.join(folder, 'mask.png')
    drawn = np.zeros((16, 16), np.uint8)
    drawn[:8, 8:] = 255
    Image.fromarray(drawn).save(path)
    seen = measuring.known(path, (8, 8, 1))[..., 0]
    self.assertTrue(np.all(seen[:4, 4:] == 0))
    self.assertEqual(seen.sum(), 48)
    first = mark(spec_of(operator='mask', hidden=path))
    Image.fromarray(drawn.T).save(path)  # another mask of the same name
    self.assertNotEqual(mark(spec_of(operator='mask', hidden=path)), first)
    for content, message in ((np.zeros((4, 4), np.uint8), 'hides nothing'), (b'?', 'cannot read')):
      if isinstance(content, bytes):
        with open(path, 'wb') as file:
          file.write(content)
      else:
        Image.fromarray(content).save(path)
      with self.assertRaisesRegex(UserError, message):
        measuring.known(path, (8, 8, 1))
    with self.assertRaisesRegex(UserError, "unknown inverse.hidden 'left'; valid: middle, bottom"):
      measuring.known('left', (8, 8, 1))

  def test_noise_belongs_to_the_image(self):
    spec, ids = spec_of(operator='box', draws=3, noise=0.2), np.arange(9)
    y = measuring.measure(spec, DATA, ids)
    self.assertEqual(y.shape, (9, 4, 4, 1))
    for i in range(0, 9, 3):
      np.testing.assert_array_equal(y[i], y[i + 2])  # all draws of an image see one measurement
    np.testing.assert_array_equal(measuring.measure(spec, DATA, ids[4:5])[0], y[4])
    count = len(DATA.test)
    clean = base.to_model(DATA.test).reshape(count, 4, 2, 4, 2, 1).mean((2, 4))
    noise = measuring.measure(spec, DATA, np.arange(0, 3 * count, 3)) - clean
    self.assertAlmostEqual(noise.std(), 0.2, delta=0.01)

  def test_nothing_is_seen_behind_a_mask(self):
    y = measuring.measure(spec_of(operator='mask', hidden='right'), DATA, np.arange(4))
    self.assertEqual(np.abs(y[:, :, 4:]).max(), 0)
    self.assertGreater(np.abs(y[:, :, :4]).max(), 0)


class RestoreTest(parameterized.TestCase):
  def test_exact_posterior_returns_training_images_that_fit(self):
    spec = spec_of(operator='mask', hidden='right', method='exact', noise=0.3)
    x, y = restored(spec, 8), measuring.measure(spec, DATA, np.arange(8))
    train = base.to_model(DATA.train)
    nearest = [np.abs(train - base.to_model(one)).max((1, 2, 3)).min() for one in x]
    self.assertLess(max(nearest), 0.02)
    error = base.to_model(x)[:, :, :4] - y[:, :, :4]
    self.assertLess(np.sqrt(np.mean(error**2)), 0.45)  # the noise, and the distance to the nearest

  @parameterized.parameters('dps', 'pigdm', 'moment', 'stsl')
  def test_what_is_seen_is_kept(self, method):
    spec = spec_of(operator='mask', method=method, noise=0.5)
    seen = measuring.known('middle', DATA.shape).astype(bool)[..., 0]
    error = lambda x: np.mean((base.to_model(x) - base.to_model(DATA.test[:16]))[:, seen] ** 2)
    self.assertLess(error(restored(spec, 16)), 0.5 * error(unguided()))

  def test_samples_do_not_depend_on_batches(self):
    spec = spec_of(operator='box')
    np.testing.assert_array_equal(restored(spec, 10), restored(spec, 10, batch=3))

  def test_marks_differ(self):
    marks = [mark(spec_of()), mark(spec_of(operator='box')), mark(spec_of(operator='identity'))]
    marks.append(mark(spec_of(operator='box'), DATA._replace(test=DATA.test[::-1])))
    self.assertLen(set(marks), 4)

  @parameterized.parameters(
    (dict(operator='mask', method='exact', denoiser='network'), "needs denoiser.name 'empirical'"),
    (dict(operator='box', factor=3), '8 x 8 cannot be divided into boxes of 3 x 3'),
  )
  def test_refused(self, settings, message):
    spec = spec_of(**settings)
    with self.assertRaisesRegex(UserError, message):
      drawing.prepare(spec, spec.sampler, DATA)

  def test_without_images(self):
    spec = spec_of(operator='mask')
    with self.assertRaisesRegex(UserError, 'no test images to measure; set inverse.images'):
      drawing.prepare(spec, spec.sampler, DATA._replace(test=DATA.test[:0]))


class CommandTest(absltest.TestCase):
  def test_own_images(self):
    root = self.create_tempdir().full_path
    folder, workdir = os.path.join(root, 'mine'), os.path.join(root, 'run')
    os.makedirs(folder)
    for i in range(3):
      Image.fromarray(DATA.test[i, ..., 0].repeat(4, 0).repeat(4, 1)).save(f'{folder}/{i}.png')
    settings = (
      '--config.denoiser.name=empirical',
      '--config.sampler.name=unipc',
      '--config.sample.count=6',
      '--config.inverse.operator=box',
      f'--config.inverse.images={folder}',
      '--config.inverse.draws=2',
    )
    code, out, error = cli.here('digits.py:runlocal', 'sample', workdir, *settings)
    self.assertEqual(code, 0, error[-2000:])
    self.assertRegex(out, r'PSNR [\d.]+ ± [\d.]+ dB\nSSIM 0?[\d.]+ ± [\d.]+\n')
    path = out[out.index('restored: ') + 10 :].split('\n')[0]
    self.assertEqual(Image.open(path).size, (3 * 34, 3 * 34))
    self.assertIn('/unipc-10-box-pigdm-', path)
    with open(os.path.join(workdir, 'config.json'), encoding='utf-8') as file:
      self.assertEqual(json.load(file)['inverse']['operator'], '')  # the model is what it was
    with open(os.path.join(workdir, 'results.json'), encoding='utf-8') as file:
      found = {record['metric']: record for record in json.load(file) if 'metric' in record}
    self.assertEqual((found['PSNR']['n'], found['PSNR']['nfe']), (6, 10))
    self.assertBetween(found['SSIM']['value'], *found['SSIM']['interval'])

  def test_measurements_of_ones_own(self):
    """Small images are made large again; what they were is known to nobody."""
    root = self.create_tempdir().full_path
    folder, workdir = os.path.join(root, 'small'), os.path.join(root, 'run')
    os.makedirs(folder)
    known = DATA.train[:3].astype(float).reshape(3, 4, 2, 4, 2).mean((2, 4)).round()
    for i, image in enumerate(known.astype(np.uint8)):
      Image.fromarray(image).save(f'{folder}/{i}.png')
    settings = (
      '--config.denoiser.name=empirical', '--config.sampler.name=ddim', '--config.sampler.steps=20',
      '--config.sample.count=3', '--config.inverse.operator=box', '--config.inverse.method=exact',
      f'--config.inverse.images={folder}', '--config.inverse.measured=True',
      '--config.inverse.noise=0.02', '--config.data.limit=500',
    )  # fmt: skip
    code, out, error = cli.here('digits.py:runlocal', 'sample', workdir, *settings)
    self.assertEqual(code, 0, error[-2000:])
    self.assertNotIn('PSNR', out)
    path = out[out.index('\nmeasured, restored: ') + 21 :].split('\n')[0]
    self.assertEqual(Image.open(path).size, (3 * 34, 2 * 34))
    (name,) = [one for one in os.listdir(os.path.join(workdir, 'samples')) if one.endswith('.npz')]
    with np.load(os.path.join(workdir, 'samples', name)) as file:
      found = file[file.files[0]]
    np.testing.assert_allclose(found, DATA.train[:3], atol=2)  # which alone fit the measurements
    code, _, error = cli.here('digits.py:runlocal', 'sample', workdir, *settings[:6],
                              '--config.inverse.measured=True')  # fmt: skip
    self.assertEqual(code, 1)
    self.assertEqual(
      error,
      'error: inverse.measured needs inverse.images, the folder of the measurements\n',
    )

  def test_measurements_keep_their_size(self):
    """Cropping or scaling would change what was measured."""
    folder = self.create_tempdir().full_path
    Image.fromarray(DATA.test[0, ..., 0]).save(f'{folder}/x.png')
    spec = spec_of(operator='box', images=folder, measured=True)
    message = 'inverse.images has measurements of 8 x 8 pixels, and those of this model have 4 x 4'
    with self.assertRaisesRegex(UserError, message):
      measuring.with_images(spec, DATA)
    spec = spec_of(operator='mask', images=folder, measured=True)
    np.testing.assert_array_equal(measuring.with_images(spec, DATA).test, DATA.test[:1])

  def test_hidden_pixels_of_measurements_do_not_count(self):
    spec = spec_of(operator='mask', hidden='right', images='x', measured=True)
    x = measuring.measure(spec, DATA, np.arange(2))
    np.testing.assert_array_equal(x[:, :, :4], base.to_model(DATA.test[:2])[:, :, :4])
    self.assertEqual(np.abs(x[:, :, 4:]).max(), 0)

  def test_latents_are_refused(self):
    code, _, error = cli.here(
      'digits.py:runlocal',
      'sample',
      self.create_tempdir().full_path,
      '--config.denoiser.clip=False',
      '--config.autoencoder.name=kl',
      '--config.autoencoder.weights.format=random',
      '--config.inverse.operator=box',
    )
    self.assertEqual(code, 1)
    self.assertEqual(
      error,
      "error: inverse.operator 'box' measures pixels, and this model makes latents; set it to ''\n",
    )

  def test_no_effect(self):
    workdir = self.create_tempdir().full_path
    for words, message in (
      (('sample', '--config.inverse.method=dps'), "inverse.operator is ''"),
      (
        ('sample', '--config.inverse.operator=box', '--config.inverse.hidden=right'),
        "belongs to inverse.operator 'mask', which is 'box'",
      ),
      (('evaluate', '--config.inverse.operator=box'), '--mode=evaluate restores nothing'),
    ):
      code, _, error = cli.here('digits.py:runlocal', words[0], workdir, *words[1:])
      self.assertEqual(code, 1)
      self.assertIn(message, error)


if __name__ == '__main__':
  absltest.main()
