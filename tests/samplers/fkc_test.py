"""Feynman-Kac correctors against closed forms and quadrature."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy import stats

from gmm_diffusion.denoisers import exact
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import grids, noise, schedules
from gmm_diffusion.maths.noise import StepNoise
from gmm_diffusion.samplers import fkc
from gmm_diffusion.types import Prediction, Time
from helpers import cases

EDM = schedules.edm(sigma_min=0.005, sigma_max=20.0)
X = np.linspace(-6, 6, 24001)


def karras(steps):
  return grids.make(EDM, steps, 'karras')


def variance_in_the_limit(grid, v, beta, scheme):
  """That of infinitely many particles on N(0, v), moved and weighted by the kernel's own rows: the
  law stays Gaussian, so its precision is followed. There x_0 = v / V x and eps = sigma / V x."""
  plan, _ = fkc.fkc([beta], scheme=scheme).plan(grid, (2, 1))
  sigma, rows = grid.b_t / grid.a_t, plan.rows
  P = sigma[0] ** 2 / beta
  for n in range(len(sigma)):
    V = v + sigma[n] ** 2
    P = 1 / (1 / P - 2 * rows.weight[n] * (beta**2 - beta) * sigma[n] ** 2 / V**2)
    kept = rows.x0[n] * (beta * v / V + 1 - beta) + rows.eps[n] * beta * sigma[n] / V
    P = kept**2 * P + rows.std[n] ** 2
  return P


def mixture(means, variances, priors):
  denoiser = exact.mixture(jnp.asarray(means)[:, None], np.asarray(variances), jnp.log(priors))
  density = sum(p * stats.norm.pdf(X, m, v**0.5) for m, v, p in zip(means, variances, priors))
  return denoiser, density


ONE = mixture(np.array([-1.0, 1.2]), np.array([0.1, 0.2]), np.array([0.4, 0.6]))
TWO = mixture(np.array([0.8, 0.0]), np.array([0.5, 1.0]), np.array([0.5, 0.5]))


class ClosedFormTest(cases.X64TestCase):
  @parameterized.parameters(
    # the table of errors that the scheme was chosen by, v = 0.7, in 50, 100, 200 and 400 steps
    (4.0, 'source', (0.20, 0.081, 0.038, 0.018)),
    (4.0, 'geometric', (0.035, -0.010, -0.009, -0.005)),
    (2.0, 'source', (0.17, 0.077, 0.037, 0.018)),
    (2.0, 'geometric', (0.001, -0.006, -0.004, -0.003)),
    (0.5, 'source', (0.16, 0.075, 0.037, 0.018)),
    (0.5, 'geometric', (-0.010, -0.004, -0.002, -0.001)),
  )
  def test_variance_of_a_tempered_gaussian_in_the_limit(self, beta, scheme, errors):
    for steps, error in zip((50, 100, 200, 400), errors):
      limit = variance_in_the_limit(karras(steps), 0.7, beta, scheme)
      rounding = 0.006 if error > 0.1 else 0.0006
      self.assertAlmostEqual(limit / (0.7 / beta) - 1, error, delta=rounding)

  @parameterized.parameters((0.5, 'geometric'), (2.0, 'source'), (2.0, 'geometric'))
  def test_variance_of_a_tempered_gaussian(self, beta, scheme):
    steps = 50  # at beta 4 the weights of few steps vary too much for so many particles
    limit = variance_in_the_limit(karras(steps), 0.7, beta, scheme)
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


class GuidanceTest(cases.X64TestCase):
  @parameterized.product(scale=[0.0, 1.0], scheme=fkc.SCHEMES)
  def test_scales_0_and_1_are_the_plain_sampler_of_one_model(self, scale, scheme):
    """(2) alone of that model with the same noise; the last step has equal weights, so it only
    turns the particles."""
    grid, ids = karras(20), np.arange(3)
    models, powers = [TWO[0], ONE[0]], [1 - scale, scale]
    found = fkc.draw(models, powers, EDM, (1,), ids, 0, 8, grid=grid, scheme=scheme)
    np.testing.assert_allclose(found.log_normaliser, np.zeros(3), atol=1e-6)
    self.assertFalse(np.any(found.resampled[:-1]))
    keys = noise.sample_keys(0, ids)
    x = grid.b_t[0] * noise.initial(keys, (8, 1)).reshape(24, 1)
    for n in range(20):
      sigma, following = grid.b_t[n], grid.b_s[n]
      h = sigma**2 - following**2
      tau = np.sqrt(h * following / sigma if scheme == 'geometric' else h * (n < 19))
      eps = models[int(scale)](x, Time(grid.t[n], 1.0, sigma), None).eps
      x = x - h / sigma * eps + tau * noise.at_step(keys, n, (8, 1)).normal.reshape(24, 1)
    plain = np.sort(x.reshape(3, 8), 1)
    np.testing.assert_allclose(np.sort(found.particles[..., 0], 1), plain, atol=1e-5)

  def test_equal_branches_need_no_weights_at_any_scale(self):
    found = fkc.draw([ONE[0], ONE[0]], [-2.0, 3.0], EDM, (1,), np.arange(3), grid=karras(20))
    alone = fkc.draw([ONE[0]], [1.0], EDM, (1,), np.arange(3), grid=karras(20))
    np.testing.assert_allclose(found.particles, alone.particles, atol=1e-4)
    np.testing.assert_allclose(found.log_normaliser, np.zeros(3), atol=1e-4)


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
    (dict(powers=[]), r'sum above 0, got \(\)'),
    (dict(powers=[1.0, np.nan]), r'sum above 0, got \(1.0, nan\)'),
    (dict(powers=[1.0], resample=np.nan), r'resample must be in \[0, 1\], got nan'),
    (dict(powers=[1.0], resample=2.0), r'resample must be in \[0, 1\], got 2'),
    (dict(powers=[1.0], scheme='heun'), "unknown scheme 'heun'; valid: geometric, source"),
  )
  def test_bad_options(self, options, message):
    with self.assertRaisesRegex(UserError, message):
      fkc.fkc(**options)

  def test_bad_groups_and_grids(self):
    with self.assertRaisesRegex(UserError, 'at least 2 particles'):
      fkc.fkc([1.0]).plan(karras(5), (1, 3))
    for particles in (1, 0, -3):
      with self.assertRaisesRegex(UserError, 'at least 2 particles'):
        fkc.draw([ONE[0]], [1.0], EDM, (1,), np.arange(1), 0, particles, grid=karras(5))
    with self.assertRaisesRegex(UserError, 'need at least 2 steps: a single one has no weights'):
      fkc.fkc([2.0]).plan(karras(1), (4, 3))
    with self.assertRaisesRegex(UserError, 'steps must be in .*, got 0'):
      fkc.draw([ONE[0]], [1.0], EDM, (1,), np.arange(1), steps=0, grid='karras')
    with self.assertRaisesRegex(UserError, 'something of the data is left'):
      fkc.fkc([1.0]).plan(grids.make(schedules.rectified_flow(), 5, 'uniform'), (4, 3))
    with self.assertRaisesRegex(UserError, '1 denoisers need as many powers, got 2'):
      fkc.draw([ONE[0]], [1, 1], EDM, (1,), np.arange(1))

  def test_what_is_not_finite_is_refused(self):
    def broken(x, time, cond):  # the second group's label
      found = ONE[0](x, time, None)
      return found._replace(eps=jnp.where(cond[:, None] == 1, jnp.nan, found.eps))

    draw = lambda denoiser, power: fkc.draw(
      [denoiser], [power], EDM, (1,), np.arange(3), grid=karras(5), cond=jnp.arange(3)
    )
    with self.assertRaisesRegex(UserError, '^1 of 3 groups have particles or weights that are not'):
      draw(broken, 1.0)
    with self.assertRaisesRegex(UserError, '^3 of 3 groups .* take more steps or smaller powers$'):
      draw(ONE[0], 1e20)  # so few steps take the particles out of range


if __name__ == '__main__':
  absltest.main()
