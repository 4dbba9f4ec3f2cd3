"""Training in latents: what is stored of the images, what is drawn from it, and that everything
finds its first stage again."""

import dataclasses
import glob
import importlib
import importlib.util
import os

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from gmm_diffusion import api, specs, tasks
from gmm_diffusion.checkpoints.store import Store
from gmm_diffusion.data import base
from gmm_diffusion.engine import build, latents, loss, released, shards
from gmm_diffusion.errors import UserError
from helpers import cases, cli, released_files

HAS_GRAIN = importlib.util.find_spec('grain') is not None  # which reads streams
RANDOM = specs.Weights(format='random')
FIRST = specs.Autoencoder(
  name='kl',
  latent_channels=2,
  channels=32,
  multipliers=(1.0, 1.0),
  blocks=1,
  scale=0.0,
  weights=RANDOM,
)
SPEC = specs.Spec(
  data=specs.Data(flip=True),
  net=specs.Net(name='cnn', channels=8, blocks=1, labels='none'),
  autoencoder=FIRST,
  denoiser=specs.Denoiser(clip=False),
  train=specs.Train(steps=2, batch=4, warmup=0, log_every=1, checkpoint_every=1),
  sampler=specs.Sampler(steps=2),
)


def images(count=5, side=8):
  """Smooth images, of which no two are alike."""
  random = np.random.RandomState(0)
  rows = random.uniform(0, 255, (count, 1, side, 3)) + random.uniform(-80, 80, (count, side, 1, 3))
  x = np.clip(rows, 0, 255).astype(np.uint8)
  none = np.zeros(0, np.int32)
  return base.Data(x, np.arange(count, dtype=np.int32), x[:0], none, 0)


def with_first(**changes):
  return dataclasses.replace(SPEC, autoencoder=dataclasses.replace(FIRST, **changes))


class LatentsTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.data, cls.workdir = images(), cls.enterClassContext(cases.folder())
    cls.arrays = latents.first_stage(SPEC, cls.data, cls.workdir)
    cls.items = latents.encoded(SPEC, cls.data, cls.workdir, cls.arrays)

  def moments(self, x):
    module = build.autoencoder(SPEC)
    return module.apply({'params': self.arrays['params']}, base.to_model(x), method='moments')

  def test_each_image_and_its_mirror_image(self):
    x = self.data.train
    both = np.concatenate([x, x[:, :, ::-1]])
    self.assertLen(self.items, 10)
    found = self.items[np.arange(10)]
    self.assertEqual(found.dtype, np.float16)
    np.testing.assert_allclose(found, self.moments(both), rtol=2e-3, atol=2e-3)
    np.testing.assert_array_equal(self.items[np.array([7, 2, 7])], found[[7, 2, 7]])
    straight = dataclasses.replace(SPEC, data=specs.Data())
    folder = self.create_tempdir().full_path
    alone = latents.encoded(straight, self.data, folder, self.arrays)
    np.testing.assert_array_equal(alone[np.arange(len(alone))], found[:5])

  def test_a_scale_of_zero_makes_their_deviation_one(self):
    mean = self.moments(self.data.train)[..., :2]
    scale = self.arrays['latent_scale']
    self.assertAlmostEqual(float(scale * np.std(mean)), 1, delta=2e-3)

  def test_of_several_files(self):
    with absltest.mock.patch.object(latents, '_SIZE', 3):
      folder = self.create_tempdir().full_path
      found = latents.encoded(SPEC, self.data, folder, self.arrays)
      self.assertLen(os.listdir(os.path.join(folder, latents.FOLDER)), 4)
      order = np.array([9, 0, 4, 5, 2])
      np.testing.assert_allclose(
        found[order].astype(np.float32), self.items[order].astype(np.float32), atol=2e-3
      )

  def test_encodes_once(self):
    with absltest.mock.patch.object(latents, '_encoder') as encoder:
      latents.encoded(SPEC, self.data, self.workdir, self.arrays)
    encoder.return_value.assert_not_called()

  def test_other_images_are_encoded_anew(self):
    def mark(spec, data):
      with absltest.mock.patch.object(shards, 'fill', side_effect=ZeroDivisionError) as fill:
        with self.assertRaises(ZeroDivisionError):
          latents.encoded(spec, data, self.workdir, self.arrays)
      return fill.call_args.args[1]

    place = dataclasses.replace(SPEC, data=dataclasses.replace(SPEC.data, path='/elsewhere'))
    self.assertEqual(mark(SPEC, self.data), mark(place, self.data))
    straight = dataclasses.replace(SPEC, data=specs.Data())
    other = self.data._replace(train=255 - self.data.train)
    self.assertLen({mark(SPEC, self.data), mark(SPEC, other), mark(straight, self.data)}, 3)

  def test_kl_draws_from_the_posterior(self):
    """Mean and deviation over 20,000 draws, each within six standard errors: by chance once in
    10^7."""
    stored = self.items[np.arange(2)].astype(np.float32)
    stored[..., 2:] = np.log([0.3, 0.05]) * 2  # deviations that are seen
    keys = jax.random.split(jax.random.key(0), 40_000)
    given = latents.drawn(SPEC, self.arrays)
    z, add = given(jnp.asarray(np.tile(stored, (20_000, 1, 1, 1))), keys)
    self.assertEqual(add(3), 3)
    z = np.asarray(z, np.float64).reshape(20_000, *stored.shape[:3], 2)
    scale = float(self.arrays['latent_scale'])
    deviation = scale * np.array([0.3, 0.05])
    self.assertLess(
      np.abs((z.mean(0) - scale * stored[..., :2]) / deviation).max() * np.sqrt(20_000), 6
    )
    self.assertLess(np.abs(z.std(0) / deviation - 1).max() * np.sqrt(40_000), 6)

  def test_vq_takes_them_as_they_are(self):
    spec, folder = with_first(name='vq', codes=16), self.create_tempdir().full_path
    arrays = latents.first_stage(spec, self.data, folder)
    items = latents.encoded(spec, self.data, folder, arrays)
    found, _ = latents.drawn(spec, arrays)(jnp.asarray(items[np.arange(3)]), None)
    module, x = build.autoencoder(spec), base.to_model(self.data.train[:3])
    z = module.apply({'params': arrays['params']}, x, method='encode')
    np.testing.assert_allclose(found, arrays['latent_scale'] * z, rtol=3e-3, atol=3e-3)

  def test_refused(self):
    nowhere = self.create_tempdir().full_path
    for spec, says in (
      (with_first(weights=specs.Weights()), 'is trained on a released autoencoder'),
      (dataclasses.replace(SPEC, denoiser=specs.Denoiser()), 'set --config.denoiser.clip=False'),
      (dataclasses.replace(SPEC, train=specs.Train(noisy=0.5)), 'train.noisy is for pixels'),
      (with_first(latent_channels=3), 'was made with autoencoder.latent_channels = 2, the config'),
    ):
      with self.assertRaisesRegex(UserError, says):
        latents.first_stage(spec, self.data, self.workdir if '= 2' in says else nowhere)


