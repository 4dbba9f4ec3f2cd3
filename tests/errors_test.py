"""Bad input: one line that names the value and the valid ones, non-zero exit, nothing
half-written."""

import errno
import os
import signal
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from configs import digits, toy
from gmm_diffusion import options, parallel, specs, tasks
from gmm_diffusion.data import sources
from gmm_diffusion.errors import UserError
from gmm_diffusion.tasks import effects
from helpers import cases, cli


def settings(**changes):
  config = digits.get_config('runlocal')
  config.update(
    net=dict(channels=8, multipliers=(1,), head_channels=8),
    train=dict(steps=4, batch=16, warmup=0, checkpoint_every=2, log_every=1),
  )
  config.update_from_flattened_dict(changes)
  return config


def typed(*words):
  """Parses and runs a command line in this process: (exit status, stdout); nothing is sampled."""
  nothing = {'sample': lambda *_: None, 'all': lambda *_: None}
  with mock.patch.dict(tasks.TASKS['diffusion'], nothing):
    return cli.typed(*words)[:2]


class TypedTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.workdir = os.path.join(self.create_tempdir().full_path, 'run')

  def test_who_started_it_is_said(self):
    words = '--config=configs/digits.py', '--mode=sample', f'--workdir={self.workdir}'
    with mock.patch.object(parallel, 'start', lambda: 'Slurm'):
      self.assertRegex(typed(*words)[1], r'^joined by Slurm: \d+ x cpu')
    self.assertNotIn('joined', typed(*words)[1])

  def assertRefused(self, words, pattern):
    code, out = typed(*words)
    self.assertIsInstance(code, str, f'{words}: not refused')
    self.assertRegex(code, '^error: ' + pattern)
    self.assertTrue(code.isprintable() and len(code) < 1520, code)
    self.assertEqual(out, '')
    self.assertFalse(os.path.exists(self.workdir))

  def with_config(self, config, mode, *changes):
    changes = [f'--config.{change}' for change in changes]
    return f'--config={config}', f'--mode={mode}', f'--workdir={self.workdir}', *changes

  def test_what_is_no_mistake_is_one_line_too(self):
    words = self.with_config('toy', 'sample')
    for error, wanted in (
      (KeyboardInterrupt(), (130, '')),
      (
        OSError(errno.ENOSPC, 'No space left on device', 'a.png'),
        ('error: cannot write a.png: No space left on device; free space', ''),
      ),
    ):
      with mock.patch.object(tasks, 'run', mock.Mock(side_effect=error)):
        self.assertEqual(typed(*words), wanted)
    with (
      mock.patch.object(tasks, 'run', mock.Mock(side_effect=OSError(errno.EIO, 'broken'))),
      self.assertRaises(OSError),
    ):
      typed(*words)

  def test_others_that_are_not_found(self):
    refuse = mock.Mock(side_effect=UserError('cannot join'))
    with mock.patch.object(parallel, 'start', refuse):
      self.assertRefused(self.with_config('toy', 'sample'), 'cannot join')

  def test_sigterm_ends_with_one_line(self):
    before = signal.getsignal(signal.SIGTERM)
    come = lambda *_: os.kill(os.getpid(), signal.SIGTERM)
    with mock.patch.object(sources, 'load', come):  # while data are read
      code, _, error = cli.typed(*self.with_config('digits', 'train'))
    self.assertEqual(
      (code, error),
      (75, 'error: stopped by SIGTERM; the same command goes on from what was kept\n'),
    )
    self.assertEqual(signal.getsignal(signal.SIGTERM), before)

  def test_a_good_one_runs(self):
    for config in ('toy', 'toy.py', 'configs/toy.py', 'toy.py:runlocal'):
      words = self.with_config(config, 'sample', 'sampler.steps=5', 'seed=4294967295')
      self.assertEqual(typed(*words), (0, ''))
    words = '--config', 'toy', '--mode', 'sample', '--workdir', self.workdir
    self.assertEqual(typed(*words, '--config.sampler.steps', '5'), (0, ''))

  @parameterized.parameters(
    'sampler..steps', 'seed.', '.x', '', 'evaluate.samplers[0]', 'sampler.steps.x', 'SEED', 'seed ',
    'sampler.__class__', 'items', '0', '\udcff', 'a' * 5000, '.' * 100, 'net.weights.path.',
  )  # fmt: skip
  def test_keys(self, key):
    for form in (f'--config.{key}=5', f'--config.{key}', f'--noconfig.{key}'):
      words = (*self.with_config('toy', 'sample'), form)
      self.assertRefused(words, 'unknown config key .*; valid: ')

  def test_sections(self):
    for change in ('sampler={}', 'net.weights=x'):
      words = self.with_config('toy', 'sample', change)
      self.assertRefused(words, 'config key .* is a section; set its keys one by one, such as ')

  @parameterized.parameters(
    *(key for key, kind, _ in options.leaves(specs.Spec) if kind in (float, tuple[float, ...]))
  )
  def test_numbers_that_are_not_finite(self, key):
    kind = dict((key, kind) for key, kind, _ in options.leaves(specs.Spec))[key]
    for value in ('nan', 'inf', '-inf', '1e999') if kind is float else ('(1e999,)', '(-1e999,)'):
      words = self.with_config('digits', 'sample', f'{key}={value}')
      self.assertRefused(words, f'{key} must be a finite number, got ')

  @parameterized.parameters(
    *(key for key, kind, _ in options.leaves(specs.Spec) if kind in (int, tuple[int, ...]))
  )
  def test_whole_numbers_without_bound(self, key):
    kind = dict((key, kind) for key, kind, _ in options.leaves(specs.Spec))[key]
    for value in (2**63, -(2**63), 10**30):
      words = self.with_config(
        'digits', 'sample', f'{key}={value}' if kind is int else f'{key}=({value},)'
      )
      self.assertRefused(words, rf'{key} must be in \[\d+, \w+\], got -?\d+')

  @parameterized.parameters(
    ('sample.count', 2**31), ('sample.batch', 2**31), ('evaluate.count', 2**31), ('seed', 2**32),
    ('train.batch', 2**31), ('train.steps', 2**31), ('autoencoder.batch', 2**31), ('seed', -1),
    ('sampler.steps', 2**31), ('sampler.offsets_seed', 2**32),
  )  # fmt: skip
  def test_counts_beyond_any_use(self, key, value):
    words = self.with_config('digits', 'sample', f'{key}={value}')
    self.assertRefused(words, rf'{key} must be in \[.*\], got {value}$')

  @parameterized.parameters('9' * 5000, '-' + '9' * 5000, '1' * 4000, '(' * 3000, '[[', 'x', '')
  def test_what_is_no_number(self, value):
    for key in ('seed', 'sampler.eta', 'net.multipliers', 'net.channels', 'evaluate.store'):
      self.assertRefused(self.with_config('digits', 'sample', f'{key}={value}'), '.')

  @parameterized.parameters('\udcff', 'a\nb', '\x1b[31m', '\u202e', '\0')
  def test_text_that_cannot_be_printed(self, value):
    for key in ('data.path', 'sample.label', 'sampler.name'):
      words = self.with_config('digits', 'sample', f'{key}={value}')
      self.assertRefused(words, f'{key} must be printable text, got ')
    words = '--config=toy', '--mode=sample', f'--workdir={value}'
    self.assertRefused(words, '--workdir must be printable text, got ')
    self.assertRefused(self.with_config(value, 'sample'), 'no config ')

  @parameterized.parameters(
    ([], '--config is missing'),
    (['--config=toy', '--mode=sample'], '--workdir is missing; --help says what there is$'),
    (['--config=toy', '--workdir=x'], '--mode is missing'),
    (['--config=toy', '--mode=smaple', '--workdir=x'], '.*smaple.*train|fetch'),
    (['--config=toy', '--mode=sample', '--workdir=x', 'y'], "unexpected argument 'y'"),
    (['--config=toy', '--mode=sample', '--workdir=x', '--foo=1'], '.*Unknown command line flag'),
    (['--config=toy', '--flagfile=/nowhere/x'], '.*Unable to open flagfile'),
    (['--config=toy', '--flagfile=' + 'x' * 5000], '.*Unable to open flagfile'),
    (['--config.seed=1', '--config=toy', '--mode=sample', '--workdir=x'], '.*before a value'),
    (['--config=nothing.py'], "no config 'nothing.py': there is no such file, .* digits.py"),
    (['--config=configs/nothing.py'], "no config 'configs/nothing.py'"),
    (['--config=common'], "no config 'common'"),
    (['--config=/'], "no config '/'"),
    (['--config='], "no config ''"),
    (['--config=toy:runlocl'], "unknown config argument 'runlocl'; valid: runlocal$"),
  )  # fmt: skip
  def test_flags(self, words, message):
    self.assertRefused(words, message)

  def test_a_config_that_is_no_config(self):
    for text in ('x = 1', 'raise KeyError(3)', 'def get_config(arg=""):\n  return 1 / 0', '('):
      path = self.create_tempfile('own.py', text).full_path
      self.assertRefused(self.with_config(path, 'sample'), '.')

  def test_help(self):
    for flag in ('--help', '--helpfull', '-h'):
      code, out = typed(flag)
      self.assertIn(code, (0, None))
      self.assertIn(
        'train, finetune, distill, quantise, fetch, convert, sample, tune, posterior, evaluate, ',
        out,
      )
      self.assertIn('--help with a --config lists every --config.KEY', out)
      code, out = typed('--config=digits.py:runlocal', flag)
      self.assertIn(code, (0, None))
      for key, _, _ in options.leaves(specs.Spec):
        self.assertRegex(out, rf'--config\.{key}(=|\n)')
      self.assertRegex(out, r"--config.denoiser.name='network'\n +.*'ELS', 'bbELS', 'consistent'")
      self.assertIn('--config.sampler.scale=0.3\n      mixture: length of the offsets', out)
      self.assertIn(
        '--config.train.steps=60\n      optimiser updates (int, in [1, 100000000])', out
      )


