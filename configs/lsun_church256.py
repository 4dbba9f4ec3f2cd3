"""LSUN churches at 256 x 256: released latent diffusion (over KL-f8) and DDPM."""

from configs import common


def get_config(arg=''):
  """Variants: ldm (default) or ddpm, the presets of common.py, runlocal (small, random weights)."""
  config, model, local = common.released(arg, 256, ('ldm', 'ddpm'))
  if model == 'ldm':
    common.ldm(
      config,
      channels=192,
      multipliers=(1.0, 2.0, 2.0, 4.0, 4.0),
      attention=(32, 16, 8, 4),
      head_channels=0,
      heads=8,
      scale_shift=True,
      resblock_updown=True,
    )
    config.schedule.beta_max = 0.0155
    common.kl_f8(config)
    common.ldm_weights(config, 'lsun_churches.zip')
  else:
    common.ddpm(config, 'ddpm-church-256')
    config.net.weights.sha256 = '3111c176c9848d8d9b91d6fb8e2aa2945c220845aced8f47efb44f9deadd412c'
  return common.shrink(config) if local else config
