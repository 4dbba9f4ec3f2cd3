"""Schedules against closed forms."""

import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given
from hypothesis import strategies as st

from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import schedules
from helpers import cases


class SchedulesTest(parameterized.TestCase):
  def test_linear_is_the_public_table(self):
    problem = cases.golden('g7_problem')
    at = schedules.linear().at(np.arange(1000))
    np.testing.assert_allclose(at.a**2, problem['abar'], rtol=1e-12)
    np.testing.assert_allclose(at.b**2, 1 - problem['abar'], rtol=1e-12)

  def test_first_noise_level_has_full_precision(self):
    # 1 - abar_0 = beta_0, which a float32 cumulative product misses by 1.7e-4
    np.testing.assert_allclose(schedules.linear().noise(0) ** 2, 1e-4, rtol=1e-13)
    np.testing.assert_allclose(schedules.sqrt_linear().noise(0) ** 2, 0.0015, rtol=1e-13)

  def test_sqrt_linear_middle(self):
    at = schedules.sqrt_linear(T=3, beta_min=0.01, beta_max=0.09).at(np.arange(3))
    np.testing.assert_allclose(at.a**2, np.cumprod([0.99, 1 - 0.2**2, 0.91]), rtol=1e-13)

  def test_cosine_follows_the_curve_until_the_cap(self):
    f = lambda t: np.cos((t / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    t = np.arange(900)
    np.testing.assert_allclose(schedules.cosine().signal(t) ** 2, f(t + 1) / f(0), rtol=1e-9)
    self.assertLess(
      np.max(1 - np.exp(np.diff(2 * np.log(schedules.cosine().signal(np.arange(1000)))))),
      0.999 + 1e-9,
    )

  @parameterized.parameters('linear', 'sqrt_linear', 'cosine')
  def test_variance_preserving(self, name):
    schedule = schedules.SCHEDULES[name]()
    at = schedule.at(np.linspace(-1, 999, 4001))
    np.testing.assert_allclose(at.a**2 + at.b**2, 1, atol=1e-14)
    self.assertEqual((at.a[0], at.b[0]), (1, 0))
    self.assertTrue(np.all(np.diff(at.b) > 0))

  def test_flow_and_edm(self):
    np.testing.assert_allclose(
      schedules.rectified_flow().at([0.25, 1.0])[1:], [[0.75, 0], [0.25, 1]]
    )
    np.testing.assert_allclose(schedules.edm().at([0.002, 80.0])[1:], [[1, 1], [0.002, 80]])

  def test_powers(self):
    t = np.linspace(0, 1, 11)
    np.testing.assert_allclose(schedules.power().at(t)[1:], [(1 - t) ** 2, t])
    line = schedules.power(0.0, 1.0).at(t)
    np.testing.assert_array_equal(line, schedules.rectified_flow().at(t))
    own = schedules.power(0.5, 3.0, 0.1).at(t)
    np.testing.assert_allclose(own[1:], [(1 - t) ** 1.5, 0.1 * t**2], atol=1e-16)

  @parameterized.parameters(
    ('decreased_1', 1.0), ('decreased_0.3', 0.3), ('increased_1', 1.0), ('increased_3', 3.0),
    ('average_1', 0.0),
  )  # fmt: skip
  def test_powers_are_sums_of_published_coefficients(self, name, power):
    # not to more than their 1,000 steps: the sum of the first n lies between n - 1 and n + 1
    total = np.cumsum(cases.golden('g12_rddm')[f'coef_{name}'].astype(float))
    u = np.clip(np.arange(1002) / 1000, 0, 1)
    if name.startswith('decreased'):
      curve = 1 - schedules.power(signal_power=power).signal(u)
    else:
      curve = schedules.power(noise_power=power).noise(u) ** 2
    np.testing.assert_array_less(curve[:1000], total + 1e-6)
    np.testing.assert_array_less(total, curve[2:] + 1e-6)

  @parameterized.parameters(('1', 1.0), ('0.01', 0.1))
  def test_powers_are_the_published_levels(self, name, end):
    # of p = q = 1: sums of whole numbers, such as 0 + .. + i = ((i + 1/2)^2 - 1/4) / 2
    golden, i = cases.golden('g12_rddm'), np.arange(999)
    schedule = schedules.power(1.0, 1.0, end)
    a = 1 - golden['alpha_bar'].astype(float)
    np.testing.assert_allclose(a[i], schedule.signal((i + 1) / 999.5), atol=5e-7)
    b = golden[f'beta_bar_{name}'].astype(float)
    np.testing.assert_allclose(b[i] ** 2, schedule.noise((i + 0.5) / 999.5) ** 2, atol=5e-7)
    np.testing.assert_allclose([a[-1], b[-1]], [0, end], rtol=1e-7)

  def test_powers_at_the_ends(self):
    schedule = schedules.power(2.0, 3.0, 0.1)
    np.testing.assert_allclose(schedule.time_of_log_snr([-np.inf, np.inf]), [1, 0], atol=1e-300)
    t = schedule.time_of_log_snr([700.0, -150.0])  # as far as times are distinct numbers
    np.testing.assert_allclose(schedule.log_snr(t), [700, -150], rtol=1e-6)

  @parameterized.parameters((-1.0, 1.0, 1.0), (1.0, -2.0, 1.0), (1.0, 1.0, 0.0))
  def test_bad_powers(self, signal, noise, end):
    with self.assertRaisesRegex(UserError, 'needs powers above -1 and noise_end above 0, got'):
      schedules.power(signal, noise, end)

  @parameterized.parameters(*schedules.SCHEDULES)
  def test_log_snr_inverse(self, name):
    schedule = schedules.SCHEDULES[name]()

    @given(st.floats(0, 1))
    def check(u):
      t = schedule.first + u * (
        schedule.last * (0.999 if name in ('rectified_flow', 'power') else 1) - schedule.first
      )
      back = schedule.time_of_log_snr(schedule.log_snr(t))
      np.testing.assert_allclose(back, t, rtol=1e-8, atol=1e-8)

    check()

  @parameterized.parameters([[0.0, 0.1]], [[0.1, 1.0]], [[-0.1]])
  def test_bad_betas(self, betas):
    with self.assertRaisesRegex(UserError, 'betas'):
      schedules.from_betas(betas)

  def test_bad_sigmas(self):
    with self.assertRaisesRegex(UserError, 'sigma_min must be in .*, got sigma_min 9 and'):
      schedules.edm(sigma_min=9.0, sigma_max=3.0)


if __name__ == '__main__':
  absltest.main()
