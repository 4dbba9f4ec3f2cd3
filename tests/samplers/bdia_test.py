"""BDIA-DDIM: golden runs of the original code, exact inversion."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from gmm_diffusion import samplers
from gmm_diffusion.denoisers import exact
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import grids, schedules
from gmm_diffusion.samplers import bdia
from gmm_diffusion.samplers.run import run
from helpers import cases, flows

ARRAYS, RUNS = flows.golden('g7_bdia_ddim')
make = functools.cache(bdia.bdia)


def mixture(x, time, cond):
  return exact.mixture(np.random.RandomState(0).randn(5, 3, 2), np.full(5, 0.05))(x, time, cond)


class BdiaTest(cases.X64TestCase):
  @parameterized.parameters(*RUNS)
  def test_golden(self, case, args):
    # the original's last target is abar_0
    abar = ARRAYS[case + '/abar']
    result = flows.sample(
      make(args['gamma']), flows.grid_of_abar(np.append(abar[:, 0], abar[-1, 1]))
    )
    np.testing.assert_allclose(result.path, ARRAYS[case + '/states'][1:], rtol=0, atol=1e-12)
    self.assertEqual(result.nfe, args['calls'])

  @parameterized.parameters(
    ('linear', 'clean', 1.0), ('linear', 'first', 0.8), ('rectified_flow', 'clean', 0.8)
  )
  def test_image_to_noise_to_the_same_image(self, name, end, gamma):
    schedule = schedules.SCHEDULES[name]()
    times = np.array([0.95, 0.8, 0.6, 0.4, 0.2, 0.02]) * schedule.last
    grid = grids.from_times(schedule, times, getattr(schedule, end))
    x = jnp.asarray(np.random.RandomState(1).randn(3, 3, 2))
    state = bdia.invert(mixture, grid, x, gamma)
    np.testing.assert_allclose(bdia.regenerate(mixture, grid, state, gamma), x, rtol=0, atol=1e-11)
    # the noise is another one than plain DDIM's, whose inversion is not exact
    plain = bdia.regenerate(mixture, grid, state, 0.0)
    self.assertGreater(float(jnp.abs(plain - x).max()), 1e-3)

  def test_noise_to_image_to_the_same_noise(self):
    # the chain backwards from its own last two states, through the steps of the kernel, passes its
    # own states
    grid = grids.make(schedules.linear(), 8, 'uniform', 'first')
    x = jnp.asarray(flows.X_T)
    down = np.asarray(flows.sample(make(1.0), grid).path)
    kernel = bdia.inverse(1.0)._replace(init=lambda _: bdia.State(down[-2], down[-1]))
    plan, _ = kernel.plan(bdia.upward(grid), (4,))
    up = run(
      kernel,
      flows.DENOISER,
      *jax.tree.map(lambda row: row[1:], (bdia.upward(grid), plan)),
      x,
      lambda n: None,
      keep='all',
    )
    np.testing.assert_allclose(up.path[-1], x, rtol=0, atol=1e-9)
    np.testing.assert_allclose(up.path[:-1], down[:-2][::-1], rtol=0, atol=1e-9)

  def test_evaluations_of_the_inversion(self):
    grid = grids.make(schedules.linear(), 5, 'uniform')
    times = []

    def counting(x, time, cond):
      jax.debug.callback(lambda t: times.append(float(t)), time.t)
      return mixture(x, time, cond)

    state = bdia.invert(counting, grid, jnp.zeros((2, 3, 2)))
    jax.block_until_ready(state)
    jax.effects_barrier()
    self.assertEqual(
      sorted(times), sorted([*grid.t[1:], grid.t[-1]])
    )  # never at clean data; the cleanest time twice
    times.clear()
    jax.block_until_ready(bdia.regenerate(counting, grid, state))
    jax.effects_barrier()
    self.assertEqual(sorted(times), sorted(grid.t[1:]))

  def test_bad(self):
    with self.assertRaisesRegex(UserError, r'gamma must be in \[0, 1\], got 1.5'):
      samplers.make('bdia', dict(gamma=1.5))
    with self.assertRaisesRegex(UserError, r'gamma must be in \(0, 1\] to invert, got 0'):
      bdia.inverse(0.0)


if __name__ == '__main__':
  absltest.main()
