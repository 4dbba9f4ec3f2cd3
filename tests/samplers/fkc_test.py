"""Feynman-Kac correctors against closed forms and quadrature."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy import stats

from gmm_diffusion.denoisers import exact
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import grids, schedules
from gmm_diffusion.maths.noise import StepNoise
from gmm_diffusion.samplers import fkc
from gmm_diffusion.types import Prediction, Time
from helpers import cases

EDM = schedules.edm(sigma_min=0.005, sigma_max=20.0)
X = np.linspace(-6, 6, 24001)


def karras(steps):
  return grids.make(EDM, steps, 'karras')


def variance_in_the_limit(grid, v, beta, scheme):
  """That of infinitely many particles on N(0, v): the law stays Gaussian, so its precision is
  followed."""
  sigma = grid.b_t / grid.a_t
  following = grid.b_s / grid.a_s
  P = sigma[0] ** 2 / beta
  for n in range(len(sigma)):
    h, V = sigma[n] ** 2 - following[n] ** 2, v + sigma[n] ** 2
    before = sigma[n - 1] ** 2 - sigma[n] ** 2 if n else 0
    last = n == len(sigma) - 1
    after = 0 if last else h
    c = after / 2 if scheme == 'source' else (before + after) / 4
    P = 1 / (1 / P - 2 * c * (beta**2 - beta) / V**2)
    noise = h * following[n] / sigma[n] if scheme == 'geometric' else h * (not last)
    P = (1 - h * beta / V) ** 2 * P + noise
  return P


def mixture(means, variances, priors):
  denoiser = exact.mixture(jnp.asarray(means)[:, None], np.asarray(variances), jnp.log(priors))
  density = sum(p * stats.norm.pdf(X, m, v**0.5) for m, v, p in zip(means, variances, priors))
  return denoiser, density


ONE = mixture(np.array([-1.0, 1.2]), np.array([0.1, 0.2]), np.array([0.4, 0.6]))
TWO = mixture(np.array([0.8, 0.0]), np.array([0.5, 1.0]), np.array([0.5, 0.5]))


class ClosedFormTest(cases.X64TestCase):
  @parameterized.parameters(
    # the table of errors that the scheme was chosen by, v = 0.7
    *[(4.0, 'source', n, e) for n, e in ((50, 0.20), (100, 0.081), (200, 0.038))],
    *[(4.0, 'geometric', n, e) for n, e in ((50, 0.035), (100, -0.010), (200, -0.009))],
    *[(0.5, 'geometric', n, e) for n, e in ((50, -0.010), (100, -0.004))],
    *[(2.0, 'source', 50, 0.17), (2.0, 'geometric', 50, 0.001)],
  )
  def test_variance_of_a_tempered_gaussian(self, beta, scheme, steps, error):
    limit = variance_in_the_limit(karras(steps), 0.7, beta, scheme)
    self.assertAlmostEqual(limit / (0.7 / beta) - 1, error, delta=0.006)
    if beta > 2 or steps > 50:
      return  # at beta 4 the weights of few steps vary too much for 4,096 particles
    found = fkc.draw(
      [exact.gaussian(np.zeros(1), 0.7)], [beta], EDM, (1,), np.arange(32), 0, 2048,
      grid=karras(steps), scheme=scheme,
    )  # fmt: skip
    each = np.mean(found.particles**2, (1, 2)) / limit  # groups are independent
    self.assertAlmostEqual(each.mean(), 1, delta=4 * each.std() / np.sqrt(32))
    self.assertLess(each.std(), 0.2)

  def test_normaliser_of_a_product_of_gaussians(self):
    """E[w] is the ratio of the integrals of p_1 p_2 at the end and at the start."""
    (m1, v1), (m2, v2) = (0.3, 0.5), (-0.4, 0.9)
    product = lambda s: stats.norm.logpdf(m1, m2, np.sqrt(v1 + v2 + 2 * s))
    gaussians = [exact.gaussian(np.full(1, m), v) for m, v in ((m1, v1), (m2, v2))]
    found = fkc.draw(gaussians, [1, 1], EDM, (1,), np.arange(16), 1, 1024, grid=karras(200))
    mean, start = np.mean(np.exp(found.log_normaliser)), karras(200).b_t[0] ** 2
    self.assertAlmostEqual(np.log(mean), product(0.0) - product(start), delta=0.05)
    v = 1 / (1 / v1 + 1 / v2)
    self.assertAlmostEqual(np.mean(found.particles), v * (m1 / v1 + m2 / v2), delta=0.03)
    self.assertAlmostEqual(np.var(found.particles) / v, 1, delta=0.05)

  def test_factors_that_make_one_model_have_no_weights(self):
    denoiser = ONE[0]
    found = fkc.draw([denoiser, denoiser], [0.3, 0.7], EDM, (1,), np.arange(3), grid=karras(20))
    np.testing.assert_allclose(found.log_normaliser, np.zeros(3), atol=1e-5)
    np.testing.assert_allclose(found.sizes, np.full((20, 3), 8.0), atol=1e-4)
    alone = fkc.draw([denoiser], [1.0], EDM, (1,), np.arange(3), grid=karras(20))
    np.testing.assert_allclose(found.particles, alone.particles, atol=1e-4)
    self.assertFalse(np.any(alone.resampled[:-1]))


class QuadratureTest(cases.X64TestCase):
  @parameterized.named_parameters(
    ('power_2', [ONE], [2.0]),
    ('power_half', [ONE], [0.5]),
    ('product', [ONE, TWO], [1.0, 1.0]),
    ('guidance_2', [TWO, ONE], [-1.0, 2.0]),
  )
  def test_mean_deviation_and_side(self, models, powers):
    density = np.prod([p**beta for (_, p), beta in zip(models, powers)], 0)
    density = density / density.sum()
    denoisers = [denoiser for denoiser, _ in models]
    found = fkc.draw(denoisers, powers, EDM, (1,), np.arange(24), 3, 512, grid=karras(100))
    groups = np.asarray(found.particles)[..., 0]
    for of in (lambda x: x, lambda x: x**2, lambda x: (x > 0).astype(float)):
      each = of(groups).mean(1)  # groups are independent; 4 standard errors and the steps' error
      self.assertAlmostEqual(
        each.mean(), np.sum(density * of(X)), delta=4 * each.std() / np.sqrt(24) + 0.02
      )
    drawn = np.asarray(found.x)[:, 0]
    self.assertLessEqual(set(drawn.tolist()), set(groups.reshape(-1).tolist()))

  def test_without_weights_it_is_something_else(self):
    """Resampling matters: guidance without it puts another share on the right."""
    density = ONE[1] ** 2 / TWO[1]
    right = np.sum(density * (X > 0)) / density.sum()
    drawn = lambda beta: fkc.draw(
      [TWO[0], ONE[0]], beta, EDM, (1,), np.arange(24), 3, 512, grid=karras(100)
    )
    self.assertAlmostEqual(np.mean(drawn([-1.0, 2.0]).particles > 0), right, delta=0.03)
    self.assertGreater(abs(np.mean(drawn([0.0, 1.0]).particles > 0) - right), 0.05)


class GroupTest(cases.X64TestCase):
  def test_a_sample_does_not_depend_on_its_batch(self):
    draw = lambda ids: fkc.draw([ONE[0]], [3.0], EDM, (1,), ids, grid=karras(30))
    together, alone = draw(np.arange(5)), draw(np.array([3]))
    np.testing.assert_allclose(alone.particles[0], together.particles[3], atol=1e-6)
    self.assertEqual(together.nfe, 8 * 30)
    self.assertEqual(together.x.shape, (5, 1))
    self.assertTrue(np.all(together.resampled[-1]))

  def test_the_drawn_particle_is_any_of_them(self):
    """Which slot is drawn says nothing: with no weights each is drawn equally often."""
    kernel = fkc.fkc([1.0])
    plan, _ = kernel.plan(karras(2), (4, 1))
    last = [leaf[-1] for leaf in plan.rows]
    row = type(karras(2))(*(jnp.asarray(leaf[-1]) for leaf in karras(2)))
    x = jnp.broadcast_to(jnp.arange(4.0)[None, :, None], (4000, 4, 1))
    uniform = jnp.asarray(np.random.RandomState(0).rand(4000))
    weights = jnp.log(jnp.array([0.1, 0.2, 0.3, 0.4]))
    state = fkc.State(x, jnp.broadcast_to(weights[None], (4000, 4)), jnp.zeros(4000))
    same = lambda x, time: Prediction(x[:, None], jnp.zeros_like(x)[:, None])
    noise = StepNoise(jnp.zeros_like(x), uniform)
    out, _ = kernel.step(state, row, fkc.Row(*map(jnp.asarray, last)), (), same, noise)
    shares = np.bincount(np.asarray(out.x[:, 0, 0]).astype(int), minlength=4) / 4000
    np.testing.assert_allclose(shares, [0.1, 0.2, 0.3, 0.4], atol=0.03)

  def test_branches(self):
    labelled = lambda x, time, cond: exact.gaussian(np.zeros(1), 0.7)(x + cond[:, None], time, None)
    plain, conditional = fkc.branches(labelled, 10)
    time = Time(*(level[1] for level in karras(5).now))
    found = fkc.factors(plain, conditional)(jnp.zeros((2, 3, 1)), time, jnp.array([1.0, 2.0]))
    self.assertEqual(found.x0.shape, (2, 2, 3, 1))
    np.testing.assert_allclose(found.x0[0, 0] / found.x0[0, 1], np.full((3, 1), 10.0))
    np.testing.assert_allclose(found.x0[1, 0] / found.x0[1, 1], np.full((3, 1), 5.0))

  @parameterized.parameters(
    (dict(powers=[1.0, -1.0]), r'sum above 0, got \(1.0, -1.0\)'),
    (dict(powers=[1.0], resample=2.0), r'resample must be in \[0, 1\], got 2'),
    (dict(powers=[1.0], scheme='heun'), "unknown scheme 'heun'; valid: geometric, source"),
  )
  def test_bad_options(self, options, message):
    with self.assertRaisesRegex(UserError, message):
      fkc.fkc(**options)

  def test_bad_groups_and_grids(self):
    with self.assertRaisesRegex(UserError, 'at least 2 particles'):
      fkc.fkc([1.0]).plan(karras(5), (1, 3))
    with self.assertRaisesRegex(UserError, 'something of the data is left'):
      fkc.fkc([1.0]).plan(grids.make(schedules.rectified_flow(), 5, 'uniform'), (4, 3))
    with self.assertRaisesRegex(UserError, '1 denoisers need as many powers, got 2'):
      fkc.draw([ONE[0]], [1, 1], EDM, (1,), np.arange(1))


if __name__ == '__main__':
  absltest.main()
