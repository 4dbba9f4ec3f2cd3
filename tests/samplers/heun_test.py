"""Heun: golden runs of the original code, number of evaluations."""

import functools

import numpy as np
from absl.testing import absltest, parameterized

from gmm_diffusion import samplers
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import grids, schedules
from gmm_diffusion.samplers import heun
from helpers import cases, flows

ARRAYS, RUNS = flows.golden('g7_edm')
EDM = schedules.edm(sigma_max=1000.0)


@functools.cache
def make(solver, churn):
  if solver == 'euler':
    return samplers.make('ddim', {})
  return heun.heun(churn, churn_min=0.05, churn_max=50.0, churn_noise=1.003, schedule=EDM)


class HeunTest(cases.X64TestCase):
  @parameterized.parameters(*RUNS)
  def test_golden(self, case, args):
    sigma = ARRAYS[case + '/timesteps']
    kernel = make(args.get('solver'), args.get('S_churn', 0))
    grid = flows.grid_through(np.ones_like(sigma), sigma, sigma)
    result = flows.sample(kernel, grid, flows.X_T * sigma[0], ARRAYS['noise'][: len(sigma) - 1])
    np.testing.assert_allclose(result.path, ARRAYS[case + '/states'][1:], rtol=0, atol=1e-11)
    self.assertEqual(result.nfe, args['calls'])

  def test_evaluations_where_the_last_step_does_not_end_at_clean_data(self):
    grid = grids.make(schedules.linear(), 5, 'uniform', 'first')
    self.assertEqual(flows.sample(make(None, 0), grid).nfe, 10)

  @parameterized.parameters('linear', 'rectified_flow')
  def test_churn_keeps_the_marginals(self, name):
    # a perfect denoiser of one x_0 leaves only the level of the noise to get wrong: x_s = a_s x_0 +
    # b_s eps, whatever z
    schedule = schedules.SCHEDULES[name]()
    grid = grids.make(schedule, 4, 'uniform')
    kernel = samplers.make('heun', dict(churn=1.0), schedule)
    rows = kernel.plan(grid, (4,))[0].rows
    self.assertEqual(
      (rows.std > 0).tolist(), [False, True, True, True]
    )  # the first would leave the schedule
    np.testing.assert_allclose(rows.keep * grid.a_t, rows.start.a, rtol=1e-12)  # mean
    np.testing.assert_allclose(
      (rows.keep * grid.b_t) ** 2 + rows.std**2, rows.start.b**2, rtol=1e-12
    )  # variance
    np.testing.assert_allclose(schedule.signal(rows.start.t), rows.start.a)
    at = grid.b_t[1:] / grid.a_t[1:]
    np.testing.assert_allclose(rows.start.b[1:] / rows.start.a[1:] / at, 1.25)  # gamma = churn / N

  def test_bad(self):
    with self.assertRaisesRegex(UserError, 'churn must be >= 0, got -1'):
      samplers.make('heun', dict(churn=-1.0), EDM)
    with self.assertRaisesRegex(UserError, 'sampler heun with churn needs the noise schedule'):
      samplers.make('heun', dict(churn=1.0))


if __name__ == '__main__':
  absltest.main()
