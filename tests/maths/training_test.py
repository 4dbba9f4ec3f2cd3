"""Weights of noise levels and how often they are drawn, against their closed forms."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given
from hypothesis import strategies as st

from gmm_diffusion.maths import marginals, schedules, training
from gmm_diffusion.types import StepGrid, Time
from helpers import cases


def times_of(process):
  return process.at(process.training_times)


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

  @parameterized.parameters(0.3, 0.6, 2.0)
  def test_the_best_guess_of_the_target_is_that_of_clean_data(self, sigma):
    """Of Gaussian data the regression of x_0* on x_t has the slope a v / (a^2 v + b^2); 5 standard
    errors are a false alarm in two million."""
    random, N, v, n = np.random.RandomState(1), 400_000, 0.5, 0.25
    level = Time(n, 1 / np.sqrt(1 + n**2), n / np.sqrt(1 + n**2))
    now = Time(sigma, 1 / np.sqrt(1 + sigma**2), sigma / np.sqrt(1 + sigma**2))
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
