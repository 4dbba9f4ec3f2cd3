"""Grids: exactly N steps for every N, and the public grids."""

import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import grids, schedules

DISCRETE = schedules.linear()
FLOW = schedules.rectified_flow()


class GridsTest(parameterized.TestCase):
  @parameterized.product(
    grid=[name for name in grids.GRIDS if name not in ('stride', 'dmn')], end=['clean', 'first']
  )
  def test_every_number_of_steps(self, grid, end):
    @settings(deadline=None, max_examples=200)
    @given(st.integers(1, 1000 if end == 'clean' else 999))
    def check(n):
      made = grids.make(DISCRETE, n, grid, end)
      self.assertLen(made.t, n)
      self.assertTrue(np.all(np.diff(made.t) < 0) and np.all(made.s < made.t))
      np.testing.assert_array_equal(made.s[:-1], made.t[1:])
      self.assertEqual(made.s[-1], {'clean': -1, 'first': 0}[end])
      self.assertLessEqual(made.t[0], 999)
      if grid not in ('log_snr', 'karras', 'tangent'):
        np.testing.assert_array_equal(made.t, np.round(made.t))
      np.testing.assert_allclose(made.a_t**2 + made.b_t**2, 1, atol=1e-12)

    check()
    check.hypothesis.inner_test(1)
    check.hypothesis.inner_test(999)

  @parameterized.product(
    grid=['uniform', 'quadratic', 'log_snr', 'karras', 'tangent'],
    schedule=['rectified_flow', 'edm'],
  )
  def test_continuous(self, grid, schedule):
    schedule = schedules.SCHEDULES[schedule]()
    for n in (1, 2, 7, 50):
      made = grids.make(schedule, n, grid)
      self.assertLen(made.t, n)
      self.assertEqual((made.t[0], made.s[-1]), (schedule.last, 0))
      self.assertTrue(np.all(made.s < made.t))

  @parameterized.parameters(
    ('uniform', 10, [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]),
    ('trailing', 10, [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]),
    ('leading', 10, [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]),
    ('trailing', 7, [999, 856, 713, 570, 428, 285, 142]),
    ('leading', 6, [833, 666, 500, 333, 166, 0]),
    ('stride', 25, list(range(960, -1, -40))),
    ('quadratic', 10, [800, 632, 483, 355, 246, 158, 88, 39, 9, 0]),
  )
  def test_known_grids(self, grid, n, expected):
    np.testing.assert_array_equal(grids.make(DISCRETE, n, grid).t, expected)

  def test_ldm_grid(self):
    made = grids.make(DISCRETE, 10, 'leading', 'first')
    np.testing.assert_array_equal(made.t, np.arange(901, 0, -100))
    np.testing.assert_array_equal(made.s, np.append(np.arange(801, 0, -100), 0))

  def test_log_snr_is_even(self):
    made = grids.make(DISCRETE, 9, 'log_snr', 'first')
    path = np.append(made.t, 0)
    np.testing.assert_allclose(
      np.diff(DISCRETE.log_snr(path)), (DISCRETE.log_snr(0) - DISCRETE.log_snr(999)) / 9, rtol=1e-9
    )

  def test_karras_on_the_source_schedule(self):
    # EDM eq. 5 with its numbers: sigma from 80 to 0.002, rho 7
    i = np.arange(18)
    wanted = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    made = grids.make(schedules.edm(), 18, 'karras')
    np.testing.assert_allclose(made.b_t, wanted, rtol=1e-9)
    self.assertEqual(made.b_s[-1], 0)

  @parameterized.product(schedule=['linear', 'rectified_flow', 'edm'], end=['clean', 'first'])
  def test_tangent_is_even_in_the_angle(self, schedule, end):
    # AYS: t_i = c tan((1 - i / N) arctan(t_max / c) + (i / N) arctan(t_min / c)), c = 1
    schedule = schedules.SCHEDULES[schedule]()
    made = grids.make(schedule, 6, 'tangent', end)
    first = schedule.at(schedule.first)
    path = np.arctan2(np.append(made.b_t, first.b), np.append(made.a_t, first.a))
    np.testing.assert_allclose(np.diff(path)[1:], np.diff(path)[1], rtol=1e-6)
    self.assertEqual(made.s[-1], {'clean': schedule.clean, 'first': schedule.first}[end])

  @parameterized.product(schedule=['linear', 'rectified_flow', 'edm'], steps=[1, 6])
  def test_dmn(self, schedule, steps):
    schedule = schedules.SCHEDULES[schedule]()
    made = grids.make(schedule, steps, 'dmn')
    self.assertLen(made.t, steps)
    self.assertEqual((made.t[0], made.s[-1]), (schedule.last, schedule.clean))
    self.assertTrue(np.all(made.s < made.t))

  @parameterized.product(schedule=['linear', 'cosine', 'rectified_flow'], rho=[1.0, 7.0])
  def test_karras_is_even_in_a_root_of_sigma(self, schedule, rho):
    schedule = schedules.SCHEDULES[schedule]()
    made = grids.make(schedule, 12, 'karras', rho=rho)
    first = int(made.a_t[0] == 0)  # sigma of pure noise is infinite
    steps = np.diff((made.b_t[first:] / made.a_t[first:]) ** (1 / rho))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
    at_first = schedule.at(schedule.first)
    self.assertAlmostEqual(made.b_t[-1] / made.a_t[-1] / (at_first.b / at_first.a), 1, places=6)
    with self.assertRaisesRegex(UserError, 'rho must be > 0, got 0'):
      grids.make(schedule, 12, 'karras', rho=0.0)

  @parameterized.parameters('linear', 'rectified_flow', 'edm')
  def test_from_sigmas(self, name):
    schedule = schedules.SCHEDULES[name]()
    sigmas = [12.0, 3.0, 0.5, 0.0]
    made = grids.from_sigmas(schedule, sigmas)
    np.testing.assert_allclose(made.b_t / made.a_t, sigmas[:3], rtol=1e-9)
    np.testing.assert_allclose(made.b_s / made.a_s, sigmas[1:], rtol=1e-9)
    self.assertEqual((made.a_s[-1], made.b_s[-1]), (1, 0))
    short = grids.from_sigmas(schedule, sigmas[:3])  # ends where the list ends
    self.assertLen(short.t, 2)
    self.assertAlmostEqual(short.b_s[-1] / short.a_s[-1], 0.5)

  @parameterized.parameters([[3.0]], [[1.0, 2.0]], [[1.0, -0.5]], [[1e4, 0.0]], [[np.nan, 0.0]])
  def test_bad_sigmas(self, sigmas):
    with self.assertRaisesRegex(UserError, 'sigmas must be'):
      grids.from_sigmas(DISCRETE, sigmas)

  @parameterized.parameters(
    (dict(steps=0), 'steps must be in 1..1000, got 0'),
    (dict(steps=1001), 'steps must be in 1..1000, got 1001'),
    (dict(steps=10, grid='linear'), "unknown grid 'linear'; valid: uniform"),
    (dict(steps=10, end='last'), "unknown end 'last'; valid: clean, first"),
    (dict(steps=37, grid='stride'), 'no integer stride'),
    (dict(steps=51, grid='dmn'), 'a grid is searched for at most 50 steps, got 51'),
  )
  def test_bad_input(self, options, message):
    with self.assertRaisesRegex(UserError, message):
      grids.make(DISCRETE, **options)

  def test_discrete_only(self):
    with self.assertRaisesRegex(
      UserError, 'discrete schedule; valid here: uniform, quadratic, log_snr, karras, tangent, dmn'
    ):
      grids.make(FLOW, 10, 'trailing')

  @parameterized.parameters([[1, 5]], [[5, 5]], [[-1]], [[1000, 3]], [[]])
  def test_bad_times(self, times):
    with self.assertRaisesRegex(UserError, 'grid times must'):
      grids.from_times(DISCRETE, times)


if __name__ == '__main__':
  absltest.main()
