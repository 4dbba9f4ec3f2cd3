"""ELBO weights, and that training with them learns."""

import json
import os

import numpy as np
from absl.testing import absltest, parameterized

from configs import digits
from gmm_diffusion import specs, tasks
from gmm_diffusion.engine import loss
from gmm_diffusion.maths import schedules

T = 100
BETAS = np.linspace(1e-3, 0.1, T)


def weights(**sampler):
  process = schedules.from_betas(BETAS)
  return loss.elbo_weights(
    specs.Sampler(**sampler), process, process.at(process.training_times), 16
  )


class ElboTest(parameterized.TestCase):
  def test_ddpm_weights_are_the_known_ones(self):
    # DDPM eq. 12 without its constant beta^2 / alpha: with eq. 40 the weight is (1 - abar) / (2
    # abar beta~)
    abar = np.cumprod(1 - BETAS)
    before = np.append(1.0, abar[:-1])
    variance = BETAS * (1 - before) / (1 - abar)
    variance[0] = variance[1]  # the last step has none, and takes the weight of the next
    expected = (1 - abar) / (2 * abar * variance)
    np.testing.assert_allclose(weights(name='ddpm'), expected / expected.mean(), rtol=1e-6)
    np.testing.assert_allclose(weights(name='ddim', eta=1.0), expected / expected.mean(), rtol=1e-6)

  def test_mixture_without_offsets_is_ddim(self):
    np.testing.assert_allclose(
      weights(name='ddim_gmm', eta=0.5, scale=0.0, components=4),
      weights(name='ddim', eta=0.5),
      rtol=1e-5,
    )

  def test_offsets_raise_the_weight_where_variance_is_small(self):
    plain, mixed = (
      weights(name='ddim', eta=1.0),
      weights(name='ddim_gmm', eta=1.0, scale=0.02, components=4),
    )
    ratio = mixed / plain
    self.assertGreater(ratio[1], ratio[-1])  # the smallest variances are at small t


class LossTest(parameterized.TestCase):
  @parameterized.parameters(
    {'train.loss': 'simple', 'denoiser.prediction': 'v'},
    {'train.loss': 'elbo', 'sampler.name': 'ddpm', 'denoiser.prediction': 'eps'},
    {'train.loss': 'simple', 'schedule.name': 'rectified_flow', 'denoiser.prediction': 'velocity'},
    {
      'train.loss': 'simple',
      'schedule.name': 'edm',
      'denoiser.prediction': 'x0',
      'net.learn_sigma': True,
    },
  )
  def test_loss_falls(self, **changes):
    config = digits.get_config('runlocal')
    config.update(
      net=dict(channels=8, multipliers=(1,), head_channels=8),
      train=dict(steps=150, batch=32, warmup=10, learning_rate=3e-3, log_every=25),
    )
    config.update_from_flattened_dict(changes)
    workdir = self.create_tempdir().full_path
    tasks.run('train', workdir, config, 'test')
    with open(os.path.join(workdir, 'training.json'), encoding='utf-8') as file:
      losses = [row['loss'] for row in json.load(file)]
    self.assertLess(losses[-1], 0.8 * losses[0])


if __name__ == '__main__':
  absltest.main()
