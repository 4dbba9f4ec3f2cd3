"""LSUN bedrooms at 256 x 256: released latent diffusion, ADM and DDPM."""

from configs import common


def get_config(arg=''):
  """Variants: ldm (default), adm or ddpm, the presets of common.py, runlocal (small, random
  weights)."""
  config, model, local = common.released(arg, 256, ('ldm', 'adm', 'ddpm'))
  if model == 'ldm':
    common.ldm(config)
    common.ldm_weights(config, 'lsun_bedrooms.zip')
  if model == 'adm':
    common.adm(config, 'lsun_bedroom.pt', labels='none')
  if model == 'ddpm':
    common.ddpm(config, 'ddpm-bedroom-256')
    config.net.weights.sha256 = 'd0c4c246baad16eb12629b6a4d458fecf210483b76796e6fa9cd1756b217966a'
  return common.shrink(config) if local else config
