"""samplers.draw: the public call on a denoiser of one's own, and where sampling starts."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy import stats

from gmm_diffusion import samplers
from gmm_diffusion.denoisers import exact
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import grids, marginals, noise, schedules
from gmm_diffusion.samplers.run import initial_state

LINEAR, EDM = schedules.linear(), schedules.edm()
GAUSSIAN = exact.gaussian(0.3, 0.04)


class InitialStateTest(parameterized.TestCase):
  @parameterized.parameters(('linear', 1.0), ('rectified_flow', 1.0), ('edm', 80.0))
  def test_it_has_the_noise_level_of_the_first_time(self, name, level):
    # 4000 numbers: the standard error of a deviation is 1.1 %
    grid = grids.make(schedules.SCHEDULES[name](), 5)
    x = np.asarray(initial_state(grid, noise.sample_keys(0, np.arange(1000)), (4,)))
    self.assertAlmostEqual(x.std() / level, 1, delta=0.05)
    self.assertGreater(stats.kstest(x.ravel() / level, 'norm').pvalue, 1e-4)

  def test_a_grid_that_starts_lower_starts_with_less_noise(self):
    grid = grids.from_times(LINEAR, [100, 50])
    keys = noise.sample_keys(0, np.arange(3))
    np.testing.assert_allclose(
      initial_state(grid, keys, (2,)), grid.b_t[0] * noise.initial(keys, (2,)), rtol=1e-6
    )
    self.assertLess(grid.b_t[0], 0.4)


class DrawTest(parameterized.TestCase):
  @parameterized.product(schedule=['linear', 'rectified_flow', 'edm'], sampler=['dpmpp', 'heun'])
  def test_samples_have_the_law_of_the_data(self, schedule, sampler):
    grid = 'uniform' if schedule == 'rectified_flow' else 'karras'
    x = samplers.draw(
      *(GAUSSIAN, schedules.SCHEDULES[schedule](), (4,), np.arange(500)),
      sampler=sampler,
      steps=20,
      grid=grid,
    )
    # six standard errors of 2000 numbers, and 4 % for what 20 steps leave
    self.assertAlmostEqual(float(x.mean()), 0.3, delta=6 * 0.2 / 2000**0.5)
    self.assertAlmostEqual(float(x.std()) / 0.2, 1, delta=6 / 4000**0.5 + 0.04)

  def test_a_sample_is_that_of_its_seed_and_id(self):
    draw = lambda ids, seed=0: samplers.draw(
      *(GAUSSIAN, LINEAR, (2, 2, 1), ids, seed), sampler='ddim_gmm', eta=0.5, components=2
    )
    every = draw(range(5))
    self.assertEqual((every.shape, every.dtype), ((5, 2, 2, 1), jnp.float32))
    np.testing.assert_allclose(draw([4, 2]), every[np.array([4, 2])], atol=1e-6)
    self.assertGreater(float(jnp.abs(draw(range(5), 1) - every).max()), 0.1)

  @parameterized.parameters(0.1, 0.5, 1.0)
  def test_from_an_image_to_another(self, strength):
    """The flow of N(m, v) takes x_t to m + sqrt(v / V)(x_t - a m), V = a^2 v + b^2."""
    start, steps = np.full((500, 4), 1.5, np.float32), 200
    x = np.asarray(
      samplers.draw(
        *(GAUSSIAN, LINEAR, (4,), np.arange(500)), sampler='heun', steps=steps, start=start,
        strength=strength,
      )
    )  # fmt: skip
    grid = grids.make(LINEAR, steps, 'trailing')
    a, b = (level[steps - round(strength * steps)] for level in (grid.a_t, grid.b_t))
    gain = np.sqrt(0.04 / (a**2 * 0.04 + b**2))
    # five standard errors of 2000 numbers
    self.assertAlmostEqual(x.mean(), 0.3 + gain * a * 1.2, delta=5 * gain * b / 2000**0.5 + 1e-3)
    self.assertAlmostEqual(x.std() / (gain * b), 1, delta=5 / 4000**0.5 + 0.02)

  def test_a_start_that_does_not_fit(self):
    draw = lambda **more: samplers.draw(GAUSSIAN, LINEAR, (4,), np.arange(2), **more)
    with self.assertRaisesRegex(UserError, r'shape \[2, 4\], one for each id, got \[4\]'):
      draw(start=np.zeros(4))
    with self.assertRaisesRegex(UserError, r'strength must be in \(0, 1\], got 0'):
      draw(start=np.zeros((2, 4)), strength=0.0)

  def test_clipping(self):
    def wild(x, time, cond):  # far outside of the data
      return marginals.from_x0(x, jnp.full_like(x, 3.0), time)

    draw = lambda **more: samplers.draw(wild, LINEAR, (3,), [0], steps=3, **more)
    np.testing.assert_allclose(draw(), 3, rtol=1e-5)
    np.testing.assert_allclose(draw(clip=(-1, 1)), 1, rtol=1e-5)
    np.testing.assert_allclose(draw(clip=(0, 2)), 2, rtol=1e-5)

  def test_conditions_and_grids_of_ones_own(self):
    times = []

    def labelled(x, time, cond):
      return marginals.from_x0(x, jnp.broadcast_to(cond[:, None] * 1.0, x.shape), time)

    def watched(x, time, cond):
      times.append(x.shape)
      return labelled(x, time, cond)

    grid = grids.from_sigmas(EDM, [10.0, 1.0, 0.0])
    found = samplers.draw(
      watched, EDM, (2,), [7, 8, 9], grid=grid, cond=jnp.array([1, 2, 3]), steps=99
    )
    np.testing.assert_allclose(found[:, 0], [1, 2, 3], rtol=1e-5)
    self.assertLen(times, 1)  # one trace

  def test_bad_names(self):
    with self.assertRaisesRegex(UserError, "unknown sampler 'ddmi'"):
      samplers.draw(GAUSSIAN, LINEAR, (2,), [0], sampler='ddmi')
    with self.assertRaisesRegex(UserError, "unknown sampler option 'etta'"):
      samplers.draw(GAUSSIAN, LINEAR, (2,), [0], etta=1.0)


if __name__ == '__main__':
  absltest.main()
