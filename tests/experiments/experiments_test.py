"""The experiments at a small size."""

import json
import os
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from configs import digits
from experiments.benchmarks import (
  attention_speed,
  released_end_to_end,
  released_speed,
  sampler_overhead,
  training_profile,
)
from experiments.lib import common
from experiments.studies import (
  beyond_sampling,
  finetuning,
  inverse_problems,
  samplers_as_tables,
)
from gmm_diffusion import files, tasks
from gmm_diffusion.data import sources
from gmm_diffusion.maths import schedules
from gmm_diffusion.metrics import features
from gmm_diffusion.nets import UNet
from gmm_diffusion.samplers import tuned
from gmm_diffusion.tune import race
from helpers import cases, released_files


class ExperimentsTest(absltest.TestCase):
  def test_finetuning(self):
    root = self.create_tempdir().full_path
    start, workdir = os.path.join(root, 'start'), os.path.join(root, 'study')
    config = digits.get_config('runlocal')
    config.train.steps = 2
    config.net.update(name='cnn', channels=8)
    tasks.run('train', start, config, 'test')
    file, process = os.path.join(root, 'tuned.json'), schedules.linear()
    options = {'extrapolate': False}  # with the line, two updates do as for ddim
    table = race.embedded('dpmpp', options, process, np.array([999.0, 300.0]), 'times').table
    files.write_json(file, tuned.content(table, (8, 8, 1), 'other weights'))
    variants = {one: (one, 'energy', 'identity') for one in ('ddim', 'tuned')}
    with (
      mock.patch.object(finetuning, 'VARIANTS', variants),
      mock.patch.dict(features.SETTINGS, steps=10),
    ):
      cases.call(
        finetuning.main, f'--workdir={workdir}', f'--start={start}', '--config=digits:runlocal',
        f'--tuned={file}',
        '--steps=2', '--updates=2', '--count=60', '--seeds', '0', '1', '--set', 'train.steps=2',
        'net.name=cnn', 'net.channels=8',
      )  # fmt: skip
    with open(os.path.join(workdir, 'finetuning.json'), encoding='utf-8') as file:
      rows = json.load(file)['rows']
    found = {
      (row['network'], row['sampler'], row['features'], row['seed']): row['value']
      for row in rows
      if row['metric'] == 'frechet'
    }
    self.assertLen(found, 4 * 4 * 2 * 2)
    for sampler in ('ddim 2', 'tuned 2'):
      values = [
        found[name, sampler, 'gradients', 0] for name in ('before', 'plain loss', *variants)
      ]
      self.assertLen(set(values), 4)  # four networks
    self.assertIn('recall', {row['metric'] for row in rows})

  def test_training_profile(self):
    workdir, real = self.create_tempdir().full_path, common.spec_of
    small = lambda config, changes: real(
      config, [*changes, 'net.name=cnn', 'net.channels=8', 'net.blocks=3', 'net.labels=none']
    )
    with mock.patch.object(common, 'spec_of', small):
      cases.call(training_profile.main, f'--workdir={workdir}', '--batch=2', '--repeats=1')
    with open(os.path.join(workdir, 'training_profile.json'), encoding='utf-8') as file:
      found = json.load(file)['seconds']
    self.assertEqual(
      [name.split(',')[0] for name in found],
      ['step', 'step without dropout', 'optimiser', *['convolutions'] * 4],
    )
    self.assertGreater(min(found.values()), 0)

  def test_the_layers_of_a_network_are_found(self):
    spec = common.spec_of('cifar10:train', [
      'data.name=none', 'train.batch=1', 'net.channels=32', 'net.multipliers=(1,)', 'net.blocks=1',
      'net.attention=(32,)',
    ])  # fmt: skip
    called = lambda call, *args, repeats: call(*args) is not None  # a second for each call
    with mock.patch.object(training_profile, 'seconds', called):
      found = training_profile.of_layers(spec, sources.load(spec.data), 1)
    # one block down and two up, two in the middle, each with two norms, and that of the output;
    # attention behind each but the middle's second has another
    attention = 1 + 1 + 2
    norms = 2 * (1 + 2 + 2) + 1 + attention
    both = 'forward', 'forward and gradients'
    self.assertEqual(found, {
      **{f'group norms, {what}': norms for what in both},
      **{f'attention blocks, {what}': attention for what in both},
    })  # fmt: skip

  def test_all_convolutions_are_found(self):
    def two(x, w):
      conv = lambda x, w: jax.lax.conv_general_dilated(x, w, (1, 1), 'SAME')
      return jax.jit(conv)(conv(x, w), w)

    x = jnp.ones((1, 2, 4, 4)), jnp.ones((2, 2, 3, 3))
    self.assertLen([*training_profile.convolutions(jax.make_jaxpr(two)(*x).jaxpr)], 2)

  def test_sampler_overhead(self):
    workdir, few = (
      self.create_tempdir().full_path,
      dict(multipliers=(1,), blocks=1, head_channels=8),
    )
    small = lambda *args, **settings: UNet(*args, **{**settings, **few})
    with mock.patch.object(sampler_overhead, 'UNet', small):
      out = cases.call(
        sampler_overhead.main, f'--workdir={workdir}', '--steps=2', '--batch=1', '--channels=8',
        '--repeats=1', '--cases', 'ddim_gmm', 'a table, 6 bands',
      )  # fmt: skip
    self.assertRegex(out, r'a table, 6 bands +[\d.]+ s')
    self.assertRegex(out, r'ddim_gmm +[\d.]+ s +[\d.]+ x bare +[\d.]+ x ddim')
    self.assertTrue(os.path.exists(os.path.join(workdir, 'sampler_overhead.json')))

  def test_attention_speed(self):
    workdir = self.create_tempdir().full_path
    out = cases.call(
      attention_speed.main,
      f'--workdir={workdir}',
      '--tokens=64',
      '--long=64',
      '--channels=16',
      '--repeats=1',
      '--cases',
      'softmax',
      'em',
    )
    self.assertRegex(out, r'em / softmax: [\d.]+ \(at most 1.1\)')
    with open(os.path.join(workdir, 'attention_speed.json'), encoding='utf-8') as file:
      self.assertLess(json.load(file)['largest_difference'], 1e-6)

  def test_released_speed(self):
    workdir = self.create_tempdir().full_path
    out = cases.call(
      released_speed.main,
      f'--workdir={workdir}',
      '--variant=runlocal',
      '--steps=2',
      '--batch=2',
      '--repeats=1',
      '--dtype=float32',
    )
    self.assertRegex(out, r'ddim_gmm +[\d.]+ images/s +[\d.]+ x bare network')
    self.assertTrue(os.path.exists(os.path.join(workdir, 'released_speed.json')))

  def test_beyond_sampling(self):
    workdir, case = self.create_tempdir().full_path, 'power 1/2'
    small = dict(GROUPS=16, PARTICLES=32, STEPS=(40,), SETTINGS=(beyond_sampling.SHOWN,))
    with mock.patch.multiple(beyond_sampling, CASES={case: beyond_sampling.CASES[case]}, **small):
      cases.call(beyond_sampling.main, f'--workdir={workdir}', '--count=400')
    with open(os.path.join(workdir, 'beyond_sampling.json'), encoding='utf-8') as file:
      found = json.load(file)
    rows = {(row['method'], row['metric']): row for row in found['correctors']}
    known = rows['geometric', 'variance']['known']
    error = lambda method: abs(rows[method, 'variance']['value'] - known)
    self.assertLess(error('geometric'), 0.3 * error('without weights'))
    self.assertGreater(found['hallucinations'][0]['auc'], 0.7)
    self.assertGreater(found['hallucinations'][0]['removed']['value'], 0.1)  # chance has 0.04
    self.assertTrue(os.path.exists(os.path.join(workdir, 'beyond_sampling.png')))

  def test_table_of_inverse_problems(self):
    rows = [
      dict(problem='blur', method=method, metric=metric, value=0.5, interval=[0.4, 0.6])
      for method in ('exact', 'dps')
      for metric in ('coverage', 'spread')
    ]
    table = inverse_problems.table(rows).split('\n')
    self.assertEqual(table[0], '| problem | method | coverage | spread |')
    self.assertEqual(table[3], '| blur | dps | 0.50 ± 0.10 | 0.50 ± 0.10 |')

  def test_draws_of_an_inverse_problem(self):
    """Two draws around each of two images: one image is between them, the other above both."""
    true = np.full((2, 12, 12, 1), 100, np.uint8)
    x = np.stack([true + 20, true - 10, true - 20, true - 30], 1)[:, :, ...]
    x = np.concatenate([x[0, :2], x[1, 2:]])
    rows = inverse_problems._of_draws('blur', 'dps', x, true, 2)
    found = {row['metric']: row['value'] for row in rows}
    self.assertEqual(found['coverage'], 0.5)
    of = lambda *away: np.mean([20 * np.log10(255 / abs(one)) for one in away])
    self.assertAlmostEqual(found['PSNR'], of(20, 10, 20, 30), places=4)
    self.assertAlmostEqual(found['PSNR of the mean'], of(5, 25), places=4)

  def test_samplers_as_tables(self):
    workdir = self.create_tempdir().full_path
    large = 'DDPM, large variance'
    with (
      mock.patch.object(sys, 'argv', ['samplers_as_tables', f'--workdir={workdir}']),
      mock.patch.object(samplers_as_tables, 'SHOWN', {'DDIM': ('ddim', {}, 5)}),
      mock.patch.object(samplers_as_tables, 'NOISY', {large: samplers_as_tables.NOISY[large]}),
    ):
      samplers_as_tables.main()
    with open(os.path.join(workdir, 'samplers_as_tables.json'), encoding='utf-8') as file:
      kept = json.load(file)['kept']
    self.assertLen(kept, 2)
    for name, errors in kept.items():
      self.assertLess(errors['mean'], 1e-9)
      self.assertEqual(errors['variance'] > 1e-9, name == large)
    self.assertTrue(os.path.exists(os.path.join(workdir, 'samplers_as_tables.png')))

  def test_released_layout(self):
    workdir = self.create_tempdir().full_path
    config = released_files.config_of('celebahq256', 'ldm')
    spec, data = released_files.spec_of(config)
    self.assertGreater(released_end_to_end.write(spec, data, workdir), 1e6)
    tasks.run('convert', workdir, config, 'test')  # all tensors are there, under the released names
    usage = released_end_to_end.command('-c', 'x = bytearray(10**8)')
    self.assertGreater(usage['peak_gb'], 0.1)


if __name__ == '__main__':
  absltest.main()
