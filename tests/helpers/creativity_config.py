"""Task creativity at its smallest size."""

from configs import creativity as config_file


def tiny(**options):
  config = config_file.get_config('runlocal')
  config.net.update(channels=8, blocks=1)
  config.train.update(steps=4, batch=4, log_every=2, checkpoint_every=4)
  config.sampler.steps = 6
  config.sample.update(count=4, batch=4)
  config.creativity.update(
    networks=('gumbel',), machines=('ELS', 'IS'), sizes=(3,), images=12, pairs=3, probes=2
  )
  config.creativity.update(options)
  return config
