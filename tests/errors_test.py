"""Bad input: one line that names the value and the valid ones, non-zero exit, nothing
half-written."""

import os
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from configs import digits
from gmm_diffusion import tasks
from gmm_diffusion.data import sources
from gmm_diffusion.errors import UserError
from helpers import cases, cli


def settings(**changes):
  config = digits.get_config('runlocal')
  config.update(
    net=dict(channels=8, multipliers=(1,), head_channels=8),
    train=dict(steps=4, batch=16, warmup=0, checkpoint_every=2, log_every=1),
  )
  config.update_from_flattened_dict(changes)
  return config


class CommandTest(parameterized.TestCase):
  def assertRefused(self, result, pattern):
    code, out, error = result
    self.assertNotEqual(code, 0)
    self.assertRegex(error, pattern)
    self.assertNotIn('Traceback', error)

  def test_sample_without_a_checkpoint(self):
    workdir = os.path.join(self.create_tempdir().full_path, 'run')
    result = cli.main('digits.py:runlocal', 'sample', workdir)
    self.assertRefused(
      result,
      r'^error: no checkpoint in .*/run/checkpoints; train one first with --mode=train or '
      r'--mode=all, or --mode=convert released weights\n$',
    )
    self.assertEqual(os.listdir(workdir), [])

  def test_unknown_key_on_the_command_line(self):
    result = cli.main('digits.py', 'sample', '/tmp/unused', '--config.sampler.stepz=5')
    self.assertRefused(
      result, r"^error: unknown config key 'sampler.stepz'; valid: sampler.name, sampler.steps"
    )

  def test_unknown_mode(self):
    self.assertRefused(
      cli.main('digits.py', 'smaple', '/tmp/unused'),
      r'^error: .*smaple.*train\|fetch\|convert\|sample\|evaluate\|all',
    )

  def test_unknown_variant(self):
    self.assertRefused(
      cli.main('digits.py:runlocl', 'sample', '/tmp/unused'),
      "^error: unknown config argument 'runlocl'; valid: runlocal\n$",
    )

  def test_missing_flags_and_config(self):
    self.assertRefused(cli.main('digits.py', 'sample', ''), 'workdir')
    self.assertRefused(
      cli.main('nothing.py', 'sample', '/tmp/unused'),
      "^error: .*No such file or directory: 'configs/nothing.py'\n$",
    )

  def test_unwritable_workdir(self):
    file = self.create_tempfile('file').full_path
    self.assertRefused(
      cli.main('digits.py:runlocal', 'all', os.path.join(file, 'run')),
      r"error: cannot write to --workdir '.*/file/run': Not a directory",
    )


class SettingsTest(parameterized.TestCase):
  @parameterized.parameters(
    ({'sampler.name': 'ddmi'}, "unknown sampler 'ddmi'; valid: ddpm, ddim"),
    ({'sampler.eta': 1.5}, r'sampler.eta must be in \[0, 1\], got 1.5'),
    ({'sampler.steps': 0}, r'sampler.steps must be in \[1, 1000000\], got 0'),
    ({'sampler.steps': 1001}, 'steps must be in 1..1000, got 1001'),
    ({'sampler.scale': -1.0}, 'scale must be >= 0, got -1.0'),
    ({'sampler.components': 65}, r'components must be in 1..64 .* got 65'),
    (
      {'sampler.components': 2, 'sampler.priors': (0.5, 0.4)},
      'priors must be positive and sum to 1, got sum 0.9',
    ),
    ({'sampler.grid': 'even'}, "unknown grid 'even'; valid: uniform"),
    ({'schedule.name': 'sigmoid'}, "unknown schedule 'sigmoid'; valid: linear"),
    (
      {'denoiser.name': 'mixture'},
      "data 'digits' has no known mixture; valid denoisers here: network, empirical",
    ),
    (
      {'denoiser.name': 'empirical', 'denoiser.guidance': 2.0},
      'guidance 2 needs a conditional network',
    ),
    ({'sample.label': '10'}, "no class '10'; valid: 0..9"),
    (
      {'net.head_channels': 64},
      'attention on 8 channels needs a head width that divides them; got head_channels 64',
    ),
    ({'net.name': 'vit'}, "unknown net 'vit'; valid: unet"),
    ({'net.multipliers': (1, 1, 1, 1, 1)}, 'images of 8 x 8 cannot be halved 4 times'),
    (
      {'data.name': 'imagenet'},
      "unknown data.name 'imagenet'; valid: digits, toy, tfds, crafted, none",
    ),
    ({'net.dtype': 'float16'}, "unknown net.dtype 'float16'; valid: float32, bfloat16"),
    ({'train.batch': 0}, r'train.batch must be in \[1, 65536\], got 0'),
    ({'train.ema': 1.0}, r'train.ema must be in \[0, 1\), got 1.0'),
    ({'train.learning_rate': 0.0}, r'train.learning_rate must be in \(0, 1e38\], got 0.0'),
    ({'evaluate.samplers': ('ddim', 'x')}, "unknown sampler 'x'"),
    ({'evaluate.metrics': ('fid',)}, "unknown evaluate.metrics 'fid'; valid: frechet"),
    ({'evaluate.features': 'vgg'}, "unknown evaluate.features 'vgg'; valid: classifier"),
  )
  def test_refused_before_anything_is_written(self, changes, message):
    workdir = os.path.join(self.create_tempdir().full_path, 'run')
    if 'evaluate.samplers' not in changes:
      changes = {**changes, 'evaluate.samplers': (changes.get('sampler.name', 'ddim_gmm'),)}
    with self.assertRaisesRegex(UserError, message) as caught:
      tasks.run('all', workdir, settings(**changes), 'test')
    self.assertNotIn('\n', str(caught.exception))
    self.assertFalse(os.path.exists(os.path.join(workdir, 'samples')))
    self.assertFalse(os.path.exists(os.path.join(workdir, 'results.json')))

  def test_elbo_without_variance(self):
    workdir = os.path.join(self.create_tempdir().full_path, 'run')
    with self.assertRaisesRegex(
      UserError,
      r"the ELBO needs positive variances, but sampler 'ddim' has none at t = 999; raise "
      r'sampler.eta \(0\)',
    ):
      tasks.run(
        'train', workdir, settings(**{'train.loss': 'elbo', 'sampler.name': 'ddim'}), 'test'
      )

  def test_nothing_to_train(self):
    with self.assertRaisesRegex(
      UserError, "denoiser 'empirical' is exact and has nothing to train"
    ):
      tasks.run(
        'train', self.create_tempdir().full_path, settings(**{'denoiser.name': 'empirical'}), 'test'
      )


