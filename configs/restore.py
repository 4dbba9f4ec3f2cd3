"""Restoring images: 2 x super-resolution of the digits, or what config.inverse says.

Variants: digits (the default), mnist, folder (--config.data.path=DIR): data, network and training
are those of the config of that name. Pairs of images: restore.py:folder with
--config.restoration.pairs=DIR and --config.inverse.operator=.
"""

from configs import common, digits, folder, mnist


def get_config(arg=''):
  """Variants: digits, mnist, folder; runlocal, a small network (seconds for digits)."""
  variants = common.arguments(arg, ('digits', 'mnist', 'folder', 'runlocal'))
  if len(variants - {'runlocal'}) > 1:
    raise ValueError('config arguments digits, mnist and folder exclude each other')
  local = 'runlocal' if 'runlocal' in variants else ''
  if 'mnist' in variants:
    config = mnist.get_config(local)
  elif 'folder' in variants:
    config = folder.get_config(local)
    config.data.update(held_out=0.1, labels='none')
  else:
    config = digits.get_config(local)
  config.task = 'restoration'
  config.schedule.name = 'power'
  config.denoiser.prediction = 'x0'
  config.net.labels = 'none'
  factor = 4 if variants & {'mnist', 'folder'} else 2
  config.inverse.update(operator='box', factor=factor, noise=0.05, draws=4)
  config.sampler.update(name='ddim', grid='uniform')
  config.evaluate.update(samplers=('ddim',), count=1000)
  config.sample.batch = 250
  if local and factor == 2:
    config.evaluate.count = 100
    config.restoration.steps = (1, 3)
  return config
