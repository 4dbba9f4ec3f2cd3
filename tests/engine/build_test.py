"""From settings to objects: every option has a key, and its default beside the code that reads it;
exact denoisers by name; what a checkpoint belongs to."""

import dataclasses
import inspect
import os

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from configs import digits
from gmm_diffusion import denoisers, samplers, specs, tasks
from gmm_diffusion.checkpoints.store import Store
from gmm_diffusion.data import sources
from gmm_diffusion.denoisers import score_machines
from gmm_diffusion.engine import build
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import grids, schedules
from gmm_diffusion.nets import NETS
from gmm_diffusion.types import Time

LINEAR = schedules.linear()
keys_of = lambda section: {field.name for field in dataclasses.fields(section)}
IMAGES = specs.Data(limit=12)
# what a checkpoint of digits.py said of itself when every option had one default for all networks
EARLIER = {
  'net': {
    'name': 'unet', 'channels': 32, 'multipliers': [1.0, 2.0], 'blocks': 1, 'attention': [4],
    'head_channels': 32, 'heads': 1, 'labels': 'null', 'context_dim': 0, 'scale_shift': True,
    'resblock_updown': True, 'pad_end': False, 'attention_kind': 'dot', 'legacy_attention': True,
    'eps': 1e-05, 'freq_shift': 0, 'sin_first': False, 'patch': 2, 'padding': 'zero',
    'final': 'none', 'temperature': [2.0, 0.1], 'learn_sigma': False,
  },
  'schedule': {'name': 'linear', 'T': 1000, 'beta_min': 0.0001, 'beta_max': 0.02},
  'prediction': 'eps', 'shape': [8, 8, 1], 'classes': 10,
}  # fmt: skip


class ScheduleTest(parameterized.TestCase):
  @parameterized.parameters(*schedules.SCHEDULES)
  def test_every_option_has_a_key_and_its_own_default(self, name):
    make = schedules.SCHEDULES[name]
    options = inspect.signature(make).parameters
    self.assertLessEqual(set(options), keys_of(specs.Schedule))
    found, own = build.schedule(specs.Schedule(name=name)), make()
    times = own.training_times
    np.testing.assert_array_equal(found.training_times, times)
    np.testing.assert_array_equal(found.noise(times), own.noise(times))
    for option in options:  # and a value that is set arrives
      value = options[option].default
      other = value + 1 if isinstance(value, int) else 0.75 * value
      one = build.schedule(specs.Schedule(name=name, **{option: other}))
      wanted = make(**{option: other})
      np.testing.assert_array_equal(one.training_times, wanted.training_times)
      np.testing.assert_array_equal(one.noise(times[1:]), wanted.noise(times[1:]))


class SamplerTest(parameterized.TestCase):
  @parameterized.parameters(*samplers.SAMPLERS)
  def test_every_option_has_a_key(self, name):
    _, options = samplers.resolve(name, {})
    self.assertLessEqual(set(options), keys_of(specs.Sampler))

  def test_where_heun_adds_noise(self):
    spec = specs.Sampler(name='heun', churn=4.0, churn_min=0.5, churn_max=5.0, churn_noise=1.1)
    grid = build.grid(schedules.edm(), dataclasses.replace(spec, grid='karras'))
    plan, _ = samplers.make('heun', spec.options(), schedules.edm()).plan(grid, (3,))
    np.testing.assert_array_equal(plan.rows.std > 0, (grid.b_t >= 0.5) & (grid.b_t <= 5))
    self.assertTrue(0 < np.sum(plan.rows.std > 0) < 10)
    plain, _ = samplers.make('heun', dict(spec.options(), churn_noise=1.0), schedules.edm()).plan(
      grid, (3,)
    )
    np.testing.assert_allclose(plan.rows.std, 1.1 * plain.rows.std)


class GridTest(parameterized.TestCase):
  def test_rho(self):
    one = specs.Sampler(steps=7, grid='karras')
    np.testing.assert_array_equal(build.grid(LINEAR, one), grids.make(LINEAR, 7, 'karras', rho=7.0))
    other = build.grid(LINEAR, dataclasses.replace(one, rho=3.0))
    np.testing.assert_array_equal(other, grids.make(LINEAR, 7, 'karras', rho=3.0))
    self.assertGreater(np.abs(other.t - build.grid(LINEAR, one).t)[1:-1].min(), 1)

  @parameterized.parameters(('clean', -1), ('first', 0))
  def test_times_by_hand(self, end, last):
    found = build.grid(LINEAR, specs.Sampler(times=(999.0, 400.5, 12.0), end=end))
    np.testing.assert_array_equal(found.t, [999, 400.5, 12])
    np.testing.assert_array_equal(found.s, [400.5, 12, last])
    np.testing.assert_allclose(found.a_t, LINEAR.signal([999, 400.5, 12]))

  def test_bad_times(self):
    with self.assertRaisesRegex(UserError, 'grid times must be strictly decreasing'):
      build.grid(LINEAR, specs.Sampler(times=(3.0, 400.0)))
    with self.assertRaisesRegex(UserError, "unknown end 'last'; valid: clean, first"):
      build.grid(LINEAR, specs.Sampler(times=(400.0,), end='last'))


