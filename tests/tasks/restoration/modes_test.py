"""Task 'restoration' as its users run it: the real command on digits, pairs and images of their
own."""

import dataclasses
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

import gmm_diffusion
from gmm_diffusion import specs, task_specs, tasks
from gmm_diffusion.data import base, sources
from gmm_diffusion.engine import loss
from gmm_diffusion.engine.runs import Run
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import noise
from gmm_diffusion.metrics import features, restoration
from gmm_diffusion.metrics.estimates import of_mean
from gmm_diffusion.tasks import effects
from gmm_diffusion.tasks.restoration import evaluate, inputs, models, modes
from helpers import cases, cli

SMALL = (
  '--config.net.name=cnn',
  '--config.net.channels=8',
  '--config.train.batch=16',
  '--config.train.warmup=0',
  '--config.train.steps=2',
  '--config.evaluate.count=20',
  '--config.restoration.steps=(1,2)',
  '--config.inverse.draws=3',
)
NET = specs.Net(name='cnn', channels=8, labels='none')
BOX = specs.Inverse(operator='box', factor=2, noise=0.3)


def spec_of(**sections):
  settings = dict(
    task='restoration',
    net=NET,
    inverse=BOX,
    schedule=specs.Schedule(name='power'),
    denoiser=specs.Denoiser(prediction='x0'),
    train=specs.Train(batch=6),
    sampler=specs.Sampler(grid='uniform'),
    evaluate=specs.Evaluate(samplers=('ddim',)),
  )
  return specs.Spec(**{**settings, **sections})


def config_of(path, name):
  with open(os.path.join(path, name), encoding='utf-8') as file:
    return json.load(file)


