"""ImageNet at 64 x 64: released ADM, on the cosine schedule."""

from configs import common


def get_config(arg=''):
  """Variants: adm (default) or adm_guided (classifier guidance), the presets of common.py,
  runlocal."""
  config, model, local = common.pretrained(arg, 64, ('adm', 'adm_guided'))
  config.data.update(dataset='imagenet', classes=1000)
  config.schedule.name = 'cosine'
  common.adm(
    config,
    '64x64_diffusion.pt',
    channels=192,
    multipliers=(1.0, 2.0, 3.0, 4.0),
    blocks=3,
    legacy_attention=False,
  )
  if model == 'adm_guided':
    common.adm_classifier(
      config, '64x64_classifier.pt', 1.0, multipliers=(1.0, 2.0, 3.0, 4.0), blocks=4
    )
  return common.shrink(config) if local else config
