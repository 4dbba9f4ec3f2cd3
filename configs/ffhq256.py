"""FFHQ at 256 x 256: released latent diffusion (the source's setting)."""

from configs import common


def get_config(arg=''):
  """Variants: ldm (default), the presets of common.py, runlocal (small, random weights)."""
  config, _, local = common.released(arg, 256, ('ldm',))
  common.ldm(config)
  common.ldm_weights(config, 'ffhq.zip')
  return common.shrink(config) if local else config
