"""Eight Gaussians in the plane with their exact denoiser: --mode=sample works at once."""

from configs import common


def get_config(arg=''):
  """Variants: runlocal (fewer samples)."""
  variants = common.arguments(arg, ('runlocal',))
  config = common.defaults()
  config.data.name = 'toy'
  config.denoiser.name = 'mixture'
  # A plane has room for at most two components. The scale is the largest that keeps the moments.
  config.sampler.update(name='ddim_gmm', steps=10, grid='log_snr', eta=1.0)
  config.sampler.update(components=2, scale=1.0, infeasible='shrink')
  config.sample.update(count=2000, batch=2000)
  config.evaluate.update(samplers=('ddim', 'ddim_gmm'), count=2000, features='identity')
  if 'runlocal' in variants:
    config.sample.count = 200
    config.evaluate.count = 200
  return config