class CommandTest(absltest.TestCase):
  """One workdir through all modes."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.workdir = cls.enterClassContext(cases.folder())
    cls.enterClassContext(absltest.mock.patch.dict(features.SETTINGS, steps=10))
    cls.first = cli.here('restore.py:runlocal', 'all', cls.workdir, *SMALL)

  def test_all_evaluates_every_network(self):
    code, out, error = self.first
    self.assertEqual(code, 0, error[-500:])
    found = config_of(self.workdir, 'results.json')
    rows = {record['sampler'] for record in found}
    steps = {f'{model} ddim {n}' for model in ('residual', 'conditional') for n in (1, 2)}
    self.assertEqual(rows, {'degraded', 'regression', *steps})
    by = {(record['sampler'], record['metric']): record for record in found}
    self.assertEqual(by['residual ddim 2', 'PSNR']['nfe'], 2)
    self.assertGreater(by['residual ddim 2', 'spread']['value'], 0)
    self.assertNotIn(('regression', 'spread'), by)
    one, other, apart = (
      by['residual ddim 1', 'PSNR']['value'],
      by['regression', 'PSNR']['value'],
      by['residual ddim 1', 'PSNR']['minus_regression'],
    )
    self.assertAlmostEqual(apart['value'], one - other, places=9)
    self.assertEqual({record['n'] for record in found}, {20})
    with open(os.path.join(self.workdir, 'report.html'), encoding='utf-8') as file:
      page = file.read()
    for words in ('2 x super-resolution', 'where draws differ', 'residual ddim 2, 2 calls'):
      self.assertIn(words, page)
    self.assertIn('report:', out)

  def test_goes_on_where_it_was(self):
    code, out, _ = cli.here('restore.py:runlocal', 'train', self.workdir, *SMALL)
    self.assertEqual((code, out.count('already trained to step 2')), (0, 3))

  def test_another_measurement_is_another_network(self):
    code, _, error = cli.here(
      'restore.py:runlocal', 'sample', self.workdir, *SMALL[:5], '--config.inverse.operator=blur'
    )
    self.assertEqual(code, 1)
    self.assertIn('was made with restores.operator = box, the config says blur', error)

  def test_images_of_ones_own(self):
    folder = self.create_tempdir().full_path
    images = sources.load(specs.Data()).test[:3, ..., 0]
    for number, image in enumerate(images):
      Image.fromarray(image).save(os.path.join(folder, f'photo{number}.png'))
    settings = (f'--config.restoration.images={folder}', '--config.sampler.steps=2')
    code, out, error = cli.here(
      'restore.py:runlocal', 'sample', self.workdir, *SMALL[:5], *settings,
      '--config.inverse.draws=2',
    )  # fmt: skip
    self.assertEqual(code, 0, error[-500:])
    names = sorted(os.listdir(os.path.join(self.workdir, 'restored')))
    self.assertEqual(names, [f'photo{n}-{d}.png' for n in range(3) for d in range(2)])
    self.assertIn('6 images, 2 network evaluations each', out)
    with Image.open(os.path.join(self.workdir, 'restored.png')) as sheet:
      self.assertEqual(sheet.size[1] // sheet.size[0], 1)  # 3 columns, 3 rows

  def test_from_python(self):
    images = sources.load(specs.Data()).test[:4]
    found = gmm_diffusion.restore(images, self.workdir, steps=2)
    self.assertEqual((found.shape, found.dtype), ((4, 8, 8, 1), np.uint8))
    twice = gmm_diffusion.restore(images, self.workdir, draws=2, steps=2, sampler='unipc')
    self.assertEqual(twice.shape, (4, 2, 8, 8, 1))
    self.assertGreater(np.abs(twice[:, 0].astype(int) - twice[:, 1]).max(), 0)
    small = images[:, ::2, ::2]
    large = small.repeat(2, 1).repeat(2, 2)
    one, other = (
      gmm_diffusion.restore(x, self.workdir, draws=3, model='regression') for x in (small, large)
    )
    np.testing.assert_array_equal(one, other)
    self.assertEqual(one.shape, images.shape)
    for arguments, options, words in (
      ((images[:, :3], self.workdir), {}, r'uint8 \[N, 8, 8, 1\], or \[N, 4, 4, 1\], got uint8'),
      ((images, self.workdir), {'model': 'gan'}, "unknown model 'gan'; valid here: residual"),
      ((images, self.workdir), {'stepz': 3}, "unknown config key 'sampler.stepz'"),
      ((images, os.path.join(self.workdir, 'residual')), {}, 'holds no finished run'),
    ):
      with self.assertRaisesRegex(UserError, words):
        gmm_diffusion.restore(*arguments, **options)

  def test_the_same_image_however_many_are_drawn(self):
    settings = config_of(self.workdir, 'config.json')
    spec = specs.from_config(settings)
    data = sources.load(spec.data)
    one = models.Restorer(Run(spec, data, self.workdir, ''), 'residual')
    sampler = specs.Sampler(name='residual', eta=1.0, steps=3, grid='uniform')
    x_in = inputs.of_test(spec, data, None, 7)
    every, calls = one.restore(sampler, x_in, np.arange(7))
    few, _ = one.restore(sampler, x_in[2:4], np.arange(2, 4))
    np.testing.assert_allclose(few.astype(int), every[2:4].astype(int), atol=1)
    self.assertEqual(calls, 3)


class PairsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(absltest.mock.patch.dict(features.SETTINGS, steps=10))
    self.clean, self.dark = (self.create_tempdir(name).full_path for name in ('clean', 'dark'))
    random = np.random.RandomState(0)
    for number in range(24):
      pixels = random.randint(0, 256, (8, 8, 3), np.uint8)
      Image.fromarray(pixels).save(os.path.join(self.clean, f'{number:02d}.png'))
      Image.fromarray(pixels // 4).save(
        os.path.join(self.dark, f'{number:02d}.webp'), lossless=True
      )

  def spec(self, **more):
    own = specs.Data(name='folder', path=self.clean, held_out=0.25, labels='none')
    given = task_specs.Restoration(pairs=self.dark, **more)
    return spec_of(data=own, inverse=specs.Inverse(), restoration=given)

  def test_belong_together(self):
    spec = self.spec()
    data = sources.load(spec.data)
    pairs = inputs.load(spec, data)
    self.assertLen(data.test, 6)
    for clean, dark in ((data.train, pairs.train), (data.test, pairs.test)):
      np.testing.assert_allclose(dark.astype(int), clean // 4, atol=0)
    both = np.concatenate([data.train[:2], pairs.train[:2]], -1)
    x0, x_in = inputs.of_training(spec, pairs)(base.to_model(both), None)
    np.testing.assert_array_equal(x0, base.to_model(data.train[:2]))
    np.testing.assert_array_equal(x_in, base.to_model(pairs.train[:2]))

  def test_the_command(self):
    workdir = self.create_tempdir().full_path
    code, _, error = cli.here(
      'restore.py:folder,runlocal', 'all', workdir, *SMALL[:5],
      f'--config.data.path={self.clean}', f'--config.restoration.pairs={self.dark}',
      '--config.data.size=8', '--config.inverse.operator=', '--config.data.held_out=0.25',
      "--config.restoration.models=('residual',)", '--config.restoration.steps=(1,)',
    )  # fmt: skip
    self.assertEqual(code, 0, error[-800:])
    found = config_of(workdir, 'results.json')
    self.assertEqual({record['sampler'] for record in found}, {'degraded', 'residual ddim 1'})

  def test_one_is_missing(self):
    os.remove(os.path.join(self.dark, '05.webp'))
    spec = self.spec()
    with self.assertRaisesRegex(UserError, "differ in '05'; give each pair the same name"):
      inputs.load(spec, sources.load(spec.data))


class PiecesTest(parameterized.TestCase):
  def test_what_a_network_learns_from_is_what_it_is_asked(self):
    """The degraded image of the loss has the law of that of an evaluation."""
    spec = spec_of()
    data = sources.load(spec.data)
    x = np.broadcast_to(base.to_model(data.test[:1]), (4000, 8, 8, 1))
    keys = noise.sample_keys(1, np.arange(4000))
    x0, x_in = inputs.of_training(spec, None)(x, keys)
    np.testing.assert_array_equal(x0, x)
    same = np.asarray(x_in).reshape(4000, 4, 2, 4, 2).std((2, 4))
    np.testing.assert_array_equal(same, 0)  # boxes of 2 x 2
    mean = x[0].reshape(4, 2, 4, 2).mean((1, 3))
    found = np.asarray(x_in)[:, ::2, ::2, 0]
    np.testing.assert_allclose(found.mean(0), mean, atol=5 * 0.3 / np.sqrt(4000))
    np.testing.assert_allclose(found.std(0), 0.3, rtol=0.08)
    asked = inputs.of_test(spec, data, None, 1)
    self.assertEqual(asked.shape, (1, 8, 8, 1))
    self.assertLess(np.abs(asked[0, ::2, ::2, 0] - mean).max(), 5 * 0.3)

  @parameterized.parameters(*models.MODELS)
  def test_loss(self, model):
    """With a network that outputs zeros: the mean square of what is to be predicted."""
    spec = spec_of()
    data = sources.load(spec.data)
    params = jax.tree.map(jnp.zeros_like, models.init(spec, data))
    pieces = models.given(spec, None, model), models.process(spec, model)
    of = loss.denoising_loss(models.of(Run(spec, data, '', ''), model).spec, data, *pieces)
    batch = data.train[:6], data.train_labels[:6], np.arange(6, dtype=np.int32)
    x0 = base.to_model(data.train[:6])
    root = jax.random.fold_in(jax.random.key(spec.seed), 7)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(root, i), 5))(np.arange(6))
    x_in = inputs.degraded(spec.inverse, x0, keys)
    aim = x0 if model == 'conditional' else x0 - x_in
    np.testing.assert_allclose(of(params, 7, batch)[0], np.mean(np.square(aim)), rtol=1e-5)

  def test_a_regression_does_not_see_noise(self):
    x_in = jnp.ones((2, 8, 8, 1))
    spec = spec_of(inverse=specs.Inverse(operator='identity', noise=0.0))
    _, add = models.given(spec, None, 'regression')(x_in, noise.sample_keys(0, np.arange(2)))
    np.testing.assert_array_equal(add(7 * x_in), np.stack([0 * x_in, x_in], -1)[..., 0, :])
    process = models.process(spec, 'regression')
    np.testing.assert_array_equal(process.training_times, [1.0])

  @parameterized.parameters('min_snr', 'p2')
  def test_a_regression_has_no_weights(self, kind):
    spec = spec_of(train=specs.Train(batch=6, loss=kind))
    own = models.of(Run(spec, None, '', ''), 'regression').spec
    process = models.process(spec, 'regression')
    times = process.at(process.training_times)
    np.testing.assert_array_equal(loss.loss_weights(own, process, times, 64), [1.0])

  def test_what_is_not_finite_is_no_image(self):
    spec = spec_of()
    data = sources.load(spec.data)
    one = models.Restorer.__new__(models.Restorer)
    one.spec, one.data, one.model, one._weights = spec, data, 'residual', {}
    one._sampling = lambda sampler: (lambda shared, batch: (batch[1] * np.nan, batch[0]), ())
    with self.assertRaisesRegex(UserError, '2 of 2 images restored by residual are not finite'):
      one.restore(spec.sampler, np.zeros((2, 8, 8, 1), np.float32), np.arange(2))

  def test_own_images_are_as_those_of_the_training(self):
    folder = self.create_tempdir().full_path
    small = np.random.RandomState(0).randint(0, 256, (4, 4), np.uint8)
    Image.fromarray(small).save(os.path.join(folder, 'a.png'))
    spec = spec_of(restoration=task_specs.Restoration(images=folder))
    data = sources.load(spec.data)
    x_in, names = inputs.own_images(spec, data)
    self.assertEqual(names, ['a.png'])
    expected = base.to_model(small.repeat(2, 0).repeat(2, 1))
    np.testing.assert_array_equal(x_in[0, ..., 0], expected)
    Image.fromarray(small).save(os.path.join(folder, 'a.webp'))
    with self.assertRaisesRegex(UserError, "two images of .* are called 'a'"):
      inputs.own_images(spec, data)
    nowhere = spec_of(restoration=task_specs.Restoration(images='/nowhere'))
    with self.assertRaisesRegex(UserError, "no folder '/nowhere'; set restoration.images"):
      inputs.own_images(nowhere, data)

  def test_no_test_images(self):
    spec = spec_of()
    data = sources.load(spec.data)
    empty = Run(spec, data._replace(test=data.test[:0]), '', '')
    with self.assertRaisesRegex(UserError, 'no test images to restore; set restoration.images'):
      modes.sample(empty, None)

  def test_draws_of_pairs_have_an_effect(self):
    spec = spec_of(
      inverse=specs.Inverse(), restoration=task_specs.Restoration(pairs='x'),
      data=specs.Data(name='folder', path='y'),
    )  # fmt: skip
    effects.check(spec, 'all', ['inverse.draws'])

  def test_values(self):
    random = np.random.RandomState(0)
    true = random.randint(0, 256, (5, 8, 8, 1), np.uint8)
    found = random.randint(0, 256, (5, 3, 8, 8, 1), np.uint8)
    found[0] = true[0]  # infinitely near
    with absltest.mock.patch.object(evaluate.quality, 'measure', lambda *a: ({'frechet': 0}, 5)):
      values = evaluate.values_of(found, true, None)
    each = np.mean([restoration.psnr(found[:, d], true) for d in range(3)], 0)
    each[0] = 80
    expected = of_mean(each)
    self.assertAlmostEqual(values['PSNR'].value, expected.value, places=9)
    self.assertAlmostEqual(
      values['PSNR'].half, expected.half * 1.96 / 2.7764, places=3
    )  # normal in place of t
    spread = np.std(found / 127.5, 1, ddof=1).mean((1, 2, 3))
    self.assertAlmostEqual(values['spread'].value, spread.mean(), places=6)

  def test_a_mixture_brings_its_control(self):
    spec = spec_of(evaluate=specs.Evaluate(samplers=('ddim_gmm',)))
    names = [evaluate.named(*one) for one in evaluate.todo(spec)]
    self.assertIn('residual ddim_gmm 5', names)
    self.assertIn('residual ddim_noise 5', names)
    self.assertEqual(names.count('regression'), 1)

  @parameterized.parameters(
    (dict(inverse=specs.Inverse()), 'needs either inverse.operator'),
    (dict(restoration=task_specs.Restoration(pairs='x')), 'and not both'),
    (dict(restoration=task_specs.Restoration(models=('gan',))), "unknown name 'gan'"),
    (dict(restoration=task_specs.Restoration(models=())), 'valid: residual, conditional'),
    (dict(inverse=specs.Inverse(operator='box', factor=3)), 'cannot be divided into boxes'),
    (dict(denoiser=specs.Denoiser(prediction='eps')), 'a = 0; valid: x0, v, velocity'),
    (dict(net=specs.Net(name='cnn', channels=8)), "needs net.labels 'none'"),
    (dict(data=specs.Data(name='toy')), "data 'toy' has no images to restore"),
    (dict(evaluate=specs.Evaluate(samplers=('tuned',))), 'has steps of its own'),
    (dict(evaluate=specs.Evaluate(samplers=('dimm',))), "unknown sampler 'dimm'"),
    (
      dict(
        evaluate=specs.Evaluate(samplers=()),
        restoration=task_specs.Restoration(models=('residual',)),
      ),
      'there is nothing to evaluate',
    ),
    (dict(train=specs.Train(batch=6, loss='elbo')), "train.loss 'elbo' has no weights"),
    (dict(train=specs.Train(batch=6, accumulate=4)), 'train.accumulate 4 does not divide'),
  )
  def test_bad_settings(self, sections, words):
    workdir = self.create_tempdir().full_path
    with self.assertRaisesRegex(UserError, words):
      tasks.run('all', workdir, dataclasses.asdict(spec_of(**sections)), '')

  def test_keys_without_effect(self):
    for key, mode, words in (
      ('inverse.method', 'train', "task 'restoration' reads inverse.operator"),
      ('restoration.images', 'evaluate', 'restores test images'),
      ('restoration.steps', 'sample', 'reads sampler.steps'),
      ('sampler.name', 'all', 'reads evaluate.samplers'),
      ('sampler.steps', 'evaluate', 'reads restoration.steps'),
      ('net.weights.format', 'train', 'trains its own networks'),
      ('train.sample_every', 'train', 'shows no samples while it trains'),
      ('tune.tier', 'train', "does not read the section 'tune'"),
    ):
      with self.assertRaisesRegex(UserError, words):
        tasks.run(mode, self.create_tempdir().full_path, dataclasses.asdict(spec_of()), '', [key])


if __name__ == '__main__':
  absltest.main()
