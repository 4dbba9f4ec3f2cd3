"""UniPC: golden runs of the original code."""

import functools

import numpy as np
from absl.testing import absltest, parameterized

from gmm_diffusion import samplers
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import grids, schedules
from gmm_diffusion.samplers import unipc
from helpers import cases, flows

ARRAYS, RUNS = flows.golden('g7_unipc')
make = functools.cache(functools.partial(unipc.unipc, extrapolate=False))  # as the authors


class UnipcTest(cases.X64TestCase):
  @parameterized.parameters(*RUNS)
  def test_golden(self, case, args):
    # the original ends at abar_0; states between are after its corrector, ours before
    result = flows.sample(
      make(args['order'], args['variant'], 'source'), flows.grid_of_abar(ARRAYS[case + '/abar'])
    )
    np.testing.assert_allclose(result.x, ARRAYS[case + '/final'], rtol=0, atol=1e-12)
    self.assertEqual(result.nfe, args['calls'])

  def test_source_always_lowers_the_last_orders(self):
    grid = grids.make(schedules.linear(), 12, 'log_snr', 'first')
    end = lambda lower_final: flows.sample(make(2, 'bh1', lower_final), grid).x
    np.testing.assert_array_equal(end('source'), end('always'))
    self.assertGreater(np.abs(end('source') - end('never')).max(), 1e-3)

  @parameterized.parameters(
    (dict(order=0), 'order must be in 1..3 for this sampler, got 0'),
    (dict(bh='bh3'), "unknown bh 'bh3'; valid: bh1, bh2"),
  )
  def test_bad(self, options, message):
    with self.assertRaisesRegex(UserError, message):
      samplers.make('unipc', options)


if __name__ == '__main__':
  absltest.main()
