"""Weights of noise levels and how often they are drawn, against their closed forms."""

import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given
from hypothesis import strategies as st

from gmm_diffusion.maths import schedules, training


def times_of(process):
  return process.at(process.training_times)


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


if __name__ == '__main__':
  absltest.main()
