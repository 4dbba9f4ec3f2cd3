"""ELBO weights, and that training with them learns."""

import json
import os
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from configs import digits
from gmm_diffusion import files, parallel, specs, tasks
from gmm_diffusion.data import base, sources
from gmm_diffusion.engine import build, loss, trainer
from gmm_diffusion.errors import UserError
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

  @parameterized.parameters(
    'dpmpp', 'dpmpp_sde', 'deis', 'unipc', 'heun', 'bdia', 'time_shift', 'euler', 'ddim_noise'
  )
  def test_samplers_without_weights_are_refused(self, name):
    with self.assertRaisesRegex(
      UserError,
      f"'elbo' has no weights for sampler '{name}'; valid: ddpm, ddim, ddim_gmm, rfim, rfim_gmm",
    ):
      weights(name=name)

  def test_the_large_variance_is_refused(self):
    with self.assertRaisesRegex(UserError, "no weights for sampler.variance 'large'; valid: small"):
      weights(name='ddpm', variance='large')

  def test_the_step_to_clean_data_changes_nothing(self):
    weight = lambda last: weights(
      name='ddim_gmm_ortho', eta=1.0, scale=0.01, components=4, last_step=last
    )
    np.testing.assert_array_equal(weight('mean'), weight('source'))

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
    dict(net=dict(dropout=0.5)),
    dict(net=dict(name='cnn', final='gumbel', labels='none')),
  )
  def test_what_is_drawn_for_an_item_depends_on_its_position_alone(self, net):
    config = digits.get_config('runlocal')
    config.net.update(channels=8, multipliers=(1,), head_channels=8, **net)
    spec = specs.from_config(config)
    data = sources.load(spec.data)
    params = build.init(build.net(spec, data), data.shape, 0)
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)  # no layer starts from zero
    batch = (base.to_model(data.train[:4]), data.train_labels[:4], np.arange(4))
    loss_fn = jax.jit(loss.denoising_loss(spec, data))
    halves = [loss_fn(params, 3, [part[rows] for part in batch]) for rows in ([0, 1], [2, 3])]
    np.testing.assert_allclose(np.mean(halves), loss_fn(params, 3, batch), rtol=1e-5)

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


def fit(workdir, steps=4):
  """Trains one number to be zero."""
  spec = specs.Train(steps=steps, batch=2, log_every=2, checkpoint_every=2, warmup=0)
  optimiser = trainer.make_optimiser(spec)

  def fresh():
    params = {'x': jnp.ones(())}
    return trainer.State(jnp.zeros((), jnp.int32), params, params, optimiser.init(params))

  make = lambda: trainer.updater(spec, optimiser, lambda params, step, batch: params['x'] ** 2)
  trainer.fit(spec, fresh, make, lambda step, mine: np.zeros(2), {}, workdir)


class FitTest(absltest.TestCase):
  def test_a_curve_that_is_none(self):
    workdir = self.create_tempdir().full_path
    fit(workdir)
    for text in ('{}', '[3]', '[{"step": "2", "loss": 1}]', '[{"step": 2, "loss": null}]', '['):
      files.write_text(os.path.join(workdir, 'training.json'), text)
      with self.assertRaisesRegex(UserError, 'training.json.*; remove the file to start it anew'):
        fit(workdir, steps=6)
    os.remove(os.path.join(workdir, 'training.json'))
    fit(workdir, steps=6)

  def test_only_the_first_host_writes_what_hosts_share(self):
    first, other = self.create_tempdir().full_path, self.create_tempdir().full_path
    fit(first)
    self.assertContainsSubset({'training.json', 'training.png'}, os.listdir(first))
    with mock.patch.object(parallel, 'is_main', lambda: False):
      fit(other)
    self.assertNotIn('training.json', os.listdir(other))
    self.assertNotIn('training.png', os.listdir(other))


if __name__ == '__main__':
  absltest.main()
