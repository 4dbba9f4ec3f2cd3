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

  def test_interpolation_ends_at_both_images(self):
    grid = grids.from_times(schedules.linear(), [950, 700, 400, 100, 20], 0)
    first, last = jnp.asarray(np.random.RandomState(2).randn(2, 3, 3, 2))
    found = bdia.interpolate(mixture, grid, first, last, [0.0, 0.3, 1.0], 0.9)
    np.testing.assert_allclose(found[0], first, rtol=0, atol=1e-11)
    np.testing.assert_allclose(found[2], last, rtol=0, atol=1e-11)
    self.assertGreater(float(jnp.abs(found[1] - first).max()), 0.01)
    same = bdia.interpolate(mixture, grid, first, first, [0.3], 0.9)[0]
    np.testing.assert_allclose(same, first, rtol=0, atol=1e-11)

  def test_interpolation_of_gaussian_data(self):
    """Where all maps are affine, so is the generated image in the noise, and half way has the
    weight 1 / (2 cos(angle / 2)) of both."""
    denoiser = exact.gaussian(jnp.array([0.3, -0.2, 0.1, 0.4]), 0.5)
    grid = grids.from_times(schedules.linear(), [950, 700, 400, 100, 20], 0)
    first, last = jnp.asarray(np.random.RandomState(2).randn(2, 3, 4))
    states = [bdia.invert(denoiser, grid, x, 0.8) for x in (first, last)]
    nothing = bdia.regenerate(denoiser, grid, jax.tree.map(jnp.zeros_like, states[0]), 0.8)
    cosine = jnp.sum(states[0].x * states[1].x, 1) / (
      jnp.linalg.norm(states[0].x, axis=1) * jnp.linalg.norm(states[1].x, axis=1)
    )
    weight = (1 / (2 * jnp.cos(jnp.arccos(cosine) / 2)))[:, None]
    expected = weight * (first + last) + (1 - 2 * weight) * nothing
    found = bdia.interpolate(denoiser, grid, first, last, [0.5])[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)

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
