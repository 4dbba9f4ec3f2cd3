"""CIFAR-10: the released DDPM, or one's own."""

from configs import common


def get_config(arg=''):
  """Variants: ddpm (default), the presets of common.py, runlocal (small, random weights), train (a
  network of one's own, trained as the released one was)."""
  config, _, local = common.released(arg, 32, ('ddpm',), ('train',))
  common.ddpm(config, 'ddpm-cifar10-32', multipliers=(1.0, 2.0, 2.0, 2.0))
  config.net.weights.sha256 = '47776d2547f63c91883ce5658f0b04833302fcb47b99bfec450d7ee046395c0b'
  config.sample.update(count=64, batch=64)
  if 'train' in arg.split(','):
    config.net.dropout = 0.1
    settings = dict(steps=800000, batch=128, learning_rate=2e-4, warmup=5000, ema=0.9999)
    return common.from_scratch(config, local, 'cifar10', **settings)
  return common.shrink(config) if local else config
