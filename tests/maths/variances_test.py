"""The variance that a network says, and the bound on the likelihood, in closed form."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import strategies
from scipy import stats

from gmm_diffusion import samplers
from gmm_diffusion.denoisers import exact
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import grids, marginals, schedules, variances
from helpers import cases

LINEAR = schedules.linear()
SHAPE = (2, 3, 1)


def row_of(table, n):
  return variances.Row(*(part[n : n + 1] for part in table))


class VariancesTest(cases.X64TestCase):
  def test_the_ends_are_the_variances_of_ddpm(self):
    grid = grids.make(LINEAR, 7, 'trailing')
    found = variances.rows(grid)
    for name, logs in (('small', found.log_tilde), ('large', found.log_beta)):
      plan, _ = samplers.make('ddpm', {'variance': name}, LINEAR).plan(grid, SHAPE)
      np.testing.assert_allclose(np.exp(0.5 * logs[:-1]), plan.rows.std[:-1])
    self.assertEqual(found.log_tilde[-1], found.log_tilde[-2])
    np.testing.assert_array_equal(found.ends, np.arange(7) == 6)
    share = jnp.array([0.0, 1.0, 0.5])
    one = variances.Row(*(part[3] for part in found))
    np.testing.assert_allclose(
      variances.log_variance(share, one),
      [one.log_tilde, one.log_beta, (one.log_tilde + one.log_beta) / 2],
    )

  @hypothesis.given(
    n=strategies.integers(1, 999), share=strategies.floats(-1, 2), away=strategies.floats(-1, 1)
  )
  @hypothesis.settings(max_examples=20)
  def test_the_bound_of_a_step_is_the_divergence_of_two_normal_distributions(self, n, share, away):
    table = variances.of_training(LINEAR)
    row = row_of(table, n)
    x0, t = np.full((1, *SHAPE), 0.25), grids.from_times(LINEAR, [n, n - 1])
    step = grids.StepGrid(*(level[:1] for level in t))
    tau = marginals.posterior_std(step, 1.0)
    weight = marginals.noise_weight(step, tau)
    mean = lambda x: marginals.reverse_mean(
      marginals.from_x0(np.full(x.shape, 0.7), x, step.now), step.a_s, weight
    )
    log_var = variances.log_variance(np.full((1, *SHAPE), share), row)
    std = float(np.exp(0.5 * log_var).ravel()[0])
    apart = float((mean(x0) - mean(x0 + away)).ravel()[0])
    q, p = float(tau[0]), std
    wanted = (np.log(p / q) + (q**2 + apart**2) / (2 * p**2) - 0.5) / np.log(2)
    found = variances.bits(x0, x0 + away, log_var, row)
    np.testing.assert_allclose(found, [wanted], rtol=1e-6, atol=1e-9)
    self.assertGreaterEqual(float(found[0]), -1e-9)

  def test_grey_levels_sum_to_one(self):
    table = variances.of_training(LINEAR)
    row = jax.tree.map(lambda part: np.repeat(part, 256), row_of(table, 0))
    self.assertEqual(row.ends[0], True)
    levels = (np.arange(256) / 127.5 - 1)[:, None]
    for mean, log_var in ((0.31, -7.0), (-0.99, -3.0), (1.4, 0.0)):
      bits = variances.bits(levels, np.full_like(levels, mean), np.full_like(levels, log_var), row)
      self.assertAlmostEqual(float(np.sum(2.0**-bits)), 1, places=6)
    one = variances.bits(
      levels[128:129], levels[128:129], np.array([[-9.0]]), row_of(table, 0)
    )  # fmt: skip
    wide = stats.norm(0, np.exp(-4.5)).cdf(1 / 255)
    self.assertAlmostEqual(float(one[0]), -np.log2(2 * wide - 1), places=9)

  def test_far_levels_keep_their_digits_on_both_sides(self):
    row = row_of(variances.of_training(LINEAR), 0)
    for away in (0.02, 0.1, 0.6):
      bits = [
        float(variances.bits(
          np.zeros((1, 1), np.float32), np.full((1, 1), sign * away, np.float32),
          np.full((1, 1), -9.5, np.float32), row,
        )[0])
        for sign in (-1, 1)
      ]  # fmt: skip
      std = np.exp(-4.75)
      wanted = -stats.norm.logcdf((1 / 255 - away) / std) - np.log(
        -np.expm1(
          stats.norm.logcdf((-1 / 255 - away) / std) - stats.norm.logcdf((1 / 255 - away) / std)
        )
      )
      np.testing.assert_allclose(bits, wanted / np.log(2), rtol=1e-4)

  def test_what_is_left_of_the_data_in_the_noise(self):
    time, x0 = LINEAR.at(999.0), np.full((2, *SHAPE), 0.5)
    a, b = time.a, time.b
    wanted = 0.5 * (a * 0.5 / b) ** 2 / np.log(2)
    np.testing.assert_allclose(variances.prior_bits(x0, time), [wanted] * 2)

  def test_least_where_the_variance_is_that_of_the_step(self):
    """The best variance of a step is beta~ + g^2 (x_0 - D)^2."""
    row = row_of(variances.of_training(LINEAR), 400)
    x0, found = np.zeros((1, *SHAPE)), np.full((1, *SHAPE), 0.3)
    slope = jax.grad(lambda log_var: jnp.sum(variances.bits(x0, found, log_var, row)))
    best = np.log(np.exp(row.log_tilde) + row.gain * 0.3**2)
    np.testing.assert_allclose(slope(np.full(x0.shape, best)), 0, atol=1e-12)
    self.assertGreater(np.min(slope(np.full(x0.shape, best + 0.1))), 0)

  def test_the_bound_of_gaussian_data_is_their_entropy(self):
    """In many steps, with the exact mean and the best variance, no more is lost than the last step
    loses."""
    deviation, count = 0.3, 4_000
    rows = variances.of_training(LINEAR)
    x0 = np.random.RandomState(0).randn(count, 1) * deviation
    x0 = np.round((np.clip(x0, -1, 1) + 1) * 127.5) / 127.5 - 1
    eps, total = np.random.RandomState(1).randn(count, 1), 0.0
    denoise = exact.gaussian(0.0, deviation**2)
    for n in [*range(40), *range(45, 1000, 10)]:  # there each stands for ten
      time = LINEAR.at(float(n))
      x = time.a * x0 + time.b * eps
      found = np.asarray(denoise(jnp.asarray(x), time, None).x0)
      row = row_of(rows, n)
      loss = deviation**2 * time.b**2 / (time.a**2 * deviation**2 + time.b**2)
      log_var = np.log(np.exp(row.log_tilde) + row.gain * loss)
      many = variances.Row(*(np.repeat(part, count) for part in row))
      each = variances.bits(x0, found, np.broadcast_to(log_var, (count, 1)), many)
      total += float(np.mean(each)) * (1 if n < 40 else 10)
    entropy = np.log2(deviation * np.sqrt(2 * np.pi * np.e) * 127.5)
    self.assertAlmostEqual(total, entropy, delta=0.1)


class SamplerTest(cases.X64TestCase, parameterized.TestCase):
  def says(self, share):
    plain = exact.gaussian(0.1, 0.3)
    return lambda x, time, cond: plain(x, time, cond)._replace(share=jnp.full_like(x, share))

  @parameterized.parameters(('small', 0.0), ('large', 1.0))
  def test_shares_0_and_1_are_the_fixed_variances(self, name, share):
    grid = grids.make(LINEAR, 6, 'trailing')
    draw = lambda name, denoiser: (
      cases.sample(
        samplers.make('ddpm', {'variance': name}, LINEAR), denoiser, grid, SHAPE, np.arange(3)
      ).x
    )
    wanted = draw(name, exact.gaussian(0.1, 0.3))
    np.testing.assert_allclose(draw('learned', self.says(share)), wanted, atol=1e-12)
    other = draw('learned', self.says(0.5))
    self.assertGreater(np.max(np.abs(other - wanted)), 1e-3)

  def test_a_denoiser_that_says_none(self):
    kernel = samplers.make('ddpm', {'variance': 'learned'}, LINEAR)
    with self.assertRaisesRegex(UserError, "'learned' needs a network that says it"):
      cases.sample(
        kernel, exact.gaussian(0.1, 0.3), grids.make(LINEAR, 3, 'trailing'), SHAPE, np.arange(2)
      )


if __name__ == '__main__':
  absltest.main()
