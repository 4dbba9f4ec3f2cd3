"""Released models as denoisers: their settings, latents, guidance and half precision."""

import contextlib
import importlib
import io

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from gmm_diffusion import specs, tasks
from gmm_diffusion.engine import build, drawing
from gmm_diffusion.maths import schedules
from helpers import cases
from helpers.released_files import config_of, spec_of


class LatentTest(absltest.TestCase):
  def test_latents_are_scaled_back_before_decoding(self):
    spec, data = spec_of(config_of('imagenet256', 'dit'))  # KL: its decoder is continuous
    weights = build.random_weights(build.template(spec, data), 0)['autoencoder']
    decode, z = (
      jax.jit(build.decoder(spec)),
      jax.random.normal(jax.random.key(0), (1,) + build.sample_shape(spec, data)),
    )
    found = decode({**weights, 'latent_scale': np.float32(0.25)}, 0.25 * z)
    np.testing.assert_allclose(
      found, decode({**weights, 'latent_scale': np.float32(1)}, z), atol=1e-5
    )
    self.assertEqual(found.shape, (1, 32, 32, 3))


class GuidanceTest(parameterized.TestCase):
  def test_gradient_of_the_noisy_classifier(self):
    found = {}
    x, labels = 0.5 * jax.random.normal(jax.random.key(0), (2, 32, 32, 3)), jnp.array([3, 5])
    time = jax.tree.map(jnp.float32, schedules.linear().at(300.0))
    config = config_of('imagenet256', 'adm_guided')
    spec, data = spec_of(config)
    weights = build.random_weights(build.template(spec, data), 0)
    for scale in (0.0, 3.0):
      config.classifier.scale = scale
      spec, data = spec_of(config)
      denoiser = jax.jit(lambda weights, x: build.denoiser(spec, data)(weights)(x, time, labels))
      found[scale] = denoiser(weights, x)
    judge = build.classifier(spec, data)
    log_prob = lambda x, weights: jax.nn.log_softmax(judge.apply(weights, x, jnp.full(2, 300.0)))[
      jnp.arange(2), labels
    ].sum()
    gradient = jax.jit(jax.grad(log_prob))(x, weights['classifier'])
    self.assertGreater(float(jnp.abs(gradient).max()), 1e-3)
    np.testing.assert_allclose(found[0.0].eps - found[3.0].eps, 3 * time.b * gradient, atol=1e-5)
    self.assertLessEqual(
      float(jnp.abs(found[0.0].x0).max()), 1
    )  # clipped before the gradient, not after

  @parameterized.parameters(
    ('imagenet256', 'runlocal,adm_guided'), ('lsun_church256', 'runlocal,ldm')
  )
  def test_random_weights_say_so(self, name, variant):
    workdir = self.create_tempdir().full_path
    config = importlib.import_module('configs.' + name).get_config(variant)
    config.sampler.steps, config.sample.count = 2, 1
    config.sample.gif = latent = name.startswith('lsun')
    with contextlib.redirect_stdout(io.StringIO()) as printed:
      tasks.run('sample', workdir, config, 'test')
    self.assertIn('the weights are random: images will be noise', printed.getvalue())
    with np.load(cases.sample_set(workdir, 'ddim_gmm')) as file:
      self.assertEqual((file['arr_0'].shape, file['arr_0'].dtype), ((1, 32, 32, 3), np.uint8))
      self.assertEqual(
        'arr_1' in file, name.startswith('imagenet')
      )  # a model without labels has none
    if latent:
      with Image.open(cases.sample_set(workdir, 'ddim_gmm', '.gif')) as found:
        self.assertEqual(found.n_frames, 2)