class DefaultsTest(parameterized.TestCase):
  def test_dit_has_its_own_eps(self):
    spec = specs.from_config({'data': {'name': 'none', 'size': 8}, 'net': {'name': 'dit'}})
    module = build.net(spec, sources.load(spec.data))
    self.assertEqual(module.eps, 1e-6)
    self.assertEqual(module, NETS['dit'](out_channels=3, classes=1))


class ExactTest(parameterized.TestCase):
  def test_every_machine_has_a_name(self):
    self.assertContainsSubset(score_machines.MACHINES, denoisers.EXACT)

  @parameterized.parameters(
    ('IS', {}), ('ES', {}), ('LS', {'padding': 'circular'}), ('ELS', {'places': 'all'}),
    ('ELS', {'padding': 'circular'}), ('bbELS', {}), ('consistent', {'padding': 'circular'}),
  )  # fmt: skip
  def test_machines_with_their_options(self, name, options):
    options = options if name in score_machines.WHOLE else {'size': 5, **options}
    spec = specs.Spec(data=IMAGES, denoiser=specs.Denoiser(name, clip=False, **options))
    data = sources.load(spec.data)
    images = build.weights(spec, data, '/unused')
    self.assertEqual(images.shape, (12, 8, 8, 1))
    time = Time(*map(jnp.float32, (500, 0.6, 0.8)))
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    found = build.denoiser(spec, data)(images)(x, time, None).x0
    expected = score_machines.make(name, images, **options)(x, time, None).x0
    np.testing.assert_array_equal(found, expected)
    if options:
      plain = score_machines.make(name, images)(x, time, None).x0
      self.assertGreater(float(jnp.abs(found - plain).max()), 1e-3)

  def test_sampled_like_any_other(self):
    workdir = os.path.join(self.create_tempdir().full_path, 'run')
    config = digits.get_config()
    changes = {
      **{'denoiser.name': 'bbELS', 'data.limit': 12, 'sampler.name': 'ddim', 'sampler.steps': 2},
      **{'sample.count': 3, 'denoiser.size': 3},
    }
    config.update_from_flattened_dict(changes)
    tasks.run('sample', workdir, config, 'test', tuple(changes))
    found = [
      os.path.join(folder, name)
      for folder, _, names in os.walk(os.path.join(workdir, 'samples'))
      for name in names
      if name.endswith('.npz')
    ]
    whole = [array['arr_0'] for array in map(np.load, found) if 'arr_0' in array]
    self.assertEqual([array.shape for array in whole], [(3, 8, 8, 1)])

  @parameterized.parameters(
    (specs.Data(), 'mixture', 'no known mixture, .*; valid denoisers here: network, empirical, IS'),
    (specs.Data('toy'), 'ELS', 'no images, .*; valid denoisers here: mixture, empirical$'),
    (specs.Data('none', size=8), 'IS', 'no images, .*; valid denoisers here: network$'),
    (specs.Data('none', size=8), 'empirical', 'no items, .*; valid denoisers here: network$'),
  )
  def test_data_that_lack_what_is_needed(self, data, name, message):
    spec = specs.Spec(data=data, denoiser=specs.Denoiser(name))
    with self.assertRaisesRegex(UserError, message):
      build.denoiser(spec, sources.load(data))


class AboutTest(absltest.TestCase):
  def stored(self, about):
    store = Store(self.create_tempdir().full_path, create=True)
    store.save(1, {'net': {'a': np.zeros(1, np.float32)}}, None, about)
    store.close()
    return Store(os.path.dirname(store.path))

  def test_checkpoints_of_before_belong_to_the_same_settings(self):
    spec = specs.from_config(digits.get_config())
    wanted = build.about(spec, sources.load(spec.data))
    self.assertIsNone(self.stored(EARLIER).difference(wanted))
    self.assertIsNone(self.stored(wanted).difference(wanted))
    for section, key, value in (
      ('net', 'eps', 1e-6),
      ('net', 'attention', [4, 8]),
      ('schedule', 'beta_max', 0.0155),
    ):
      other = {**EARLIER, section: {**EARLIER[section], key: value}}
      found = self.stored(other).difference(wanted)
      self.assertEqual(found[:2], (f'{section}.{key}', value))

  def test_what_is_missing(self):
    spec = specs.from_config(digits.get_config())
    wanted = build.about(spec, sources.load(spec.data))
    younger = {**wanted, 'net': {**wanted['net'], 'of_tomorrow': 3}}
    self.assertIsNone(self.stored(wanted).difference(younger))
    latent = {**wanted, 'autoencoder': {'name': 'kl'}}
    self.assertEqual(self.stored(wanted).difference(latent)[0], 'autoencoder')


if __name__ == '__main__':
  absltest.main()
