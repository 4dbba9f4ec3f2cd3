"""Predictions moved along the trajectory: golden runs of DC-Solver, and the step to clean data."""

import numpy as np
from absl.testing import absltest, parameterized

from gmm_diffusion import samplers
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import grids, schedules
from gmm_diffusion.samplers import compensation, linear, unipc
from gmm_diffusion.samplers.compensation import Compensation
from helpers import cases, flows

ARRAYS, RUNS = flows.golden('g10_dc_solver')
LINEAR = schedules.linear()
FIVE = grids.make(LINEAR, 5, 'trailing')
TAKERS = tuple(name for name in samplers.SAMPLERS if 'ratios' in samplers.options_of(name))


def table(name, grid=FIVE, **options):
  return linear.embed(samplers.make(name, options, LINEAR), grid, (4,))


class RatiosTest(cases.X64TestCase):
  @parameterized.parameters(*RUNS)
  def test_golden(self, case, args):
    ratios, steps = tuple(ARRAYS[case + '/ratios']), args['steps']
    kernel = unipc.unipc(
      args['order'],
      args['bh'],
      ratios=ratios,
      compensate=args['compensate'],
      extrapolate=False,
    )
    path = np.linspace(999, 0, steps + 1)
    grid = grids.from_times(LINEAR, path[:-1], path[-1])
    result = flows.sample(kernel, grid, denoiser=flows.problem(ARRAYS, case))
    np.testing.assert_allclose(result.x, ARRAYS[case + '/final'], rtol=0, atol=1e-14)
    self.assertEqual(result.nfe, args['calls'])

  @parameterized.parameters('gauss', 'mixture')
  def test_reference_of_the_published_search(self, case):
    path = np.linspace(999, 0, 201)
    grid = grids.from_times(LINEAR, path[:-1], path[-1])
    found = flows.sample(samplers.make('ddim', {}), grid, denoiser=flows.problem(ARRAYS, case))
    np.testing.assert_allclose(found.x, ARRAYS[case + '/ref_end'], rtol=0, atol=1e-13)

  @parameterized.parameters(1, 2)
  def test_a_polynomial_in_time_is_read_off_further_on(self, count):
    ratios = (1.0,) * count + (1.3,) * (5 - count)
    found = compensation.weights(FIVE, Compensation(ratios, count))
    t = FIVE.t / 1000
    for degree in range(count + 1):
      later = t[count - 1] + 1.3 * (t[count] - t[count - 1])
      self.assertAlmostEqual(found[count] @ t[count::-1] ** degree, later**degree, places=12)

  @parameterized.parameters(*TAKERS)
  def test_ones_and_known_data_change_nothing(self, name):
    plain, ones = table(name), table(name, ratios=(1.0,) * 5)
    np.testing.assert_allclose(ones.weights, plain.weights, atol=1e-12)
    moved = table(name, ratios=(1.0, 1.2, 0.7, 1.3, 1.5), compensate=1)
    self.assertGreater(np.abs(moved.weights - plain.weights).max(), 1e-2)
    # with the same x_0 everywhere there is nothing to look ahead to: mean and variance stay
    for row, wanted in zip(linear.consistency(moved), linear.consistency(plain)):
      np.testing.assert_allclose(row['mean'], wanted['mean'], atol=1e-12)
      np.testing.assert_allclose(row['variance'], wanted['variance'], atol=1e-12)

  @parameterized.parameters(
    (dict(ratios=(1.0, 1.2, 1.0, 1.0, 1.0)), 'the first 2 ratios must be 1, .* got 1.2 for step 1'),
    (dict(ratios=(1.0, np.nan), compensate=1), 'ratios must be finite, got nan for step 1'),
    (dict(compensate=3), 'compensate must be 1 or 2, got 3'),
  )
  def test_bad(self, options, message):
    for name in ('unipc', 'dpmpp'):
      with self.assertRaisesRegex(UserError, message):
        samplers.make(name, options)

  def test_a_ratio_for_each_step(self):
    with self.assertRaisesRegex(UserError, 'a ratio for each of 5 steps, got 3'):
      table('dpmpp', ratios=(1.0, 1.0, 1.2))


class ExtrapolateTest(cases.X64TestCase):
  """Along the flow of N(m, v) data x_0 - m is proportional to a / sqrt(a^2 v + b^2), and at clean
  data it is the sample itself."""

  def error(self, extrapolate, sigma, v):
    grid = flows.grid_through(np.ones(5), sigma * np.array([4.0, 3.0, 2.0, 1.0, 0.0]))
    path = 1 / np.sqrt(v + np.append(grid.b_t, 0) ** 2)
    row = compensation.weights(grid, Compensation(extrapolate=extrapolate))[-1]
    return abs(row @ path[4 - len(row) : 4][::-1] - path[-1])

  @parameterized.parameters((False, 2), (True, 4))
  def test_order(self, extrapolate, order):
    sigmas = np.array([0.02, 0.01, 0.005])
    errors = [self.error(extrapolate, sigma, 0.6) for sigma in sigmas]
    found = np.polyfit(np.log(sigmas), np.log(errors), 1)[0]
    self.assertAlmostEqual(found, order, delta=0.05)

  @parameterized.parameters(
    (np.geomspace(80, 0.002, 100), True),  # many steps even in lambda
    ((80, 60, 40, 20, 2), True),  # stops far from clean data
    ((80, 10, 3, 1, 0.3), False),
  )
  def test_no_further_than_three_times_the_last_two_predictions(self, sigmas, cut):
    grid = flows.grid_through(np.ones(len(sigmas) + 1), np.array([*sigmas, 0.0]))
    row = compensation.weights(grid, Compensation())[-1]
    self.assertAlmostEqual(row.sum(), 1)
    self.assertEqual(row[0] == 1 + compensation.FURTHEST, cut)
    self.assertBetween(row[0], 1, 1 + compensation.FURTHEST)

  def test_exact_for_the_deviation_one_half(self):
    self.assertLess(self.error(True, 0.7, 0.25), 1e-14)
    self.assertGreater(self.error(False, 0.7, 0.25), 0.1)

  @parameterized.parameters(*TAKERS)
  def test_samplers_end_with_it_by_default(self, name):
    held, found = table(name, extrapolate=False), table(name)
    np.testing.assert_allclose(found.weights[:-1], held.weights[:-1], atol=1e-12)
    row = compensation.weights(FIVE, Compensation(extrapolate=True))[-1]
    np.testing.assert_allclose(found.weights[-1, :, 0], [0, 0, 0, *row[::-1]], atol=1e-12)
    np.testing.assert_allclose(found.keep[-1], 0, atol=1e-12)

  @parameterized.parameters(*TAKERS)
  def test_grids_that_it_does_not_concern(self, name):
    for grid in (grids.make(LINEAR, 5, 'trailing', 'first'), grids.make(LINEAR, 1)):
      np.testing.assert_allclose(
        table(name, grid).weights, table(name, grid, extrapolate=False).weights, atol=1e-12
      )

  @parameterized.parameters(*TAKERS)
  def test_a_last_ratio_that_is_not_one_has_its_place(self, name):
    ratios = (1.0, 1.2, 0.7, 1.3)
    of = lambda last, **options: (
      table(name, ratios=(*ratios, last), compensate=1, **options).weights
    )
    np.testing.assert_allclose(of(1.5), of(1.5, extrapolate=False), atol=1e-12)
    newest, _ = compensation.weights(FIVE, Compensation())[-1]
    self.assertAlmostEqual(of(1.0)[-1, -1, 0], newest, places=12)


if __name__ == '__main__':
  absltest.main()
