"""Masked diffusion of images with few levels: digits with their 17, or MNIST in black and white.

Variants: digits (the default), mnist.
"""

from configs import common


def get_config(arg=''):
  """Variants: digits, mnist; runlocal (seconds for digits, within the hour for mnist)."""
  variants = common.arguments(arg, ('digits', 'mnist', 'runlocal'))
  if {'digits', 'mnist'} <= variants:
    raise ValueError('config arguments digits and mnist exclude each other')
  config = common.defaults()
  config.task = 'masked'
  config.net.labels = 'none'
  config.net.dropout = 0.2
  config.inverse.hidden = 'right'
  config.evaluate.count = 1000
  config.sample.update(count=100, batch=250)
  if 'mnist' in variants:
    config.data.update(name='tfds', dataset='mnist', path='~/tensorflow_datasets')
    config.masked.update(levels=2, compared=(784, 196, 49, 20, 10, 5, 2, 1), draws=8)
    config.net.update(
      channels=64, multipliers=(1.0, 2.0, 2.0), blocks=2, attention=(7,), head_channels=64
    )
    config.train.update(
      steps=20000, batch=128, learning_rate=3e-4, warmup=500, checkpoint_every=2000
    )
  else:
    config.data.name = 'digits'
    config.net.update(
      channels=32, multipliers=(1.0, 2.0), blocks=1, attention=(4,), head_channels=32
    )
    config.train.update(steps=3000, batch=64, learning_rate=2e-3, ema=0.995, checkpoint_every=500)
  if 'runlocal' in variants:
    config.net.update(channels=16, blocks=1, attention=())
    if 'mnist' in variants:
      config.train.update(
        steps=2000, batch=64, learning_rate=1e-3, warmup=100, checkpoint_every=500
      )
      config.masked.compared = (49, 10, 2)
    else:
      config.net.dropout = 0.0
      config.train.update(steps=60, checkpoint_every=50, log_every=10)
      config.masked.update(compared=(16, 4), draws=4)
    config.evaluate.count = 100
  return config
