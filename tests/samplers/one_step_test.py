"""One call at one noise level."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from gmm_diffusion import samplers
from gmm_diffusion.denoisers import exact
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import grids, schedules
from gmm_diffusion.samplers import one_step
from helpers import cases


class OneStepTest(cases.X64TestCase):
  @parameterized.parameters('linear', 'cosine', 'rectified_flow', 'edm')
  def test_grid_is_one_call_at_the_level(self, name):
    schedule = schedules.SCHEDULES[name]()
    grid = one_step.grid(schedule, 3.0)
    self.assertEqual((grid.t.shape, grid.a_s[0], grid.b_s[0]), ((1,), 1, 0))
    np.testing.assert_allclose(grid.b_t[0] / grid.a_t[0], 3, rtol=0.02)
    if schedule.discrete:
      self.assertEqual(grid.t[0] % 1, 0)

  def test_is_the_prediction(self):
    denoiser = exact.gaussian(np.array([0.3, -1.0]), 0.5)
    schedule = schedules.cosine()
    grid, start = one_step.grid(schedule), jnp.asarray(np.random.RandomState(0).randn(6, 2))
    x = cases.sample(
      samplers.make('one_step', {}), denoiser, grid, (2,), np.arange(6), start=start
    ).x
    now = schedule.at(grid.t[0])
    np.testing.assert_allclose(x, denoiser(start, now, None).x0, atol=1e-12)

  def test_on_more_steps_noise_is_new(self):
    # x_0 known: after a step to (a_s, b_s) samples are a_s x_0 + b_s z, whatever they were before
    schedule = schedules.cosine()
    grid = grids.make(schedule, 2, 'uniform', 'first')
    kernel = samplers.make('one_step', {})
    path = [
      cases.sample(
        kernel, cases.known_x0(np.array([0.7])), grid, (1,), np.arange(4000), start=start
      ).x
      for start in (jnp.zeros((4000, 1)), 5 * jnp.ones((4000, 1)))
    ]
    np.testing.assert_allclose(path[0], path[1], atol=1e-12)
    noise = (np.asarray(path[0]) - grid.a_s[-1] * 0.7) / grid.b_s[-1]
    # 4 standard errors of the mean and of the deviation
    np.testing.assert_allclose([noise.mean(), noise.std()], [0, 1], atol=4 / np.sqrt(4000))

  def test_refuses_bad_levels(self):
    with self.assertRaisesRegex(UserError, 'sampler.level must be > 0, got -1'):
      samplers.make('one_step', {'level': -1.0})


if __name__ == '__main__':
  absltest.main()
