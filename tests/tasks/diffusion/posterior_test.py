"""--mode=posterior and the samplers that read its file, by the real command."""

import os

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

import gmm_diffusion
from gmm_diffusion import samplers
from helpers import cases, cli

TOY = '--config.posterior.directions=2', '--config.posterior.levels=6'


class ToyTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.workdir = cls.enterClassContext(cases.folder())
    cls.code, cls.said, cls.error = cli.here('toy.py:runlocal', 'posterior', cls.workdir, *TOY)

  def test_what_is_said_and_written(self):
    self.assertEqual(self.code, 0, self.error)
    self.assertRegex(self.said, r'residuals of \d+ items at 6 noise levels')
    self.assertRegex(self.said, r'share of 2 directions\n +-[\d.]+ +[\d.]+  1.00\n')
    found = samplers.posterior.read(os.path.join(self.workdir, 'residuals.npz'))
    self.assertEqual((found.shape, found.vectors.shape), ((2,), (6, 2, 2)))
    self.assertTrue(np.all(np.diff(found.level) > 0))
    self.assertTrue(np.all(np.diff(found.total) < 0))  # less noise leaves less

  def test_again_is_read_and_other_settings_are_measured(self):
    _, said, _ = cli.here('toy.py:runlocal', 'posterior', self.workdir, *TOY)
    self.assertNotIn('residuals of', said)
    with cases.folder() as other:
      for _ in range(2):
        _, said, _ = cli.here(
          'toy.py:runlocal', 'posterior', other, *TOY, '--config.posterior.count=100'
        )
      self.assertNotIn('residuals of', said)
      _, said, _ = cli.here(
        'toy.py:runlocal', 'posterior', other, *TOY, '--config.posterior.count=99'
      )
      self.assertIn('residuals of 99 items', said)

  def test_the_models_own_samples(self):
    with cases.folder() as other:
      code, said, error = cli.here(
        'toy.py:runlocal', 'posterior', other, *TOY, '--config.posterior.count=64',
        '--config.posterior.reference=model',
      )  # fmt: skip
      self.assertEqual(code, 0, error)
      self.assertIn('drawing 64 samples in 250 steps', said)
      own = samplers.posterior.read(os.path.join(other, 'residuals.npz'))
    data = samplers.posterior.read(os.path.join(self.workdir, 'residuals.npz'))
    np.testing.assert_allclose(own.total, data.total, rtol=0.5)

  def test_samples(self):
    for name in cases.POSTERIOR:
      code, said, error = cli.here(
        'toy.py:runlocal', 'sample', self.workdir, f'--config.sampler.name={name}',
        '--config.sampler.directions=2', '--config.sample.count=8', '--config.sampler.steps=3',
      )  # fmt: skip
      self.assertEqual(code, 0, error)
      self.assertIn('8 samples, 3 network evaluations each', said)
      self.assertNotIn('measured on other weights', said)
    model = gmm_diffusion.load('toy:runlocal', self.workdir)
    x = model.sample(8, sampler='posterior_gmm', steps=3, directions=2)
    with np.load(cases.sample_set(self.workdir, 'posterior_gmm')) as file:
      np.testing.assert_array_equal(file['arr_0'], x)

  def test_a_workdir_may_move(self):
    model = gmm_diffusion.load('toy:runlocal', self.workdir)
    with cases.folder() as other:
      before, after = (os.path.join(other, name) for name in ('before', 'after'))
      cli.here('toy.py:runlocal', 'posterior', before, *TOY)
      os.rename(before, after)
      moved = gmm_diffusion.load(after)
      x = moved.sample(4, sampler='posterior_gmm', steps=3, directions=2)
    wanted = model.sample(4, sampler='posterior_gmm', steps=3, directions=2)
    np.testing.assert_array_equal(x, wanted)

  def test_the_control_comes_by_itself(self):
    code, said, error = cli.here(
      'toy.py:runlocal', 'evaluate', self.workdir, '--config.evaluate.count=50',
      "--config.evaluate.samplers=('posterior_gmm',)", '--config.sampler.directions=2',
      '--config.sampler.steps=3',
    )  # fmt: skip
    self.assertEqual(code, 0, error)
    self.assertIn('posterior_noise', said)

  def test_other_weights(self):
    path = cases.residuals(os.path.join(self.workdir, 'other.npz'), (2,), count=2)
    code, said, error = cli.here(
      'toy.py:runlocal', 'sample', self.workdir, '--config.sampler.name=posterior_gaussian',
      f'--config.sampler.posterior={path}', '--config.sampler.directions=1',
      '--config.sample.count=2', '--config.sampler.steps=2',
    )  # fmt: skip
    self.assertEqual(code, 0, error)
    self.assertIn('other.npz was measured on other weights or other guidance', said)

  @parameterized.parameters(
    ('sample', ('--config.sampler.name=posterior_gmm',), 'directions must be in 1..2'),
    ('posterior', ('--config.posterior.directions=3',), 'must be at most 2, the smaller of'),
    ('posterior', ('--config.sampler.steps=3',), 'those of all noise levels'),
    ('sample', ('--config.posterior.count=3',), '--mode=sample measures no residuals'),
    ('posterior', ('--config.sample.label=1',), 'knows no classes'),
    ('sample', ('--config.sampler.places=axes',), 'those that do: posterior_gmm'),
  )
  def test_refuses(self, mode, overrides, words):
    code, _, error = cli.here('toy.py:runlocal', mode, self.workdir, *overrides)
    self.assertEqual(code, 1)
    self.assertIn(words, error.splitlines()[-1])

  def test_without_a_file(self):
    with cases.folder() as other:
      code, _, error = cli.here(
        'toy.py:runlocal', 'sample', other, '--config.sampler.name=posterior_noise'
      )
    self.assertEqual(code, 1)
    self.assertIn('make it with --mode=posterior', error.splitlines()[-1])


class ImagesTest(absltest.TestCase):
  def test_digits(self):
    with cases.folder() as folder:
      cli.trained(folder)
      start = os.path.join(folder, 'start')
      code, said, error = cli.here(
        'digits.py:runlocal', 'posterior', start, *cli.CNN[:3], '--config.posterior.levels=2',
        '--config.posterior.count=40', '--config.posterior.directions=3',
      )  # fmt: skip
      self.assertEqual(code, 0, error)
      self.assertIn('residuals.png', said)
      with Image.open(os.path.join(start, 'residuals.png')) as image:
        self.assertGreater(image.size[0], 300)


if __name__ == '__main__':
  absltest.main()
