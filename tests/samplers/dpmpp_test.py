"""DPM-Solver++: golden runs of the original code, the stochastic form against the exact reverse
process."""

import functools

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from gmm_diffusion import samplers
from gmm_diffusion.denoisers import exact
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import grids, schedules
from gmm_diffusion.samplers import dpmpp
from helpers import cases, flows

ARRAYS, RUNS = flows.golden('g7_dpm_solver_pp')
make = functools.cache(functools.partial(dpmpp.dpmpp, extrapolate=False))  # as the authors


class GoldenTest(cases.X64TestCase):
  @parameterized.parameters(*RUNS)
  def test_trajectory(self, case, args):
    # the original ends at abar_0; its denoise_to_zero is one more step, to abar = 1
    abar = np.append(ARRAYS[case + '/abar'], [1.0] * args.get('denoise_to_zero', False))
    solver = 'exact' if args.get('solver_type') == 'taylor' else 'published'
    kernel = make(args['order'], solver, 'source')
    result = flows.sample(kernel, flows.grid_of_abar(abar))
    np.testing.assert_allclose(result.path, ARRAYS[case + '/states'][1:], rtol=0, atol=1e-12)
    self.assertEqual(result.nfe, args['calls'])

  def test_orders_fall_in_the_last_steps_by_default(self):
    # the last steps of this grid are large: with order 3 to the end the error is larger than DDIM's
    grid = grids.make(schedules.linear(), 10, 'leading')
    start, end = grid.now, schedules.linear().at(-1)
    wanted = flows.exact_flow(flows.X_T * grid.b_t[0], type(start)(*(x[0] for x in start)), end)
    x = flows.X_T * grid.b_t[0]
    error = lambda kernel: np.abs(flows.sample(kernel, grid, x).x - wanted).max()
    lowered, never = error(make(3)), error(make(3, lower_final='never'))
    self.assertLess(lowered, never)
    np.testing.assert_array_equal(
      flows.sample(make(3), grid).x, flows.sample(make(3, lower_final='always'), grid).x
    )

  def test_lowering_does_nothing_to_order_two_that_ends_at_clean_data(self):
    grid = grids.make(schedules.linear(), 8, 'leading')
    end = lambda lower_final: flows.sample(make(2, lower_final=lower_final), grid).x
    np.testing.assert_array_equal(end('always'), end('never'))

  def test_in_the_source_orders_fall_only_below_ten_steps(self):
    grid = lambda steps: grids.make(schedules.linear(), steps, 'log_snr', 'first')
    end = lambda steps, lower_final: flows.sample(make(2, lower_final=lower_final), grid(steps)).x
    for steps, source, other in ((9, 'always', 'never'), (10, 'never', 'always')):
      np.testing.assert_array_equal(end(steps, 'source'), end(steps, source))
      self.assertGreater(np.abs(end(steps, 'source') - end(steps, other)).max(), 1e-3)


class StochasticTest(cases.X64TestCase):
  """On Gaussian data x_s given x_t is Gaussian, and the sampler is affine in x_t and in its
  noise."""

  def moments(self, order, steps):
    """Errors of mean and variance [D] of x_s given one x_t."""
    schedule = schedules.linear()
    times = schedule.time_of_log_snr(2 * np.linspace(-1.5, 1, steps + 1))
    grid = grids.from_times(schedule, times[:-1], times[-1])
    kernel = dpmpp.dpmpp_sde(order, 'never', extrapolate=False)
    impulses = np.zeros((steps, steps + 1, 4))
    impulses[np.arange(steps), np.arange(steps)] = 1
    ends = np.asarray(
      flows.sample(
        kernel, grid, x=np.broadcast_to(flows.X_T[:1], (steps + 1, 4)), normal=impulses
      ).x
    )
    first, last = schedule.at(times[0]), schedule.at(times[-1])
    spread = lambda time: time.a**2 * flows.VARIANCE + time.b**2
    gain = first.a / last.a * spread(last) / spread(first)
    mean = last.a * flows.MEAN + gain * (flows.X_T[0] - first.a * flows.MEAN)
    return ends[-1] - mean, ((ends[:-1] - ends[-1]) ** 2).sum(0) - (
      spread(last) - gain**2 * spread(first)
    )

  @parameterized.parameters(1, 2)
  def test_moments_converge(self, order):
    steps = np.array([20, 40, 80])
    means, variances = zip(*(self.moments(order, n) for n in steps))
    slope = lambda errors: (
      -np.polyfit(np.log(steps), np.log([np.abs(e).max() for e in errors]), 1)[0]
    )
    self.assertLess(
      np.abs(means).max(), 1e-14
    )  # E[x_0 | x_t] is a martingale: its differences have mean zero
    self.assertAlmostEqual(slope(variances), order, delta=0.25)

  def test_first_order_is_ancestral_sampling(self):
    grid = grids.make(schedules.linear(), 6, 'uniform')
    denoiser = exact.gaussian(0.1, 0.3)
    draw = lambda name, **options: (
      cases.sample(samplers.make(name, options), denoiser, grid, (3,), np.arange(4)).x
    )
    wanted, own = draw('ddim', eta=1.0), functools.partial(draw, 'dpmpp_sde', extrapolate=False)
    np.testing.assert_allclose(own(order=1), wanted, atol=1e-13)
    self.assertGreater(jnp.abs(own(order=2) - wanted).max(), 1e-3)


class OptionsTest(parameterized.TestCase):
  @parameterized.parameters(
    ('dpmpp', dict(order=4), 'order must be in 1..3 for this sampler, got 4'),
    ('dpmpp_sde', dict(order=3), 'order must be in 1..2 for this sampler, got 3'),
    ('dpmpp', dict(solver='taylor'), "unknown solver 'taylor'; valid: published, exact"),
  )
  def test_bad(self, name, options, message):
    with self.assertRaisesRegex(UserError, message):
      samplers.make(name, options)

  def test_bad_lower_final(self):
    with self.assertRaisesRegex(
      UserError, "unknown lower_final 'yes'; valid: source, always, never"
    ):
      dpmpp.dpmpp(lower_final='yes').plan(grids.make(schedules.linear(), 3), (4,))


if __name__ == '__main__':
  absltest.main()
