"""ImageNet at 256 x 256: released models of ADM, latent diffusion and DiT."""

from configs import common

MODELS = ('adm', 'adm_guided', 'uncond', 'uncond_guided', 'ldm', 'dit')


def get_config(arg=''):
  """Variants: one of MODELS (adm by default), the presets of common.py, runlocal (small, random
  weights), train (a network of one's own, trained as the released one was: adm, uncond, ldm, dit).

  adm: class-conditional ADM. uncond: ADM without labels. adm_guided, uncond_guided: with classifier
  guidance. ldm: LDM-4 (cin256-v2) with classifier-free guidance 2.5. dit: DiT-XL/2 with guidance 4
  on three channels.
  """
  config, model, local = common.released(arg, 256, MODELS, ('train',))
  config.data.update(dataset='imagenet', classes=1000)
  if model.startswith('adm'):
    common.adm(config, '256x256_diffusion.pt')
  if model.startswith('uncond'):
    common.adm(config, '256x256_diffusion_uncond.pt', labels='none')
    config.net.weights.update(
      size=2211383297, sha256='a37c32fffd316cd494cf3f35b339936debdc1576dad13fe57c42399a5dbc78b1'
    )
  if model == 'uncond':
    config.data.classes = 0
  if model.endswith('_guided'):
    common.adm_classifier(
      config, '256x256_classifier.pt', 10.0 if model == 'uncond_guided' else 1.0
    )
  if model == 'ldm':
    common.ldm(
      config,
      channels=192,
      multipliers=(1.0, 2.0, 3.0, 5.0),
      head_channels=0,
      heads=1,
      labels='null',
      context_dim=512,
    )
    common.ldm_weights(config, 'nitro/cin/model.ckpt')
    config.denoiser.guidance = 2.5
  if model == 'dit':
    config.net.update(
      name='dit',
      channels=1152,
      blocks=28,
      heads=16,
      patch=2,
      learn_sigma=True,
      labels='null',
    )
    config.net.weights.update(
      format='dit',
      url='https://dl.fbaipublicfiles.com/DiT/models/DiT-XL-2-256x256.pt',
      size=2700611775,
      sha256='9ec1876e4c03471bca126663a30e2d1b20610b6d2f87850a39a36f25cc685521',
    )
    common.kl_f8(config)
    common.kl_f8_weights(config)
    config.denoiser.update(clip=False, guidance=4.0, guidance_channels=3)
  if 'train' in arg.split(','):
    own = {
      'ldm': dict(steps=178000, batch=1200, optimiser='adamw'),
      'dit': dict(steps=400000, batch=256, warmup=0),
    }
    settings = own.get(model, dict(steps=1980000, batch=256, warmup=0))
    return common.from_scratch(
      config, local, 'imagenet2012', learning_rate=1e-4, ema=0.9999, **settings
    )
  return common.shrink(config) if local else config
