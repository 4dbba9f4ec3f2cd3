"""Conversions and kernel deviations."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from gmm_diffusion.maths import grids, marginals, schedules
from gmm_diffusion.types import Time
from helpers import cases


class MarginalsTest(cases.X64TestCase):
  @parameterized.parameters(*marginals.PREDICTIONS)
  def test_every_prediction_recovers_x0_and_eps(self, kind):
    # any target that training asks for must lead back to what was diffused, for any (a, b)
    @settings(deadline=None, max_examples=50)
    @given(st.floats(0.05, 2), st.floats(0.05, 2), st.integers(0, 1000))
    def check(a, b, seed):
      random = np.random.RandomState(seed)
      x0, eps = jnp.asarray(random.randn(3, 2, 2)), jnp.asarray(random.randn(3, 2, 2))
      time = Time(0.0, np.float64(a), np.float64(b))
      x = marginals.diffuse(x0, eps, time)
      found = marginals.PREDICTIONS[kind](x, marginals.target(kind, x0, eps, time), time)
      np.testing.assert_allclose(found.x0, x0, atol=1e-10)
      np.testing.assert_allclose(found.eps, eps, atol=1e-10)

    check()

  def test_levels_may_differ_between_samples(self):
    x0, eps = jnp.ones((2, 3, 1)), 2 * jnp.ones((2, 3, 1))
    x = marginals.diffuse(x0, eps, Time(0, np.array([1.0, 0.5]), np.array([0.0, 3.0])))
    np.testing.assert_allclose(x[:, 0, 0], [1.0, 6.5])

  def test_eta_one_is_the_ddpm_posterior_variance(self):
    betas = np.linspace(1e-4, 0.02, 1000)
    abar = np.cumprod(1 - betas)
    grid = grids.make(schedules.linear(), 1000, 'uniform')
    before = np.append(abar[::-1][1:], 1.0)
    expected = betas[::-1] * (1 - before) / (1 - abar[::-1])  # DDPM eq. 7
    np.testing.assert_allclose(
      marginals.posterior_std(grid, 1.0) ** 2, expected, rtol=1e-7, atol=1e-18
    )

  def test_std_is_linear_in_eta_and_bounded(self):
    for schedule in (schedules.linear(), schedules.rectified_flow(), schedules.edm()):
      grid = grids.make(schedule, 10, 'uniform')
      tau = marginals.posterior_std(grid, 1.0)
      np.testing.assert_allclose(marginals.posterior_std(grid, 0.3), 0.3 * tau)
      self.assertTrue(np.all(tau <= grid.b_s))
      np.testing.assert_array_equal(marginals.flow_std(grid, 1.0), grid.b_s)


if __name__ == '__main__':
  absltest.main()
