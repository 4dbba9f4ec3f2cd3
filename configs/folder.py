"""Any folder of images, at 32 x 32, or at 256 x 256 in latents: --config.data.path=DIR.

Classes are the folders in DIR, where there are any. Other sizes need --config.data.size and other
net.multipliers.
"""

from configs import common


def get_config(arg=''):
  """Variants: runlocal (a size for two CPU cores, tens of minutes), latents (in the latents of a
  released autoencoder, 256 x 256).

  The network has 8 million parameters. Dropout and flips put off the time when it knows a small set
  by heart; the velocity, unlike the noise, says something also where nearly all is noise.
  """
  variants = common.arguments(arg, ('runlocal', 'latents'))
  config = common.defaults()
  config.data.update(name='folder', size=32, flip=True)
  config.schedule.name = 'cosine'
  config.denoiser.prediction = 'v'
  config.net.update(
    channels=64, multipliers=(1.0, 2.0, 2.0), blocks=2, attention=(16, 8), head_channels=64
  )
  config.net.dropout = 0.1
  config.classifier.update(
    channels=32, multipliers=(1.0, 2.0, 2.0), blocks=1, attention=(8,), head_channels=32
  )
  config.train.update(
    steps=10000, batch=128, learning_rate=4e-4, warmup=500, ema=0.999, checkpoint_every=1000
  )
  config.sampler.update(name='ddim_gmm', steps=10, scale=0.3)
  config.sample.update(count=100, batch=250)
  config.evaluate.update(samplers=common.SOURCE_VARIANTS, count=1000, features='rotation')
  if 'runlocal' in variants:
    config.net.update(channels=16, blocks=1, attention=(8,), head_channels=16, dropout=0.0)
    config.train.update(
      steps=1000, batch=32, learning_rate=2e-3, warmup=100, ema=0.995, checkpoint_every=100
    )
    config.evaluate.update(samplers=('ddim', 'ddim_gmm'), count=300)
  if 'latents' in variants:
    common.kl_f8(config)
    common.kl_f8_weights(config)
    config.data.size, config.denoiser.clip = 256, False
    if 'runlocal' in variants:
      common.shrink(config)
      config.net.weights.format, config.autoencoder.scale = '', 0.0
    else:
      config.net.update(channels=128, multipliers=(1.0, 2.0, 3.0, 4.0), blocks=2)
      config.train.update(steps=50000, batch=64, learning_rate=1e-4, ema=0.9999)
      config.data.stream = True
  return config
