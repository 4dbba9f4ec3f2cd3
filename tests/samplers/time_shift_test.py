"""Time-shift sampler: golden runs of the original code."""

import functools

import numpy as np
from absl.testing import absltest, parameterized

from gmm_diffusion import samplers
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import grids, schedules
from gmm_diffusion.samplers import time_shift
from helpers import cases, flows

ARRAYS, RUNS = flows.golden('g7_ts_dpm')
LINEAR = schedules.linear()
make = functools.cache(lambda window, cutoff: time_shift.time_shift(window, cutoff, LINEAR))


class TimeShiftTest(cases.X64TestCase):
  @parameterized.parameters(*RUNS)
  def test_golden(self, case, args):
    # the original drops the largest time of its grid and ends at abar_0
    kernel = make(args['window_size'] or 0, args['cut_off_value'] or 0)
    result = flows.sample(kernel, grids.from_times(LINEAR, ARRAYS[case + '/timesteps'], 0))
    np.testing.assert_allclose(result.path, ARRAYS[case + '/states'][1:], rtol=0, atol=1e-12)
    self.assertEqual(result.nfe, args['calls'])

  def test_where_it_may_shift(self):
    grid = grids.from_times(LINEAR, [900, 700, 500, 300, 100], 0)
    rows = time_shift.time_shift(4, 300, LINEAR).plan(grid, (4,))[0].rows
    self.assertEqual(
      (np.ptp(rows.b, axis=1) > 0).tolist(), [False, True, False, False, False]
    )  # to 700, 500, 300, 100, 0
    np.testing.assert_array_equal(rows.b[1], LINEAR.noise(np.arange(498, 503)))

  def test_bad(self):
    with self.assertRaisesRegex(
      UserError, 'shift_window and shift_cutoff must be >= 0, got -1 and 300'
    ):
      samplers.make('time_shift', dict(shift_window=-1), LINEAR)
    with self.assertRaisesRegex(UserError, 'sampler time_shift needs the noise schedule'):
      samplers.make('time_shift', {})
    with self.assertRaisesRegex(UserError, r'it needs at least 2, got shape \(1, 1\)'):
      make(20, 300).plan(grids.make(LINEAR, 3), (1, 1))


if __name__ == '__main__':
  absltest.main()
