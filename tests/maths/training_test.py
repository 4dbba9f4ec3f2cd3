"""Weights of noise levels and how often they are drawn, against their closed forms."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given
from hypothesis import strategies as st

from gmm_diffusion.denoisers import exact
from gmm_diffusion.maths import marginals, schedules, training
from gmm_diffusion.types import StepGrid, Time
from helpers import cases


def times_of(process):
  return process.at(process.training_times)


def at(sigma):
  """The time of b / a = sigma with a^2 + b^2 = 1."""
  a = 1 / np.sqrt(1 + sigma**2)
  return Time(sigma, a, sigma * a)


class AverageTest(parameterized.TestCase):
  @parameterized.parameters(0.25, 0.1, 0.05)
  def test_power_average(self, width):
    """Updates count by a power of their number, and the profile has the width that was asked."""
    T = 4000
    keep = 1 - np.asarray(training.power_share(width, np.arange(1, T + 1)), np.float64)
    counts = (1 - keep) * np.append(np.cumprod(keep[:0:-1])[::-1], 1)  # each kept by all after it
    self.assertAlmostEqual(counts.sum(), 1, places=6)  # the first update forgets what was before
    share = np.arange(1, T + 1) / T
    mean = np.sum(counts * share)
    self.assertAlmostEqual(np.sqrt(np.sum(counts * (share - mean) ** 2)), width, delta=1e-3)
    gamma = 1 / (1 - mean) - 2  # of a profile s^gamma, whose mean is (gamma + 1) / (gamma + 2)
    np.testing.assert_allclose(counts[T // 2] / counts[T // 4], 2**gamma, rtol=0.05)

  def test_power_average_in_long_runs(self):
    step = 10_000_000
    gamma = np.roots([1, 7, 16 - 100, 12 - 100]).real.max()  # width 0.1
    found = training.power_share(0.1, step)
    np.testing.assert_allclose(found, (gamma + 1) / step, rtol=1e-3)


class WeightsTest(parameterized.TestCase):
  @parameterized.parameters(
    ('eps', lambda snr: np.minimum(snr, 5) / snr),
    ('x0', lambda snr: np.minimum(snr, 5)),
    ('v', lambda snr: np.minimum(snr, 5) / (snr + 1)),
  )
  def test_min_snr_as_published(self, kind, expected):
    times = times_of(schedules.cosine(100))
    found = training.of_output(training.min_snr(times), kind, times)
    np.testing.assert_allclose(found, expected((times.a / times.b) ** 2), rtol=1e-9)

  def test_p2_of_a_variance_preserving_schedule(self):
    times = times_of(schedules.linear(100))  # 1 + SNR = 1 / b^2
    np.testing.assert_allclose(training.p2(times), times.b**2, rtol=1e-9)
    np.testing.assert_allclose(training.p2(times, 0.5), times.b, rtol=1e-9)

  def test_a_flow_has_no_signal_at_its_end(self):
    times = times_of(schedules.rectified_flow())
    found = training.of_output(training.min_snr(times), 'velocity', times)
    # the x_0 error of a velocity is t, since a + b = 1
    expected = np.minimum(times.a**2, 5 * times.b**2)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    self.assertEqual(found[-1], 0)


class TimesTest(parameterized.TestCase):
  def test_log_normal(self):
    times = times_of(schedules.edm())
    chance = training.log_normal(times, -1.2, 1.2)
    self.assertAlmostEqual(chance.sum(), 1)
    level = np.log(times.b)
    mean = (chance * level).sum()  # the tails beyond [0.002, 80] hold 2e-5
    self.assertAlmostEqual(mean, -1.2, delta=1e-3)
    self.assertAlmostEqual((chance * (level - mean) ** 2).sum(), 1.44, delta=2e-3)

  def test_log_normal_of_a_flow_is_logit_normal(self):
    times = times_of(schedules.rectified_flow())
    below = training.log_normal(times, 0.0, 1.0).cumsum()
    self.assertAlmostEqual(below[499], 0.5, delta=2e-3)  # t = 1/2 is the median
    self.assertAlmostEqual(below[730], 0.8413, delta=2e-3)  # logit(0.731) = 1

  @given(st.floats(0, 0.99), st.integers(1, 50))
  def test_spread_is_even(self, first, size):
    u = np.sort(training.spread(first, np.arange(size), size))
    self.assertTrue(np.all((u >= 0) & (u < 1)))
    np.testing.assert_allclose(np.diff(u), 1 / size, atol=1e-9)


class NoisyItemsTest(cases.X64TestCase):
  def published(self, kind):
    """x_0, x_t, E[x_n | x_t], and the grid of the steps from t to n."""
    golden = cases.golden('g10_ambient')
    if kind == 'vp':
      b_n, b_t = golden['b_n'], golden['b_t']
      a_n, a_t = np.sqrt(1 - b_n**2), np.sqrt(1 - b_t**2)
    else:
      b_n, b_t, a_n, a_t = golden['sigma_n'], golden['sigma_t'], np.ones(5), np.ones(5)
    x0, x_t, found = (jnp.asarray(golden[name]) for name in ('x0', 'x_t', kind))
    return x0, x_t, found, StepGrid(b_t, b_n, a_t, b_t, a_n, b_n)

  @parameterized.parameters('vp', 've')
  def test_published_means(self, kind):
    """E[x_n | x_t] is the mean of the step t -> n of the chain with eta = 1."""
    x0, x_t, wanted, grid = self.published(kind)
    weight = marginals.noise_weight(grid, marginals.posterior_std(grid, 1.0))
    found = marginals.reverse_mean(marginals.from_x0(x_t, x0, grid.now), grid.a_s, weight)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)

  @parameterized.parameters('vp', 've')
  def test_published_means_undone(self, kind):
    """(8) undoes (7): of the published E[x_n | x_t] it makes the x_0 that they were made of."""
    x0, x_t, means, grid = self.published(kind)
    now, level = grid.now, grid.next
    apart = training.kappa(now, level) > 1e-9  # at the level itself nothing is learnt
    self.assertGreaterEqual(apart.sum(), 4)
    found = training.noisy_target(means, x_t, now, level)
    np.testing.assert_allclose(found[apart], x0[apart], rtol=0, atol=1e-12)
    np.testing.assert_allclose(training.kappa(now, level)[~apart], 0, atol=1e-15)

  def test_clean_items_are_their_own_target(self):
    x, z = np.random.RandomState(0).randn(2, 5, 3)
    now, level = Time(1.0, 0.6, 0.8), Time(0.0, 1.0, 0.0)
    x_t = training.noisier(jnp.asarray(x), jnp.asarray(z), now, level)
    np.testing.assert_allclose(x_t, 0.6 * x + 0.8 * z, atol=1e-12)
    np.testing.assert_allclose(training.noisy_target(x, x_t, now, level), x, atol=1e-12)
    self.assertEqual(training.kappa(now, level), 1)

  def test_the_way_back_is_that_of_the_way_there(self):
    """(6) and (9) are the same law of (x_n, x_t) given x_0, and (9) is the posterior of DDPM."""
    now, level = Time(600.0, 0.3, 0.9), Time(200.0, 0.8, 0.5)
    r = now.a / level.a
    of = lambda x_t, x0, z: float(training.earlier(*map(jnp.asarray, (x_t, x0, z)), now, level))
    back, own, noise = of(1.0, 0.0, 0.0), of(0.0, 1.0, 0.0), of(0.0, 0.0, 1.0)
    self.assertAlmostEqual(own + back * now.a, level.a, places=6)  # the mean of x_n
    self.assertAlmostEqual(noise**2 + (back * now.b) ** 2, level.b**2, places=6)
    self.assertAlmostEqual(back * now.b**2, r * level.b**2, places=6)  # and with x_t
    added = now.b**2 - (r * level.b) ** 2
    self.assertAlmostEqual(noise, level.b / now.b * added**0.5, places=6)

  @parameterized.parameters(0.01, 0.3, 2.0, 50.0)
  def test_a_level_without_noise_is_the_plain_loss_bit_for_bit(self, sigma):
    x, z = (jnp.asarray(part) for part in np.random.RandomState(0).randn(2, 50, 3))
    now, level = at(sigma), at(0.0)
    x_t = training.noisier(x, z, now, level)
    np.testing.assert_array_equal(x_t, marginals.diffuse(x, z, now))
    np.testing.assert_array_equal(training.noisy_target(x, x_t, now, level), x)
    self.assertEqual(training.kappa(now, level), 1)

  @parameterized.parameters(0.3, 0.6, 2.0)
  def test_noisy_items_alone_tell_the_gaussian_of_clean_data(self, sigma):
    """Of noisy items only v_n = a_n^2 v + b_n^2 is known. The least squares of (8) on x_t have the
    gain of the exact denoiser, which tells v. Moments are those of a quadrature, so exact."""
    m, v, level, now = 0.3, 0.5, at(0.25), at(sigma)
    points, shares = np.polynomial.hermite_e.hermegauss(5)
    v_n = level.a**2 * v + level.b**2
    x_n, z = (part.reshape(-1, 1) for part in np.meshgrid(points, points))
    share = np.outer(shares, shares).reshape(-1, 1) / shares.sum() ** 2
    x_n = jnp.asarray(level.a * m + np.sqrt(v_n) * x_n)
    x_t = training.noisier(x_n, jnp.asarray(z), now, level)
    aim = training.noisy_target(x_n, x_t, now, level)
    mean = lambda y: float(np.sum(share * y))
    spread = x_t - mean(x_t)
    gain = mean(aim * spread) / mean(spread**2)
    guess = exact.gaussian(np.full(1, m), v)(jnp.asarray([[0.0], [1.0]]), now, None).x0
    np.testing.assert_allclose(gain, guess[1, 0] - guess[0, 0], rtol=1e-12)
    np.testing.assert_allclose(mean(aim) - gain * mean(x_t), guess[0, 0], rtol=1e-12)
    found = gain * now.b**2 / (now.a * (1 - now.a * gain))
    np.testing.assert_allclose(found, (v_n - level.b**2) / level.a**2, rtol=1e-11)

  @parameterized.parameters((0.2, 0.04), (0.5, 0.5), (1.0, 0.3))
  def test_price_of_a_clean_item(self, n, v):
    """The mean m of N(m, v) that has the least error (8) varies 1 + sigma_n^2 / v as much between
    sets of noisy items as between sets of clean ones: so many of them are worth a clean one. The
    denoiser is m (1 - a g) + g x_t, with z and -z for each item as all z have no say on average.
    4 standard errors are a false alarm in 16,000."""
    random, sets, now = np.random.RandomState(2), 20_000, at(2.0)
    gain = now.a * v / (now.a**2 * v + now.b**2)
    x0, e, z = random.randn(3, sets, 4)

    def variance(level):
      x_n = jnp.asarray(level.a * np.sqrt(v) * x0 + level.b * e)
      rest = 0
      for sign in (-1, 1):
        x_t = training.noisier(x_n, jnp.asarray(sign * z), now, level)
        rest += (training.noisy_target(x_n, x_t, now, level) - gain * x_t) / 2
      return np.var(np.mean(rest, 1) / (1 - now.a * gain))

    noisy, plain, error = variance(at(n)), variance(at(0.0)), np.sqrt(2 / sets)
    self.assertAlmostEqual(4 * plain / v, 1, delta=4 * error)
    self.assertAlmostEqual(4 * noisy / (v + n**2), 1, delta=4 * error)
    self.assertAlmostEqual(noisy / plain / (1 + n**2 / v), 1, delta=4 * np.sqrt(2) * error)

  @parameterized.parameters(0.3, 0.6, 2.0)
  def test_the_best_guess_of_the_target_is_that_of_clean_data(self, sigma):
    """Of Gaussian data the regression of x_0* on x_t has the slope a v / (a^2 v + b^2); 5 standard
    errors are a false alarm in two million."""
    random, N, v, n = np.random.RandomState(1), 400_000, 0.5, 0.25
    level, now = at(n), at(sigma)
    x0, e, z = random.randn(3, N)
    x_n = level.a * np.sqrt(v) * x0 + level.b * e
    x_t = np.asarray(training.noisier(jnp.asarray(x_n), jnp.asarray(z), now, level))
    V = now.a**2 * v + now.b**2
    self.assertAlmostEqual(x_t.var() / V, 1, delta=5 * np.sqrt(2 / N))
    aim = np.asarray(training.noisy_target(x_n, x_t, now, level))
    slope = np.mean(aim * x_t) / V
    error = np.std(aim * x_t) / V / np.sqrt(N)
    self.assertAlmostEqual(slope, now.a * v / V, delta=5 * error)
    # its noise about x_0 is sigma_n^2 / kappa
    rest = aim - slope * x_t
    expected = n**2 / training.kappa(now, level) + v - (now.a * v) ** 2 / V
    self.assertAlmostEqual(rest.var() / expected, 1, delta=0.02)


if __name__ == '__main__':
  absltest.main()
