"""Restoring images: 2 x super-resolution of the digits, or what config.inverse says.

Variants: digits (the default), mnist, folder (--config.data.path=DIR). Pairs of images:
restore.py:folder with --config.restoration.pairs=DIR and --config.inverse.operator=.
"""

from configs import common


def get_config(arg=''):
  """Variants: digits, mnist, folder; runlocal (seconds for digits, within the hour for others)."""
  variants = common.arguments(arg, ('digits', 'mnist', 'folder', 'runlocal'))
  chosen = [name for name in ('mnist', 'folder') if name in variants] or ['digits']
  if len(chosen) > 1 or ('digits' in variants and chosen != ['digits']):
    raise ValueError('config arguments digits, mnist and folder exclude each other')
  config = common.defaults()
  config.task = 'restoration'
  config.schedule.name = 'power'
  config.denoiser.prediction = 'x0'
  config.net.labels = 'none'
  config.inverse.update(operator='box', factor=2, noise=0.05, draws=4)
  config.sampler.grid = 'uniform'
  config.evaluate.samplers = ('ddim',)
  config.evaluate.count = 1000
  config.sample.update(count=100, batch=250)
  {'digits': _digits, 'mnist': _mnist, 'folder': _folder}[chosen[0]](config, 'runlocal' in variants)
  return config


def _digits(config, local):
  config.data.name = 'digits'
  config.net.update(channels=32, multipliers=(1.0, 2.0), blocks=1, attention=(4,), head_channels=32)
  config.train.update(steps=1500, batch=64, learning_rate=2e-3, ema=0.995, checkpoint_every=500)
  if local:
    config.net.update(channels=16, attention=())
    config.train.update(steps=60, checkpoint_every=50, log_every=10)
    config.evaluate.count = 100
    config.restoration.steps = (1, 3)


def _mnist(config, local):
  config.data.update(name='tfds', dataset='mnist', path='~/tensorflow_datasets')
  config.inverse.factor = 4
  config.net.update(
    channels=64, multipliers=(1.0, 2.0, 2.0), blocks=2, attention=(7,), head_channels=64
  )
  config.train.update(steps=20000, batch=128, learning_rate=3e-4, warmup=500, checkpoint_every=2000)
  if local:
    config.net.update(channels=32, blocks=1)
    config.train.update(steps=2000, batch=64, learning_rate=1e-3, warmup=100, checkpoint_every=500)


def _folder(config, local):
  config.data.update(name='folder', size=32, flip=True, held_out=0.1, labels='none')
  config.inverse.factor = 4
  config.evaluate.features = 'rotation'
  config.net.update(
    channels=64, multipliers=(1.0, 2.0, 2.0), blocks=2, attention=(16, 8), head_channels=64
  )
  config.net.dropout = 0.1
  config.train.update(
    steps=10000, batch=128, learning_rate=4e-4, warmup=500, ema=0.999, checkpoint_every=1000
  )
  if local:
    config.net.update(channels=16, blocks=1, attention=(8,), head_channels=16, dropout=0.0)
    config.train.update(
      steps=1000, batch=32, learning_rate=2e-3, warmup=100, ema=0.995, checkpoint_every=100
    )