class TrainTest(absltest.TestCase):
  def test_train_stop_go_on_and_sample(self):
    data, folder = images(), self.create_tempdir().full_path
    at = lambda name: os.path.join(folder, name)
    loss.train(SPEC, data, at('whole'))
    once = dataclasses.replace(SPEC, train=dataclasses.replace(SPEC.train, steps=1))
    loss.train(once, data, at('parts'))
    loss.train(SPEC, data, at('parts'))
    one, other = (build.weights(SPEC, data, at(name)) for name in ('whole', 'parts'))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    self.assertEqual(set(one), {'net', 'autoencoder'})
    other = dataclasses.replace(SPEC, seed=1)
    os.rename(os.path.join(at('parts'), 'autoencoder'), at('away'))
    with self.assertRaisesRegex(UserError, 'no checkpoint in .*/autoencoder/checkpoints'):
      build.weights(SPEC, data, at('parts'))
    latents.first_stage(other, data, at('parts'))
    with self.assertRaisesRegex(UserError, 'was made with hash = '):
      build.weights(SPEC, data, at('parts'))
    with Store(at('whole')) as store:
      self.assertNotIn('autoencoder', os.listdir(os.path.join(store.path, '2')))
      self.assertIn('latents', store.about())
    after = dataclasses.replace(
      SPEC, train=dataclasses.replace(SPEC.train, start=at('whole'), steps=1, learning_rate=1e-12)
    )
    loss.train(after, data, at('after'))
    found = build.weights(SPEC, data, at('after'))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), one, found)

  def test_commands(self):
    """Encode, train 200 steps, sample, on a released autoencoder of random weights."""
    folder = self.create_tempdir().full_path
    np.savez(os.path.join(folder, 'x.npz'), train_images=images(12, 16).train)
    config = released_files.config_of('imagenet256', 'dit')
    spec, data = released_files.spec_of(config)
    workdir = os.path.join(folder, 'run')
    released_files.write(spec, data, workdir)
    path = os.path.join(folder, 'autoencoder.safetensors')
    os.rename(released_files.released.place(spec.autoencoder.weights, workdir), path)
    own = (
      '--config.data.name=npz', f'--config.data.path={folder}/x.npz', '--config.data.size=16',
      f'--config.data.stream={HAS_GRAIN}', '--config.net.name=cnn', '--config.net.channels=8',
      '--config.net.blocks=1',
      '--config.autoencoder.weights.format=diffusers', f'--config.autoencoder.weights.path={path}',
      '--config.autoencoder.weights.sha256=',
      '--config.train.batch=4', '--config.train.sample_every=200',
    )  # fmt: skip
    code, out, error = cli.here(
      'folder.py:latents,runlocal', 'train', workdir, *own, '--config.train.steps=200'
    )
    self.assertEqual(code, 0, error)
    self.assertIn('24 latents of 2 x 2 x 8, deviation ', out)
    self.assertTrue(os.path.exists(os.path.join(workdir, 'progress', '00000200.png')))
    code, out, error = cli.here(
      'folder.py:latents,runlocal', 'sample', workdir, *own, '--config.sample.count=2'
    )
    self.assertEqual(code, 0, error)
    samples = api.load(workdir).sample(2, steps=2)
    self.assertEqual((samples.shape, samples.dtype), ((2, 16, 16, 3), np.uint8))
    code, _, error = cli.here('folder.py:latents,runlocal', 'fetch', workdir, *own)
    self.assertEqual(code, 0, error)
    os.rename(path, f'{folder}/other.safetensors')
    own += (f'--config.autoencoder.weights.path={folder}/other.safetensors',)
    with open(f'{folder}/other.safetensors', 'ab') as file:
      file.write(b' ')
    code, _, error = cli.here(
      'folder.py:latents,runlocal', 'train', workdir, *own, '--config.train.steps=300'
    )
    self.assertIn('which is another file; use its config', error)

  def test_a_network_on_released_vq_latents(self):
    """VQ-f4 as latent diffusion released it, which stays in one file with a network."""
    folder = self.create_tempdir().full_path
    at = lambda name: os.path.join(folder, name)
    random, count = np.random.RandomState(0), 8
    pixels = random.randint(0, 256, (count, 32, 32, 3)).astype(np.uint8)
    np.savez(at('x.npz'), arr_0=pixels, arr_1=np.arange(count))
    released_config = released_files.config_of('imagenet256', 'ldm')
    spec, data = released_files.spec_of(released_config)
    released_files.write(spec, data, folder)
    config = importlib.import_module('configs.imagenet256').get_config('ldm,train,runlocal')
    config.update_from_flattened_dict({
      'data.name': 'npz', 'data.path': at('x.npz'), 'train.steps': 2, 'train.batch': 4,
      'autoencoder.weights.format': spec.autoencoder.weights.format, 'sampler.steps': 2,
      'autoencoder.weights.path': released.place(spec.autoencoder.weights, folder),
      'sample.count': 2, 'net.multipliers': (1.0,), 'net.attention': (8,),
    })  # fmt: skip
    with absltest.mock.patch('builtins.print') as said:
      tasks.run('train', at('run'), config, 'test')
    self.assertIn('16 latents of 8 x 8 x 3, deviation ', str(said.mock_calls))
    tasks.run('sample', at('run'), config, 'test')
    self.assertLen(glob.glob(at('run/samples/*.png')), 1)


if __name__ == '__main__':
  absltest.main()
