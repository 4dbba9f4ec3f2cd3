"""iPNDM: Adams-Bashforth's order where steps are equal, and DualFast as its order 2."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from gmm_diffusion import samplers
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import grids, schedules
from gmm_diffusion.samplers import ipndm
from helpers import cases, flows


class OrderTest(cases.X64TestCase):
  @parameterized.parameters((1, 40), (2, 40), (3, 160), (4, 160))
  def test_on_equal_steps(self, order, fewest):
    # equal steps in rho = b / a; the first steps of lower order are few and keep order 2 at most,
    # so higher orders are fitted against their own start
    kernel = samplers.make('ipndm', dict(order=order))
    even = lambda n: flows.grid_through(np.ones(n + 1), np.linspace(2.0, 0.5, n + 1))
    found = flows.fitted_order(kernel, [even(fewest * k) for k in (1, 2, 4)])
    self.assertAlmostEqual(found, min(order, 2), delta=0.3)

  @parameterized.parameters(1, 2, 3, 4)
  def test_coefficients_integrate_polynomials(self, order):
    # over [0, 1] from values at 0, -1, -2, ...: exact up to degree order - 1
    later = np.array(ipndm.ADAMS_BASHFORTH[order - 1])
    c = np.append(1 - later.sum(), later)
    for degree in range(order):
      self.assertAlmostEqual(c @ (-np.arange(order)) ** float(degree), 1 / (degree + 1), places=12)


class DualFastTest(cases.X64TestCase):
  def test_order_two_is_ddim_with_half_a_difference_of_eps(self):
    grid = grids.make(schedules.linear(), 6, 'trailing')
    found = flows.sample(samplers.make('ipndm', dict(order=2, extrapolate=False)), grid).x
    x, before = jnp.asarray(flows.X_T), None
    for n in range(6):
      time, end = (type(t)(*(level[n] for level in t)) for t in (grid.now, grid.next))
      now = flows.DENOISER(x, time, None)
      eps = now.eps if before is None else now.eps + 0.5 * (now.eps - before)
      x = end.a / time.a * x + (end.b - end.a * time.b / time.a) * eps
      before = now.eps
    np.testing.assert_allclose(found, x, atol=1e-12)

  def test_order(self):
    with self.assertRaisesRegex(UserError, 'order must be in 1..4 for this sampler, got 5'):
      samplers.make('ipndm', dict(order=5))


if __name__ == '__main__':
  absltest.main()
