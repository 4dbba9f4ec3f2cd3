"""--mode=finetune: what its loss is least for, and the command from a trained network on."""

import os
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from gmm_diffusion import parallel, specs
from gmm_diffusion.checkpoints.store import Store
from gmm_diffusion.data import sources
from gmm_diffusion.engine import drawing, trainer
from gmm_diffusion.maths import kernels, marginals
from gmm_diffusion.tasks.diffusion import finetune
from helpers import cases, cli

MEAN, DEVIATION = np.array([0.3, -0.2], np.float32), 0.5


def affine(weights):
  """A denoiser whose one step from noise makes c + A noise."""

  def denoise(x, time, cond):
    del cond
    a, c = weights['net']
    return marginals.from_x0(x, c[None] + a * x / time.b, time)

  return denoise


def gradient(kernel, a, c, count=2000):
  """Of the loss by (A, c), for Gaussian data and DDIM in one step."""
  spec = specs.Spec(
    data=specs.Data(name='toy'),
    sampler=specs.Sampler(name='ddim', steps=1),
    denoiser=specs.Denoiser(name='mixture', clip=False),
    finetune=specs.Finetune(kernel=kernel),
  )
  made = drawing.prepare(spec, spec.sampler, sources.load(spec.data))._replace(bind=affine)
  loss = finetune.distance_loss(spec, made, lambda x: x)
  y = MEAN + DEVIATION * np.random.RandomState(0).randn(count, 2).astype(np.float32)
  batch = y, np.zeros(count, np.int32), np.arange(count, dtype=np.uint32)
  of = parallel.over_devices(lambda p, batch: parallel.mean(jax.grad(loss)(p, 0, batch)))
  return parallel.unreplicate(
    of(parallel.replicate((jnp.float32(a), jnp.asarray(c))), parallel.split(batch))
  )


class LossTest(parameterized.TestCase):
  @parameterized.parameters(*kernels.KERNELS)
  def test_is_least_where_samples_are_like_the_data(self, kernel):
    by_a, by_c = gradient(kernel, DEVIATION, MEAN)
    wide, _ = gradient(kernel, 1.5 * DEVIATION, MEAN)
    narrow, _ = gradient(kernel, 0.5 * DEVIATION, MEAN)
    _, moved = gradient(kernel, DEVIATION, MEAN + np.float32(0.3))
    self.assertLess(narrow, -5 * abs(by_a))
    self.assertGreater(wide, 5 * abs(by_a))
    self.assertGreater(moved.min(), 5 * np.abs(by_c).max())

  def test_pixels_have_mean_square_one(self):
    data = sources.load(specs.Data())
    x = jnp.asarray(data.train[:1000], jnp.float32) / 127.5 - 1
    found = finetune.features_of('identity', data, '')(x)
    self.assertAlmostEqual(float(jnp.mean(found**2)), 1, places=5)
    self.assertEqual(found.shape, (1000, 64))


DEVICES = """
import sys
import jax, numpy as np
from gmm_diffusion import parallel
from gmm_diffusion.maths import kernels
sys.path.insert(0, 'tests')
from tasks.diffusion import finetune_test
parts = finetune_test.gradient('energy', 0.8, np.float32([0.1, 0.4]), 64)
np.savez(sys.argv[1], *parts, devices=jax.device_count())
"""


class CommandTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = cls.enterClassContext(cases.folder())
    cls.start = cli.trained(cls.root)

  def finetune(self, folder, *overrides, mode='finetune'):
    return cli.here(
      'digits.py:runlocal',
      mode,
      os.path.join(self.root, folder),
      *cli.CNN[:3],
      f'--config.finetune.start={self.start}',
      '--config.sampler.name=ddim',
      '--config.sampler.steps=2',
      *overrides,
    )

  def weights(self, folder):
    with Store(os.path.join(self.root, folder)) as store:
      return store.latest(), store.about()

  def test_goes_on_where_it_was_and_is_sampled(self):
    for folder, steps in (('whole', (4,)), ('parts', (2, 4))):
      for count in steps:
        code, _, error = self.finetune(
          folder, f'--config.finetune.steps={count}', '--config.train.sample_every=4'
        )
        self.assertEqual(code, 0, error)
    found = {}
    for folder in ('whole', 'parts', 'start'):
      code, said, error = cli.here(
        'digits.py:runlocal',
        'sample',
        os.path.join(self.root, folder),
        *cli.CNN[:3],
        '--config.sampler.name=ddim',
        '--config.sampler.steps=2',
        '--config.sample.count=4',
      )
      self.assertEqual(code, 0, error)
      with np.load(cases.sample_set(os.path.join(self.root, folder), 'ddim')) as file:
        found[folder] = file['x'] if 'x' in file else file['arr_0']
    np.testing.assert_array_equal(found['whole'], found['parts'])
    self.assertTrue(np.any(found['whole'] != found['start']))
    self.assertTrue(os.path.exists(os.path.join(self.root, 'whole', 'progress', '00000004.png')))
    self.assertEqual(self.weights('whole')[1]['finetuned']['kernel'], 'energy')
    # nothing else goes on from there
    for other in ('--config.finetune.kernel=gaussian', '--config.sampler.steps=3'):
      code, _, error = self.finetune('whole', other)
      self.assertIn('holds the checkpoint of another network', error)
      self.assertEqual(code, 1)
    code, _, error = cli.here(
      'digits.py:runlocal', 'train', os.path.join(self.root, 'whole'), *cli.CNN
    )
    self.assertIn('holds the checkpoint of another network', error)
    self.assertEqual(code, 1)

  def test_batches(self):
    with mock.patch.object(trainer, 'fit') as fit:
      code, _, error = self.finetune('batches')
    self.assertEqual(code, 0, error)
    batch, data = fit.call_args.args[3], sources.load(specs.Data())
    (items, labels, ids), (_, _, later) = batch(0, slice(None)), batch(1, slice(8))
    np.testing.assert_array_equal(ids, 2**31 + np.arange(32))  # none that people draw
    np.testing.assert_array_equal(later, 2**31 + 32 + np.arange(8))
    own = [int(np.flatnonzero((data.train == item).all((1, 2, 3)))[0]) for item in items]
    self.assertTrue(np.any(labels != data.train_labels[own]))  # drawn alike, and independent
    self.assertEqual(set(labels), set(range(10)))

  @parameterized.parameters(
    ('--config.finetune.start=', 'finetune.start is not set'),
    ('--config.finetune.start={root}/none', 'no checkpoint'),
    ('--config.finetune.start={root}/bad', 'is the --workdir itself'),
    ('--config.sampler.name=time_shift', "'time_shift' has no useful gradient"),
    ('--config.finetune.batch=1', 'finetune.batch must be in'),
    ('--config.finetune.kernel=cubic', 'energy, polynomial, gaussian'),
    ('--config.train.steps=7', '--mode=finetune reads the section finetune'),
    ('--config.train.noisy=0.5', '--mode=finetune reads the section finetune'),
  )  # fmt: skip
  def test_bad_settings(self, override, message):
    code, _, error = self.finetune('bad', override.format(root=self.root))
    self.assertEqual(code, 1, error)
    self.assertIn(message, error)
    self.assertEqual(error.count('\n'), 1)

  def test_exact_denoisers_learn_nothing(self):
    code, _, error = cli.here('toy.py:runlocal', 'finetune', os.path.join(self.root, 'toy'))
    self.assertEqual(code, 1)
    self.assertIn('is exact and has nothing to train', error)

  def test_other_modes_do_not_read_it(self):
    code, _, error = self.finetune('start', mode='sample')
    self.assertEqual(code, 1)
    self.assertIn('--mode=sample does not fine-tune', error)

  def test_as_many_devices_as_there_are(self):
    found = {}
    for devices in (1, 2):
      path = os.path.join(self.root, f'{devices}.npz')
      code, _, error = cases.python('-c', DEVICES, path, devices=devices)
      self.assertEqual(code, 0, error)
      with np.load(path) as file:
        found[devices] = file['arr_0'], file['arr_1']
        self.assertEqual(file['devices'], devices)
    for one, two in zip(found[1], found[2], strict=True):
      np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)


if __name__ == '__main__':
  absltest.main()
