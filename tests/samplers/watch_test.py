"""How much x_0 moves, against the published numbers, a closed form, and known hallucinations."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from gmm_diffusion import samplers
from gmm_diffusion.denoisers import exact
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import grids, marginals, schedules
from gmm_diffusion.samplers import watch
from helpers import cases

WIDE = (0.0, 1e9)


def ranks_apart(score, positive):
  """AUC: how often a positive scores above another, ties half."""
  order = score[positive][:, None] - score[~positive][None]
  return np.mean((order > 0) + 0.5 * (order == 0))


class WatchTest(cases.X64TestCase):
  @parameterized.parameters('1d', '2d')
  def test_published_values(self, which):
    """Made-up predictions along 40 calls; the last 10 count."""
    golden = cases.golden('g10_hallucination')
    told = golden[f'pred_{which}'].reshape(12, 40, -1)
    grid = grids.make(schedules.linear(), 40, 'trailing')
    level = grid.b_t / grid.a_t

    def denoise(x, time, cond):
      n = jnp.argmin(jnp.abs(jnp.asarray(grid.t) - time.t))
      return marginals.from_x0(x, cond[:, n], time)

    kernel = watch.watched(samplers.make('ddim', {}), (0.0, level[30] * 1.0001))
    plan, _ = kernel.plan(grid, told.shape[2:])
    state = samplers.run(
      kernel,
      denoise,
      grid,
      plan,
      jnp.zeros((12, *told.shape[2:])),
      lambda n: None,
      jnp.asarray(told),
    ).state
    np.testing.assert_allclose(watch.spread(state), golden[f'metric_{which}'], atol=1e-12)
    if which == '2d':
      kept = np.argsort(np.asarray(watch.spread(state)))[:8]  # the steadiest first
      np.testing.assert_array_equal(kept, golden['kept_2d'])

  def test_gaussian(self):
    """x_0 of N(m, v) along the exact path is known at each level."""
    m, v, grid = 0.3, 0.5, grids.make(schedules.linear(), 400, 'trailing')
    kernel = watch.watched(samplers.make('heun', {}))
    plan, _ = kernel.plan(grid, (3,))
    x = cases.sample(kernel, exact.gaussian(np.full(3, m), v), grid, (3,), np.arange(4))
    V = grid.a_t**2 * v + grid.b_t**2
    inside = (grid.b_t >= 0.01 * grid.a_t) & (grid.b_t <= 0.1 * grid.a_t)
    path = (grid.a_t * v / V * np.sqrt(V / V[0]))[inside]
    first = np.asarray(x.state.mean) - m  # x_0 - m is the same multiple of x_T - a_T m everywhere
    expected = (first / path.mean()) ** 2 * path.var()
    np.testing.assert_allclose(watch.spread(x.state), expected.mean(1), rtol=0.02)

  def test_the_kernel_is_the_same(self):
    grid = grids.make(schedules.linear(), 50, 'trailing')
    denoiser = exact.mixture(jnp.array([[-1.0], [1.0]]), 0.01)
    for name in ('ddim', 'unipc', 'heun', 'ddpm'):
      plain = samplers.make(name, {}, schedules.linear())
      one = cases.sample(plain, denoiser, grid, (1,), np.arange(5))
      two = cases.sample(watch.watched(plain, WIDE), denoiser, grid, (1,), np.arange(5))
      np.testing.assert_array_equal(one.x, two.x)
      self.assertEqual(int(one.nfe), int(two.nfe))

  @parameterized.parameters(0.0, 1.0)
  def test_it_finds_hallucinations_in_the_right_window(self, eta):
    """Modes at -1, 0, 1 of deviation .05, assigned by a blur of .3: hundreds of samples lie beyond
    5 deviations of any mode."""
    modes, grid = np.array([-1.0, 0.0, 1.0]), grids.make(schedules.linear(), 200, 'trailing')
    denoiser = exact.mixture(jnp.asarray(modes)[:, None], 0.05**2, soften=0.3)

    def auc(window):
      kernel = watch.watched(samplers.make('ddim', {'eta': eta}), window)
      found = cases.sample(kernel, denoiser, grid, (1,), np.arange(4000), seed=2)
      far = np.abs(np.asarray(found.x) - modes).min(1) > 0.25
      self.assertGreater(far.sum(), 40)
      return ranks_apart(np.asarray(watch.spread(found.state)), far)

    self.assertGreater(auc(watch.WINDOW), 0.88)
    self.assertLess(auc((0.05, 0.5)), 0.8)

  def test_softening_makes_them(self):
    modes, grid = np.array([-1.0, 0.0, 1.0]), grids.make(schedules.linear(), 200, 'trailing')
    far = []
    for soften in (0.0, 0.2, 0.3):
      denoiser = exact.mixture(jnp.asarray(modes)[:, None], 0.05**2, soften=soften)
      x = cases.sample(samplers.make('ddim', {}), denoiser, grid, (1,), np.arange(4000)).x
      far.append(np.mean(np.abs(np.asarray(x) - modes).min(1) > 0.25))
    self.assertEqual(far[0], 0)
    self.assertLess(far[1], far[2])
    self.assertBetween(far[2], 0.03, 0.1)  # .06 when it was planned

  def test_too_few_calls(self):
    kernel = watch.watched(samplers.make('ddim', {}))
    with self.assertRaisesRegex(
      UserError, r'\d of 10 steps start at b / a in \[0.01, 0.1\], and at'
    ):
      kernel.plan(grids.make(schedules.linear(), 10, 'trailing'), (1,))


if __name__ == '__main__':
  absltest.main()
