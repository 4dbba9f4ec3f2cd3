"""MNIST, 28 x 28, from a prepared tensorflow-datasets folder: --config.data.path=..."""

from configs import common


def get_config(arg=''):
  """Variants: runlocal (a size for two CPU cores, well under an hour)."""
  variants = common.arguments(arg, ('runlocal',))
  config = common.defaults()
  config.data.update(name='tfds', dataset='mnist', path='~/tensorflow_datasets')
  config.net.update(
    channels=64, multipliers=(1.0, 2.0, 2.0), blocks=2, attention=(7,), head_channels=64
  )
  config.classifier.update(
    channels=32, multipliers=(1.0, 2.0, 2.0), blocks=1, attention=(7,), head_channels=32
  )
  config.train.update(steps=20000, batch=128, learning_rate=3e-4, warmup=500, checkpoint_every=2000)
  config.sampler.update(name='ddim_gmm', steps=10, scale=1.0)
  config.sample.update(count=100, batch=250)
  config.evaluate.update(samplers=common.SOURCE_VARIANTS, count=10000)
  if 'runlocal' in variants:
    config.net.update(channels=32, blocks=1)
    config.train.update(steps=2000, batch=64, learning_rate=1e-3, warmup=100, checkpoint_every=500)
    config.evaluate.count = 1000
  return config