class ConfigTest(parameterized.TestCase):
  @parameterized.parameters(
    (
      'imagenet256',
      'adm',
      dict(
        guidance=1.0,
        classifier=0.0,
        labels='plain',
        clip=True,
        end='clean',
        T=1000,
        schedule='linear',
      ),
    ),
    ('imagenet256', 'adm_guided', dict(classifier=1.0)),
    ('imagenet256', 'uncond_guided', dict(classifier=10.0, labels='none')),
    ('imagenet128', 'adm_guided', dict(classifier=0.5)),
    ('imagenet64', 'adm_guided', dict(classifier=1.0, schedule='cosine')),
    (
      'imagenet256',
      'ldm',
      dict(
        schedule='sqrt_linear',
        beta_min=0.0015,
        beta_max=0.0195,
        clip=False,
        end='first',
        labels='null',
        scale=1.0,
      ),
    ),
    (
      'imagenet256',
      'dit',
      dict(
        schedule='linear',
        beta_max=0.02,
        clip=False,
        labels='null',
        scale=0.18215,
        eps=1e-6,
        freq_shift=0,
      ),
    ),
    (
      'celebahq256',
      'ldm',
      dict(
        schedule='sqrt_linear',
        beta_max=0.0195,
        clip=False,
        end='first',
        labels='none',
        autoencoder='vq',
      ),
    ),
    ('lsun_church256', 'ldm', dict(schedule='sqrt_linear', beta_max=0.0155, autoencoder='kl')),
    (
      'cifar10',
      'ddpm',
      dict(
        schedule='linear',
        beta_min=1e-4,
        beta_max=0.02,
        clip=True,
        labels='none',
        eps=1e-6,
        freq_shift=1,
      ),
    ),
  )
  def test_released_settings(self, name, variant, expected):
    c = specs.from_config(importlib.import_module('configs.' + name).get_config(variant))
    schedule, net = build.schedule_options(c.schedule), build.net_options(c.net)
    found = dict(
      guidance=c.denoiser.guidance,
      classifier=c.classifier.scale,
      labels=c.net.labels,
      clip=c.denoiser.clip,
      end=c.sampler.end,
      T=schedule.get('T'),
      schedule=c.schedule.name,
      beta_min=schedule.get('beta_min'),
      beta_max=schedule.get('beta_max'),
      scale=c.autoencoder.scale,
      autoencoder=c.autoencoder.name,
      eps=net.get('eps'),
      freq_shift=net.get('freq_shift'),
    )
    self.assertEqual({key: found[key] for key in expected}, expected)


class PrecisionTest(parameterized.TestCase):
  @parameterized.parameters(('imagenet256', 'adm'), ('imagenet256', 'dit'))
  def test_bfloat16_sampling(self, name, variant):
    found = {}
    for dtype in ('float32', 'bfloat16'):
      config = config_of(
        name,
        variant,
        **{
          'net.dtype': dtype,
          'denoiser.clip': False,
          'denoiser.guidance': 1.0,
          'sampler.steps': 4,
        },
      )
      spec, data = spec_of(config)
      made = drawing.prepare(spec, spec.sampler, data)
      steps = drawing.Steps(made.grid, made.plan, 0)
      weights = build.random_weights(build.template(spec, data), 0)
      draw = jax.jit(
        lambda weights, steps: (
          drawing.sample_batch(
            made.kernel,
            made.bind(weights),
            steps,
            jnp.arange(2),
            jnp.array([1, 2]),
            made.shape,
          )[1].x
        )
      )
      found[dtype] = draw(weights, steps)
      if dtype == 'bfloat16' and variant == 'dit':  # a rounded scale would shift every image
        self.assertEqual(weights['autoencoder']['latent_scale'].dtype, np.float32)
    full, half = found.values()
    self.assertLess(float(jnp.linalg.norm(full - half) / jnp.linalg.norm(full)), 0.02)

  @parameterized.parameters(
    ('imagenet256', 'adm'), ('imagenet256', 'ldm'), ('imagenet256', 'dit'), ('cifar10', 'ddpm')
  )
  def test_bfloat16(self, name, variant):
    found = {}
    for dtype in ('float32', 'bfloat16'):
      config = config_of(name, variant, **{'net.dtype': dtype, 'denoiser.clip': False})
      spec, data = spec_of(config)
      weights = build.random_weights(build.template(spec, data), 0)
      shape = build.sample_shape(spec, data)
      x = jax.random.normal(jax.random.key(0), (2,) + shape)
      labels = jnp.array([1, 2]) % max(1, data.classes)
      denoiser = jax.jit(
        lambda weights, x, time: build.denoiser(spec, data)(weights)(x, time, labels).x0
      )
      process = build.schedule(spec.schedule)
      found[dtype] = [
        denoiser(weights, x, jax.tree.map(jnp.float32, process.at(t))) for t in (999.0, 500.0, 10.0)
      ]
    for full, half in zip(found['float32'], found['bfloat16']):
      self.assertLess(float(jnp.linalg.norm(full - half) / jnp.linalg.norm(full)), 0.02)


if __name__ == '__main__':
  absltest.main()
