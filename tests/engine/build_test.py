"""From settings to objects: every option has a key, and its default beside the code that reads it."""

import dataclasses
import inspect

import numpy as np
from absl.testing import absltest, parameterized

from gmm_diffusion import samplers, specs
from gmm_diffusion.engine import build
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import grids, schedules

LINEAR = schedules.linear()
keys_of = lambda section: {field.name for field in dataclasses.fields(section)}


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


if __name__ == '__main__':
  absltest.main()
