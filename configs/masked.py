"""Masked diffusion of images with few levels: digits with their 17, or MNIST in black and white.

Variants: digits (the default), mnist: data, network and training are those of the config of that
name, with dropout, and twice the steps for digits.
"""

from configs import common, digits, mnist


def get_config(arg=''):
  """Variants: digits, mnist; runlocal, a small network (seconds for digits)."""
  variants = common.arguments(arg, ('digits', 'mnist', 'runlocal'))
  if {'digits', 'mnist'} <= variants:
    raise ValueError('config arguments digits and mnist exclude each other')
  local = 'runlocal' in variants
  of_mnist = 'mnist' in variants
  config = (mnist if of_mnist else digits).get_config('runlocal' if local else '')
  config.task = 'masked'
  config.net.labels = 'none'
  config.net.dropout = 0.2
  config.inverse.hidden = 'right'
  config.evaluate.count = 100 if local else 1000
  config.sample.batch = 250
  if of_mnist:
    compared = (49, 10, 2) if local else (784, 196, 49, 20, 10, 5, 2, 1)
    config.masked.update(levels=2, compared=compared, draws=8)
  elif local:
    config.net.dropout = 0.0
    config.masked.update(compared=(16, 4), draws=4)
  else:
    config.train.steps = 3000
  return config
