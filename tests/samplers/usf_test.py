"""USF: golden runs of the original code, and the samplers that it contains."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from gmm_diffusion import samplers
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import grids, marginals, schedules
from gmm_diffusion.samplers import linear, usf
from gmm_diffusion.samplers.usf import Choice
from helpers import cases, flows

ARRAYS, RUNS = flows.golden('g10_usf')
LINEAR = schedules.linear()
GRID = grids.from_times(LINEAR, [999.0, 800.0, 500.0, 300.0, 150.0], 20.0)


def choice(order, pred, first=0, relax='', coef=0.0, corr=0):
  return Choice(order, pred, first, coef if relax == 'linear' else relax or 0.0, bool(corr))


def rising(order, **options):
  return [Choice(min(order, n + 1), **options) for n in range(5)]


def without_the_first(denoiser, afs, first):
  """A denoiser whose answer at the first time is known: eps is x_T, or x_0 the mean of the data.
  A table has a call in each step, so its number of calls counts this one too."""

  def denoise(x, time, cond):
    if afs == 'zero_x0':
      known = marginals.from_eps(x, x, time)
    else:
      known = marginals.from_x0(x, jnp.broadcast_to(flows.MEAN, x.shape), time)
    asked = denoiser(x, time, cond)
    return jax.tree.map(lambda one, other: jnp.where(time.t == first, one, other), known, asked)

  return denoiser if afs == 'no_afs' else denoise


class UsfTest(cases.X64TestCase):
  @parameterized.parameters(*RUNS)
  def test_golden(self, case, args):
    times = 1000 * ARRAYS[case + '/times'] - 1
    grid = grids.from_times(LINEAR, times[:-1], times[-1])
    table = usf.table(grid, [choice(**row) for row in args['rows']])
    denoiser = without_the_first(flows.problem(ARRAYS, case), args['afs'], times[0])
    result = flows.sample(linear.linear(table), grid, denoiser=denoiser)
    np.testing.assert_allclose(result.path, ARRAYS[case + '/predicted'][1:], rtol=3e-14, atol=3e-14)
    self.assertEqual(result.nfe, args['calls'] + (args['afs'] != 'no_afs'))

  @parameterized.parameters(
    ('dpmpp', dict(order=3, solver='exact', lower_final='never'), rising(3)),
    ('dpmpp', dict(order=2, lower_final='never'), rising(2, relax='dpmsolver-2')),
    ('ddim', {}, rising(1, field='eps')),
  )
  def test_what_it_contains(self, name, options, choices):
    wanted = linear.embed(samplers.make(name, options, LINEAR), GRID, (4,))
    np.testing.assert_allclose(usf.table(GRID, choices).weights, wanted.weights, atol=1e-11)

  def test_with_the_corrector_it_is_unipc(self):
    # of order 3 in all steps from the third on; order 2 has 1/2 there instead of what solves (2)
    unit = [Choice(1, correct=True), Choice(2, relax='unipc-bh1', correct=True)]
    three = [Choice(3, correct=True)] * 2
    wanted = samplers.make('unipc', dict(order=3, bh='bh1', lower_final='never'), LINEAR)
    found = usf.table(GRID, [*unit, *three, Choice(3)])
    first = linear.embed(wanted, GRID, (4,))
    # the corrector of the first step differs too, where the authors put 1/2
    np.testing.assert_allclose(found.weights[2:, 2:], first.weights[2:, 2:], atol=1e-11)

  def test_clean_end_and_pure_noise(self):
    flow = schedules.rectified_flow()
    grid = grids.make(flow, 4, 'uniform')
    found = usf.table(grid, [Choice(), Choice(), Choice(2), Choice()])
    np.testing.assert_allclose(found.weights[-1, :, 0], [0, 0, 0, 1], atol=1e-12)
    with self.assertRaisesRegex(UserError, r'order of step 1 must be in 1\.\.1, got 2'):
      usf.table(grid, [Choice(), Choice(2), Choice(2), Choice()])

  @parameterized.parameters(
    (rising(1)[:3], 'a choice for each of 5 steps, got 3'),
    ([Choice(2), *rising(1)[1:]], r'order of step 0 must be in 1\.\.1, got 2'),
    ([*rising(2)[:4], Choice(5)], r'order of step 4 must be in 1\.\.4, got 5'),
    (rising(1, field='v'), "unknown field 'v' of step 0; valid: x0, eps"),
    (rising(1, points=1), r'points of step 0 must be in 0\.\.0, got 1'),
    (rising(1, relax='none'), "unknown relax 'none' of step 0; valid: dpmsolver-2, unipc-bh1"),
    (rising(1, correct=True), 'step 4 cannot be corrected'),
  )
  def test_bad(self, choices, message):
    with self.assertRaisesRegex(UserError, message):
      usf.table(GRID, choices)


if __name__ == '__main__':
  absltest.main()