class EffectTest(parameterized.TestCase):
  """A key that was typed must have an effect."""

  def assertEffect(self, mode, changes, given, reason):
    config = settings(**changes)
    config.update_from_flattened_dict(given)
    workdir = os.path.join(self.create_tempdir().full_path, 'run')
    with mock.patch.dict(tasks.TASKS['diffusion'], {mode: lambda *_: None}):
      if not reason:
        tasks.run(mode, workdir, config, 'test', tuple(given))
        return
      with self.assertRaisesRegex(UserError, f'^config key .* has no effect: {reason}') as caught:
        tasks.run(mode, workdir, config, 'test', tuple(given))
      self.assertNotIn('\n', str(caught.exception))
      self.assertFalse(os.path.exists(workdir))
      with mock.patch.dict(tasks.TASKS['diffusion'], {mode: lambda *_: None}):
        tasks.run(mode, workdir, config, 'test')  # what a config says is no error

  @parameterized.parameters(
    ({'sampler.name': 'ddim'}, {'sampler.order': 3}, r'.*\(ddim\) takes it'),
    ({'sampler.name': 'unipc'}, {'sampler.order': 3}, ''),
    ({'sampler.name': 'ddim_gmm_ortho'}, {'sampler.offsets': 'rand'}, 'none of the samplers'),
    ({'sampler.name': 'ddim_gmm_ortho'}, {'sampler.components': 4}, ''),
    ({'sampler.times': (9.0, 1.0)}, {'sampler.steps': 3}, 'sampler.times says which'),
    ({}, {'sampler.rho': 3.0}, "sampler.grid 'trailing' has none; it belongs to 'karras'"),
    ({'sampler.grid': 'karras'}, {'sampler.rho': 3.0}, ''),
    ({'sampler.name': 'heun'}, {'sampler.churn_min': 3.0}, 'sampler.churn is 0'),
    ({'sampler.name': 'unipc'}, {'sampler.compensate': 1}, 'sampler.ratios are 1'),
    (
      {'sampler.name': 'unipc', 'sampler.end': 'first'},
      {'sampler.extrapolate': True},
      "sampler.end is 'first'",
    ),
    (
      {'sampler.name': 'unipc', 'sampler.ratios': (1.0, 1.0, 1.4)},
      {'sampler.extrapolate': True},
      'the last of sampler.ratios, which is not 1',
    ),
    ({'sampler.name': 'unipc'}, {'sampler.extrapolate': True}, ''),
    ({'sampler.name': 'unipc'}, {'sampler.extrapolate': False}, ''),
    ({}, {'evaluate.count': 10}, '--mode=sample reads sample.count'),
    ({}, {'evaluate.samplers': ('ddim',)}, '--mode=sample reads sampler.name'),
    ({}, {'data.path': '/my/photos'}, "data.name 'digits' reads data.name, "),
    ({'schedule.name': 'cosine'}, {'schedule.beta_min': 0.1}, "schedule 'cosine' takes"),
    ({}, {'schedule.beta_min': 0.1}, ''),
    ({}, {'net.patch': 2}, "net 'unet' takes net.name, "),
    ({}, {'net.heads': 2}, 'net.head_channels 8 says how many heads there are'),
    ({'net.head_channels': 0}, {'net.heads': 2}, ''),
    ({}, {'net.weights.path': '/my.pt'}, 'the weights are trained here'),
    ({'net.weights.format': 'random'}, {'train.steps': 2}, 'the weights of the network are not'),
    ({}, {'train.steps': 2}, ''),
    ({'net.labels': 'plain'}, {'train.label_dropout': 0.2}, "net.labels 'plain' knows no"),
    ({}, {'autoencoder.channels': 8}, 'there is no autoencoder'),
    ({'autoencoder.name': 'kl'}, {'autoencoder.codes': 8}, "autoencoder.name 'kl' has no codes"),
    ({}, {'classifier.channels': 8}, 'classifier.scale is 0'),
    ({}, {'denoiser.size': 3}, "denoiser 'network' takes denoiser.name"),
    ({}, {'denoiser.guidance_channels': 1}, 'denoiser.guidance is 1'),
    ({'denoiser.name': 'empirical'}, {'denoiser.guidance': 2.0}, "denoiser 'empirical' takes"),
    ({'denoiser.name': 'empirical'}, {'denoiser.prediction': 'v'}, "denoiser 'empirical' takes"),
    ({'denoiser.name': 'empirical'}, {'net.channels': 4}, "denoiser 'empirical' is exact"),
    ({'denoiser.name': 'empirical'}, {'train.steps': 4}, "denoiser 'empirical' is exact"),
    ({'denoiser.name': 'empirical'}, {'sample.label': '3'}, "denoiser 'empirical' knows no"),
    ({'denoiser.name': 'bbELS'}, {'denoiser.size': 5}, ''),
    ({'denoiser.name': 'bbELS'}, {'denoiser.padding': 'circular'}, "denoiser 'bbELS' takes"),
    ({'denoiser.name': 'IS'}, {'denoiser.size': 5}, "denoiser 'IS' takes"),
    ({}, {'train.gamma': 2.0}, 'it belongs to train.loss min_snr or p2, which is simple'),
    ({'train.loss': 'p2'}, {'train.gamma': 2.0}, ''),
    ({}, {'train.decay_from': 9}, 'it belongs to train.decay rsqrt, which is constant'),
    ({'train.ema_half_life': 9.0}, {'train.ema': 0.9}, 'train.ema_half_life says how long'),
    ({}, {'evaluate.inception': 'x'}, "evaluate.features is 'classifier'"),
    ({'evaluate.reference': 'x'}, {'evaluate.reference_count': 9}, 'evaluate.reference is'),
    ({}, {'segmentation.clicks': 3}, "task 'diffusion' does not read the section 'segmentation'"),
    ({}, {'creativity.pairs': 3}, "task 'diffusion' does not read the section 'creativity'"),
  )  # fmt: skip
  def test_sample(self, changes, given, reason):
    self.assertEffect('sample', changes, given, reason)

  @parameterized.parameters(
    ({'evaluate.samplers': ('ddim', 'unipc')}, {'sampler.order': 3}, ''),
    ({'evaluate.samplers': ('ddim',)}, {'sampler.order': 3}, r'none of the samplers of this run'),
    ({}, {'sampler.name': 'ddim'}, '--mode=all reads evaluate.samplers'),
    ({'train.loss': 'elbo'}, {'sampler.name': 'ddim'}, ''),
    ({}, {'sample.count': 10}, '--mode=all reads evaluate.count'),
    ({'evaluate.reference': 'tfds:mnist:test'}, {'data.path': '/x'}, ''),
    ({'evaluate.images': '/x'}, {'evaluate.samplers': ('ddim',)}, 'evaluate.images is'),
  )  # fmt: skip
  def test_all(self, changes, given, reason):
    self.assertEffect('all', changes, given, reason)

  def test_every_name_is_known(self):
    choices = {key: field.metadata['valid'] for key, _, field in options.leaves(specs.Spec)}
    self.assertCountEqual(effects.DATA, choices['data.name'])
    self.assertCountEqual(effects.SECTIONS, choices['task'])
    sections = {key.split('.')[0] for key in choices} - {'task', 'seed'}
    self.assertEqual(set().union(*effects.SECTIONS.values()), sections)

  def test_creativity_compares_networks(self):
    with self.assertRaisesRegex(UserError, "denoiser.name must be network, got 'ELS'"):
      specs.from_config({'task': 'creativity', 'denoiser': {'name': 'ELS'}})

  def test_clip_of_points(self):
    with self.assertRaisesRegex(UserError, 'points are not clipped'):
      tasks.run('sample', '/unused', toy.get_config(), 'test', ('denoiser.clip',))


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
    result = cli.here('digits.py', 'sample', '/tmp/unused', '--config.sampler.stepz=5')
    self.assertRefused(
      result, r"^error: unknown config key 'sampler.stepz'; valid: sampler.name, sampler.steps"
    )

  def test_unwritable_workdir(self):
    file = self.create_tempfile('file').full_path
    self.assertRefused(
      cli.here('digits.py:runlocal', 'all', os.path.join(file, 'run')),
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
      "data 'digits' has no known mixture, which denoiser 'mixture' needs; valid denoisers here: "
      'network, empirical, IS',
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
    ({'net.multipliers': ()}, r'net.multipliers must have at least one entry, got \(\)'),
    ({'denoiser.prediction': 'y'}, "unknown denoiser.prediction 'y'; valid: eps"),
    ({'net.name': 'vit'}, "unknown net 'vit'; valid: unet"),
    ({'net.multipliers': (1, 1, 1, 1, 1)}, 'images of 8 x 8 cannot be halved 4 times'),
    (
      {'data.name': 'imagenet'},
      "unknown data.name 'imagenet'; valid: digits, toy, folder, npz, tfds, crafted, none",
    ),
    ({'denoiser.name': 'ELS', 'denoiser.size': 4}, 'patch size must be odd'),
    ({'denoiser.name': 'EL'}, "unknown denoiser 'EL'; valid: network, mixture, empirical, IS"),
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
