"""Handwritten digits, 8 x 8, embedded in scikit-learn: the default, minutes on two CPU cores."""

from configs import common


def get_config(arg=''):
  """Variants: runlocal (seconds; shows that everything runs, not that it samples well)."""
  variants = common.arguments(arg, ('runlocal',))
  config = common.defaults()
  config.data.name = 'digits'
  config.net.update(channels=32, multipliers=(1.0, 2.0), blocks=1, attention=(4,), head_channels=32)
  config.classifier.update(
    channels=32, multipliers=(1.0, 2.0), blocks=1, attention=(4,), head_channels=32
  )
  config.train.update(steps=1500, batch=64, learning_rate=2e-3, ema=0.995, checkpoint_every=500)
  config.sampler.update(name='ddim_gmm', steps=10, scale=0.3)
  config.sample.update(count=100, batch=250)
  config.evaluate.update(samplers=common.SOURCE_VARIANTS, count=1000)
  if 'runlocal' in variants:
    config.net.update(channels=16, attention=())
    config.classifier.update(channels=16, attention=())
    config.train.update(steps=60, checkpoint_every=50, log_every=10)
    config.finetune.update(steps=4, batch=32)
    config.distill.update(steps=4, batch=32, fake_steps=2)
    config.evaluate.update(samplers=('ddim', 'ddim_gmm'), count=100)
    config.sample.batch = 100
  return config
