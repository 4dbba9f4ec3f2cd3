"""CelebA-HQ at 256 x 256: released latent diffusion (the source's setting) and DDPM."""

from configs import common

FILE = common.HUB + 'CompVis/ldm-celebahq-256/resolve/main/{}/diffusion_pytorch_model.bin'


def get_config(arg=''):
  """Variants: ldm (default; CompVis file), ldm_diffusers (the same model in diffusers form), ddpm,
  the presets of common.py, runlocal."""
  config, model, local = common.released(arg, 256, ('ldm', 'ldm_diffusers', 'ddpm'))
  if model == 'ddpm':
    common.ddpm(config, 'ddpm-celebahq-256')
    config.net.weights.update(
      size=454853117, sha256='efff89712093ad060ce99d9b461bbe542b49d8dd4ce30f23fe5761dca292361d'
    )
  else:
    common.ldm(config)
    common.ldm_weights(config, 'celeba.zip')
  if model == 'ldm_diffusers':
    config.net.weights.update(
      format='diffusers',
      url=FILE.format('unet'),
      sha256='33cb6f7c80ab207d68046b1594332ab34d64db44c10829e351c0ab17a28187ae',
    )
    config.autoencoder.weights.update(format='diffusers', url=FILE.format('vqvae'))
  return common.shrink(config) if local else config