class TrainingTest(absltest.TestCase):
  def test_loss_that_is_not_finite(self):
    workdir = os.path.join(self.create_tempdir().full_path, 'run')
    tasks.run('train', workdir, settings(**{'train.steps': 2}), 'test')
    with self.assertRaisesRegex(
      UserError,
      r'loss is (nan|inf) between steps \d and \d; lower train.learning_rate .*; checkpoint 2 is '
      r'kept',
    ):
      tasks.run(
        'train', workdir, settings(**{'train.learning_rate': 1e38, 'train.steps': 8}), 'test'
      )
    self.assertEqual(os.listdir(os.path.join(workdir, 'checkpoints')), ['2'])

  def test_damaged_and_foreign_checkpoints(self):
    workdir = os.path.join(self.create_tempdir().full_path, 'run')
    tasks.run('train', workdir, settings(), 'test')
    step = os.path.join(workdir, 'checkpoints', '4')

    about = os.path.join(step, 'about', 'metadata')
    with open(about, encoding='utf-8') as file:
      text = file.read()
    with open(about, 'w', encoding='utf-8') as file:
      file.write(text.replace('gmm_diffusion/2', 'other/7'))
    with self.assertRaisesRegex(UserError, "has format 'other/7'; valid: 'gmm_diffusion/2'"):
      tasks.run('sample', workdir, settings(), 'test')
    with open(about, 'w', encoding='utf-8') as file:
      file.write('{')
    with self.assertRaisesRegex(UserError, "cannot read 'about' of checkpoint"):
      tasks.run('sample', workdir, settings(), 'test')
    with open(about, 'w', encoding='utf-8') as file:
      file.write(text)

    for folder, _, names in os.walk(os.path.join(step, 'net')):
      for name in names:
        with open(os.path.join(folder, name), 'r+b') as file:
          file.truncate(os.path.getsize(file.name) // 2)
    with self.assertRaisesRegex(
      UserError, "cannot read 'net' of checkpoint .*is not as it was written; it is damaged"
    ) as caught:
      tasks.run('sample', workdir, settings(), 'test')
    self.assertNotIn('\n', str(caught.exception))
    self.assertFalse(os.path.exists(os.path.join(workdir, 'results.json')))

  def test_damaged_samples_are_drawn_again(self):
    workdir = os.path.join(self.create_tempdir().full_path, 'run')
    config = settings(**{'denoiser.name': 'empirical', 'sample.count': 20})
    tasks.run('sample', workdir, config, 'test')
    path = cases.sample_set(workdir, 'ddim_gmm')
    with np.load(path) as file:
      before = file['arr_0']
    with open(path, 'wb') as file:
      file.write(b'damaged')
    tasks.run('sample', workdir, config, 'test')
    with np.load(path) as file:
      np.testing.assert_array_equal(file['arr_0'], before)

  def test_wrong_shape_of_the_checkpoint(self):
    workdir = os.path.join(self.create_tempdir().full_path, 'run')
    tasks.run('train', workdir, settings(), 'test')
    with self.assertRaisesRegex(UserError, 'holds the checkpoint of another network'):
      tasks.run('train', workdir, settings(**{'net.channels': 16}), 'test')
    with self.assertRaisesRegex(UserError, 'was made with prediction = eps, the config says v'):
      tasks.run('sample', workdir, settings(**{'denoiser.prediction': 'v'}), 'test')
    data = sources.digits(None)
    wide = data._replace(train=np.pad(data.train, ((0, 0), (2, 2), (2, 2), (0, 0))))
    with mock.patch.object(sources, 'load', lambda spec: wide):
      with self.assertRaisesRegex(
        UserError, r'was made with shape = \[8, 8, 1\], the config says \[12, 12, 1\]'
      ):
        tasks.run('sample', workdir, settings(), 'test')


if __name__ == '__main__':
  absltest.main()
