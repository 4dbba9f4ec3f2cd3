"""The bound on the likelihood, on the page and by the real command."""

import os
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest

from gmm_diffusion import files, specs
from gmm_diffusion.data import sources
from gmm_diffusion.engine import build, drawing
from gmm_diffusion.metrics import features
from gmm_diffusion.tasks.diffusion import bound, jacobian, levels
from helpers import cases, cli

LEARNED = '--config.net.learn_sigma=True', '--config.train.steps=4'
NET = specs.Net(
  channels=8, multipliers=(1.0,), blocks=1, attention=(), head_channels=8, learn_sigma=True
)


class FindTest(absltest.TestCase):
  def test_times_stand_for_all(self):
    with mock.patch.multiple(bound, EXACT=3, PARTS=4):
      numbers, stands = bound.times(200, 50)
    self.assertEqual((numbers.shape, stands.sum()), ((7, 200), 50))
    np.testing.assert_array_equal(numbers[:3], np.arange(3)[:, None] + np.zeros(200))
    values = 1.0 / (1 + np.arange(50))
    self.assertAlmostEqual(np.mean(stands @ values[numbers]), values.sum(), delta=0.15)
    numbers, stands = bound.times(2, 10)  # of a short chain all times
    np.testing.assert_array_equal(np.sort(numbers[:, 0]), np.arange(10))
    np.testing.assert_array_equal(stands, np.ones(10))

  def test_a_network_whose_share_is_one_half(self):
    """One that says nothing at all: v = 1 / 2, between the two fixed variances."""
    self.enter_context(mock.patch.multiple(bound, COUNT=8, EXACT=2, PARTS=3))
    spec = specs.Spec(net=NET)
    data = sources.load(spec.data)
    weights = build.random_weights(build.template(spec, data), 0)
    zero = {'net': jax.tree.map(np.zeros_like, weights['net'])}
    found = bound.find(drawing.Model(spec, data, zero))
    self.assertEqual(list(found)[:3], ['small', 'large', 'learned'])
    away = found['learned minus small'].value
    self.assertAlmostEqual(away, found['learned'].value - found['small'].value, places=4)
    self.assertGreater(found['small'].value, found['learned'].value)
    self.assertGreater(found['learned'].value, 0)


class CommandTest(absltest.TestCase):
  def test_trained_sampled_and_measured(self):
    self.enter_context(mock.patch.dict(features.SETTINGS, steps=10))
    self.enter_context(mock.patch.multiple(bound, COUNT=8, EXACT=2, PARTS=2))
    self.enter_context(mock.patch.multiple(jacobian, COUNT=4, RATIOS=np.array([1.0])))
    self.enter_context(mock.patch.multiple(levels, COUNT=8, RATIOS=np.array([1.0])))
    workdir = self.enter_context(cases.folder())
    code, _, error = cli.here(
      'digits.py:runlocal', 'all', workdir, *cli.CNN, *LEARNED,
      "--config.evaluate.samplers=('ddpm',)", '--config.sampler.variance=learned',
      '--config.sampler.steps=3', '--config.evaluate.count=20',
    )  # fmt: skip
    self.assertEqual(code, 0, error)
    records = files.read_json(os.path.join(workdir, 'results.json'), [])
    bits = {one['metric']: one['value'] for one in records if one['kind'] == 'bound'}
    self.assertContainsSubset({f'bits, variance {name}' for name in bound.SHARES}, bits)
    self.assertIn('bits, variance learned minus large', bits)
    with open(os.path.join(workdir, 'report.html'), encoding='utf-8') as file:
      self.assertIn('Likelihood', file.read())

  def test_refused_before_a_training(self):
    workdir = self.enter_context(cases.folder())
    code, _, error = cli.here(
      'digits.py:runlocal', 'all', workdir, *cli.CNN, "--config.evaluate.samplers=('ddpm',)",
      '--config.sampler.variance=learned',
    )  # fmt: skip
    self.assertEqual(code, 1)
    self.assertIn('net.learn_sigma', error.splitlines()[-1])
    self.assertFalse(os.path.exists(os.path.join(workdir, 'checkpoints')))

  def test_refuses(self):
    workdir = self.enter_context(cases.folder())
    cli.trained(workdir)
    start = os.path.join(workdir, 'start')
    for words, message in (
      (('--config.sampler.name=ddpm', '--config.sampler.variance=learned'), 'net.learn_sigma'),
      (('--config.train.vlb=1.0',), 'net.learn_sigma is False'),
    ):
      code, _, error = cli.here('digits.py:runlocal', 'sample', start, *cli.CNN[:3], *words)
      self.assertEqual(code, 1)
      self.assertIn(message, error.splitlines()[-1])


if __name__ == '__main__':
  absltest.main()
