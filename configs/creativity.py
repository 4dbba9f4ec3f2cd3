"""Where images come from: CNNs with five final layers beside score machines, on data made for the
question."""

from configs import common


def get_config(arg=''):
  """Variants: digits (8 x 8 digits instead of the crafted set), runlocal (two CPU cores, within 15
  minutes)."""
  variants = common.arguments(arg, ('digits', 'runlocal'))
  config = common.defaults()
  config.task = 'creativity'
  config.data.name = 'digits' if 'digits' in variants else 'crafted'
  config.schedule.name = 'cosine'
  # 7 x 7 receptive field: on the crafted set no pixel of an object sees another object
  config.net.update(name='cnn', channels=64, blocks=1, labels='none')
  config.denoiser.prediction = 'v'
  config.train.update(steps=10000, batch=128, learning_rate=1e-3, ema=0.999, checkpoint_every=1000)
  config.sampler.update(name='ddim', steps=20, eta=0.0)
  config.sample.update(count=1000, batch=250)
  config.creativity.update(machines=('ELS', 'bbELS', 'LS', 'IS', 'consistent'), sizes=(3, 5, 7))
  if 'runlocal' in variants:
    config.net.channels = 32
    config.train.update(steps=2000, batch=32, learning_rate=2e-3, ema=0.99, checkpoint_every=500)
    config.sampler.steps = 10
    config.creativity.update(pairs=100, probes=8)
  return config
