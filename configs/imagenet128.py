"""ImageNet at 128 x 128: released ADM."""

from configs import common


def get_config(arg=''):
  """Variants: adm (default) or adm_guided (classifier guidance), the presets of common.py,
  runlocal."""
  config, model, local = common.released(arg, 128, ('adm', 'adm_guided'))
  config.data.update(dataset='imagenet', classes=1000)
  common.adm(
    config, '128x128_diffusion.pt', multipliers=(1.0, 1.0, 2.0, 3.0, 4.0), head_channels=0, heads=4
  )
  if model == 'adm_guided':
    common.adm_classifier(
      config, '128x128_classifier.pt', 0.5, multipliers=(1.0, 1.0, 2.0, 3.0, 4.0)
    )
  return common.shrink(config) if local else config
