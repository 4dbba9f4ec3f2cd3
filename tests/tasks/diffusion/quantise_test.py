"""--mode=quantise: the command, what it refuses, and what the inputs of layers are measured on."""

import os

import numpy as np
from absl.testing import absltest, parameterized

from gmm_diffusion import specs, task_specs
from gmm_diffusion.checkpoints.store import Store
from gmm_diffusion.data import sources
from gmm_diffusion.engine import build, drawing
from gmm_diffusion.errors import UserError
from gmm_diffusion.nets import quantised
from gmm_diffusion.tasks.diffusion import quantise
from helpers import cases, cli

NET = specs.Net(channels=8, multipliers=(1.0,), blocks=1, attention=(), head_channels=8)


class RangesTest(parameterized.TestCase):
  def test_rows(self):
    t, random = np.arange(9, -1, -1.0), np.random.RandomState(0)
    rows = lambda times, count=400: quantise.at_rows(10, times, count, random)
    self.assertEqual(set(rows('noise')), {0})
    self.assertEqual(set(rows('clean')), {9})
    np.testing.assert_array_equal(np.bincount(rows('uniform')), 40)
    normal = t[rows('normal')]
    # of N(.4, .4) clipped to [0, 1], times 9: mean 3.78; 4 standard errors of 400
    self.assertAlmostEqual(normal.mean(), 3.78, delta=0.62)

  def test_covers_what_enters_layers(self):
    spec = specs.Spec(net=NET, sampler=specs.Sampler(name='ddim', steps=4))
    data = sources.load(spec.data)
    weights = build.random_weights(build.template(spec, data), 0)
    model, made = drawing.Model(spec, data, weights), drawing.prepare(spec, spec.sampler, data)
    found = quantise.ranges(model, made, task_specs.Quantise(activations=8, count=16))
    self.assertEqual(set(found), set(build.layers(spec, data)))
    states = model.states(made, 16)
    step, low, high = found['input_blocks.0.0']
    self.assertEqual((low, high), (-128, 127))
    largest = np.abs(states).max()
    self.assertBetween(step * high, 0.2 * largest, 1.01 * largest)
    smaller = model.on(specs.Spec(net=NET, sampler=spec.sampler, sample=specs.Sample(batch=5)))
    again = quantise.ranges(smaller, made, task_specs.Quantise(activations=8, count=16))
    for path, values in found.items():  # however they are batched
      np.testing.assert_allclose(again[path], values, rtol=1e-6)

  @parameterized.parameters(
    ('noise', 'time_embed.0', 'time_embed.2'),
    ('noise', 'middle_block.0/in_layers.2', 'middle_block.0/out_layers.3'),
    ('uniform', 'middle_block.0/in_layers.2', 'input_blocks.0.0'),  # the samples are no numbers
  )
  def test_names_the_first_layer_that_no_numbers_enter(self, times, broken, named):
    spec = specs.Spec(net=NET, sampler=specs.Sampler(name='ddim', steps=2))
    data = sources.load(spec.data)
    weights = build.random_weights(build.template(spec, data), 0)
    layer = quantised._at(weights['net']['params'], broken)
    layer['bias'] = np.full_like(layer['bias'], np.nan)
    model, made = drawing.Model(spec, data, weights), drawing.prepare(spec, spec.sampler, data)
    with self.assertRaisesRegex(UserError, f"what enters layer '{named}' is not finite"):
      quantise.ranges(model, made, task_specs.Quantise(activations=8, count=8, times=times))


class CommandTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = cls.enterClassContext(cases.folder())
    cls.start = cli.trained(cls.root)

  def run_mode(self, mode, folder, *overrides):
    asked = mode != 'quantise' or any('activations=8' in word for word in overrides)
    return cli.here(
      'digits.py:runlocal',
      mode,
      os.path.join(self.root, folder),
      *cli.CNN[:3],
      *(('--config.sampler.name=ddim', '--config.sampler.steps=2') if asked else ()),
      *overrides,
    )

  def quantise(self, folder, *overrides):
    return self.run_mode('quantise', folder, f'--config.quantise.start={self.start}', *overrides)

  def draw(self, folder):
    code, _, error = self.run_mode('sample', folder, '--config.sample.count=20')
    self.assertEqual(code, 0, error)
    with np.load(cases.sample_set(os.path.join(self.root, folder), 'ddim')) as file:
      return file['arr_0'].astype(np.float32)

  def test_is_sampled_by_the_same_config(self):
    code, said, error = self.quantise('w8', '--config.quantise.activations=8')
    self.assertEqual(code, 0, error)
    self.assertRegex(said, r'layers with weights of 8 bits and inputs of 8 bits: the network takes')
    code, _, error = self.quantise('w2', '--config.quantise.weights=2')
    self.assertEqual(code, 0, error)
    whole, near, far = (self.draw(name) for name in ('start', 'w8', 'w2'))
    rms = lambda x: np.sqrt(np.mean((x - whole) ** 2))
    self.assertBetween(rms(near), 1e-3, 10)
    self.assertGreater(rms(far), 2 * rms(near))
    with Store(os.path.join(self.root, 'w8')) as store:
      self.assertEqual(store.latest(), 0)
      self.assertEqual(store.about()['quantised']['activations'], 8)

    for mode, words in (('finetune', 'quantised'), ('quantise', 'quantised')):
      code, _, error = self.run_mode(
        mode, f'again_{mode}', f'--config.{mode}.start={os.path.join(self.root, "w8")}'
      )
      self.assertEqual(code, 1)
      self.assertIn(words, error.splitlines()[-1])
    code, _, error = self.run_mode('train', 'w8')
    self.assertEqual(code, 1)
    self.assertIn('of another network', error.splitlines()[-1])
    code, _, error = self.quantise('w8')
    self.assertEqual(code, 1)
    self.assertIn('there is a checkpoint', error.splitlines()[-1])

  @parameterized.parameters(
    (('--config.quantise.start=',), 'quantise.start is not set'),
    (('--config.quantise.weights=9',), 'quantise.weights'),
    (('--config.quantise.activations=1',), 'quantise.activations'),
    (('--config.quantise.activations=17',), 'quantise.activations'),
    (('--config.quantise.times=noise',), 'quantise.activations is 0'),
    (('--config.sampler.steps=3',), 'quantise.activations is 0'),
    (('--config.denoiser.name=empirical',), 'exact'),
  )
  def test_refuses(self, overrides, words):
    code, _, error = self.quantise('never', *overrides)
    self.assertEqual(code, 1)
    self.assertIn(words, error.splitlines()[-1])
    self.assertFalse(os.path.exists(os.path.join(self.root, 'never', 'checkpoints')))

  def test_refuses_its_own_workdir_and_none(self):
    code, _, error = self.quantise('start')
    self.assertEqual(code, 1)
    self.assertIn('is the --workdir itself', error)
    code, _, error = self.run_mode('quantise', 'x', '--config.quantise.start=/nowhere')
    self.assertEqual(code, 1)
    self.assertIn('no checkpoint in /nowhere', error)


if __name__ == '__main__':
  absltest.main()
