"""Interactive segmentation: digit scenes without a download, or BSDS500 with
--config.data.path=."""

from configs import common


def get_config(arg=''):
  """Variants: photographs (a pretrained encoder, for data.path); runlocal (seconds; shows that
  everything runs, not that it segments well)."""
  variants = common.arguments(arg, ('photographs', 'runlocal'))
  config = common.defaults()
  config.task = 'segmentation'
  config.train.update(steps=800, batch=4, learning_rate=2e-3, ema=0.995, checkpoint_every=100)
  if 'photographs' in variants:
    config.train.update(
      steps=1500, batch=4, learning_rate=1.5e-3, decay='cosine', warmup=50, checkpoint_every=100
    )
    config.segmentation.update(
      encoder='efficientnet_lite2',
      channels=48,
      key_steps=1,
      corrections=2,
      crop=(128, 160),
      baseline=False,
    )
  if 'runlocal' in variants:
    config.train.update(steps=4, batch=4, warmup=2, checkpoint_every=4, log_every=2)
    config.segmentation.update(
      channels=8,
      blocks=1,
      heads=1,
      head_channels=8,
      key_steps=1,
      value_steps=1,
      crop=(48, 64),
      clicks=3,
      objects=4,
      batch=4,
      slots=4,
    )
  return config
