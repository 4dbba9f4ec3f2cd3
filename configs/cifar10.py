"""CIFAR-10: the released DDPM."""

from configs import common


def get_config(arg=''):
  """Variants: ddpm (default), the presets of common.py, runlocal (small, random weights)."""
  config, _, local = common.pretrained(arg, 32, ('ddpm',))
  common.ddpm(config, 'ddpm-cifar10-32', multipliers=(1.0, 2.0, 2.0, 2.0))
  config.net.weights.sha256 = '47776d2547f63c91883ce5658f0b04833302fcb47b99bfec450d7ee046395c0b'
  config.sample.update(count=64, batch=64)
  return common.shrink(config) if local else config
