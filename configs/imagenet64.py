"""ImageNet at 64 x 64: released ADM, on the cosine schedule."""

from configs import common


def get_config(arg=''):
  """Variants: adm (default) or adm_guided (classifier guidance), the presets of common.py, runlocal
  (small, random weights), train (a network of one's own, trained as the released one was)."""
  config, model, local = common.released(arg, 64, ('adm', 'adm_guided'), ('train',))
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
  if 'train' in arg.split(','):
    config.net.dropout = 0.1
    settings = dict(steps=540000, batch=2048, learning_rate=3e-4, warmup=0, ema=0.9999)
    return common.from_scratch(config, local, 'imagenet_resized/64x64', **settings)
  return common.shrink(config) if local else config
