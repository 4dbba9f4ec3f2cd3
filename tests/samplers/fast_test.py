"""Fast samplers together: order of convergence, finite at any number of steps, reductions to
DDIM."""

import itertools

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from gmm_diffusion import samplers
from gmm_diffusion.maths import grids, schedules
from helpers import cases, flows

SCHEDULES = {name: schedules.SCHEDULES[name]() for name in ('linear', 'cosine', 'rectified_flow')}
# Beyond 1e-6 DEIS of order 4 sees the knots of the linear schedule with 1000 times.
SMOOTH = {'linear': schedules.linear(10000, 1e-5, 2e-3), 'edm': schedules.edm()}


def even_in_log_snr(name, steps):
  """From nearly pure noise to the middle of the schedule, where every order's leading term stands
  out."""
  schedule = SMOOTH[name]
  times = schedule.time_of_log_snr(np.linspace(-8.7, 2, steps + 1))
  return grids.from_times(schedule, times[:-1], times[-1])


class OrderTest(cases.X64TestCase):
  @parameterized.product(
    case=[
      ('dpmpp', dict(order=1), 1, 40),
      ('dpmpp', dict(order=2), 2, 40),
      ('dpmpp', dict(order=2, solver='exact'), 2, 40),
      ('dpmpp', dict(order=3), 2, 160),  # as published it has half of the third term
      ('dpmpp', dict(order=3, solver='exact'), 3, 40),
      ('deis', dict(order=1), 1, 40),
      ('deis', dict(order=2), 2, 40),
      ('deis', dict(order=3), 3, 40),
      ('deis', dict(order=4), 4, 80),
      ('unipc', dict(order=1), 2, 40),  # the corrector adds one
      ('unipc', dict(order=2, bh='bh1'), 3, 40),
      ('unipc', dict(order=2, bh='bh2'), 3, 40),
      ('unipc', dict(order=3), 4, 80),
      ('heun', dict(), 2, 40),
      ('bdia', dict(gamma=0.0), 1, 40),
      ('bdia', dict(gamma=1.0), 2, 40),
    ],
    name=['linear', 'edm'],
  )
  def test_on_even_log_snr(self, case, name):
    sampler, options, order, fewest = case  # steps from which the leading term leads
    kernel = samplers.make(sampler, dict(options, lower_final='never'), SMOOTH[name])
    found = flows.fitted_order(kernel, [even_in_log_snr(name, fewest * k) for k in (1, 2, 4)])
    self.assertAlmostEqual(found, order, delta=0.25)

  @parameterized.parameters(
    ('deis', dict(order=2), 2), ('heun', {}, 2), ('bdia', {}, 2), ('dpmpp', dict(order=1), 1)
  )
  def test_on_the_flow_from_pure_noise_to_clean_data(self, sampler, options, order):
    schedule = SCHEDULES['rectified_flow']
    kernel = samplers.make(sampler, options, schedule)
    found = flows.fitted_order(kernel, [grids.make(schedule, n, 'uniform') for n in (40, 80, 160)])
    self.assertAlmostEqual(found, order, delta=0.25)


class AnyNumberOfStepsTest(cases.X64TestCase):
  @parameterized.parameters(
    ('dpmpp', dict(order=3)),
    ('dpmpp', dict(order=3, solver='exact', lower_final='never')),
    ('dpmpp_sde', dict(order=2)),
    ('deis', dict(order=4)),
    ('unipc', dict(order=3, bh='bh1', lower_final='never')),
    ('unipc', dict(order=3, bh='bh2')),
    ('unipc', dict(order=1, bh='bh1')),
    ('heun', dict(churn=10.0)),
    ('bdia', {}),
    ('time_shift', {}),
  )
  def test_finite(self, sampler, options):
    # in single precision, on every schedule from its noisiest time (a = 0 for the flow) to b = 0
    # and to its first time
    own = {name: samplers.make(sampler, options, schedule) for name, schedule in SCHEDULES.items()}
    settings = list(
      itertools.product(SCHEDULES, range(1, 51), ('uniform', 'log_snr'), ('clean', 'first'))
    )
    ends = flows.sweep(
      own['linear'],
      [grids.make(SCHEDULES[name], *rest) for name, *rest in settings],
      np.float32(flows.X_T),
      [own[setting[0]] for setting in settings],
    )
    self.assertEmpty(
      [setting for setting, end in zip(settings, ends) if not np.all(np.isfinite(end))]
    )

  @parameterized.parameters(
    ('dpmpp', dict(order=2)),
    ('dpmpp', dict(order=3, solver='exact')),
    ('deis', dict(order=4)),
    ('unipc', dict(order=3)),
    ('heun', {}),
    ('bdia', {}),
  )
  def test_the_end_is_near_the_exact_one(self, sampler, options):
    # where a limit is taken wrongly without becoming infinite
    for name in ('linear', 'cosine', 'rectified_flow'):
      schedule = SCHEDULES[name]
      kernel = samplers.make(sampler, options, schedule)
      found = flows.sweep(
        kernel, [grids.make(schedule, 50, 'log_snr', end) for end in ('clean', 'first')]
      )
      for x, end in zip(found, (schedule.clean, schedule.first)):
        start = schedule.at(schedule.last)
        self.assertLess(
          np.abs(x - flows.exact_flow(flows.X_T * start.b, start, schedule.at(end))).max(),
          0.1,
          (name, end),
        )


class ReductionTest(cases.X64TestCase):
  @parameterized.parameters(
    ('dpmpp', dict(order=1, extrapolate=False)),
    ('dpmpp', dict(order=1, solver='exact', extrapolate=False)),
    ('deis', dict(order=1, extrapolate=False)),
    ('bdia', dict(gamma=0.0)),
    ('time_shift', dict(shift_cutoff=1000)),
    ('time_shift', dict(shift_window=0, shift_cutoff=0)),
  )
  def test_to_ddim(self, sampler, options):
    for name in ('linear', 'rectified_flow'):
      grid = grids.make(SCHEDULES[name], 6, 'uniform')
      if name == 'rectified_flow' and options.get('shift_window') == 0:
        grid = grids.from_times(
          SCHEDULES[name], np.arange(7)[1:][::-1] / 10
        )  # among the schedule's own times
      found = flows.sweep(samplers.make(sampler, options, SCHEDULES[name]), [grid])
      np.testing.assert_allclose(
        found, flows.sweep(samplers.make('ddim', {}), [grid]), rtol=0, atol=1e-13
      )

  @parameterized.parameters('dpmpp', 'deis', 'unipc', 'heun', 'bdia', 'time_shift')
  def test_one_step_to_clean_data_is_the_prediction(self, sampler):
    for name in ('linear', 'rectified_flow'):
      schedule = SCHEDULES[name]
      kernel = samplers.make(sampler, dict(order=2), schedule)
      found = flows.sweep(kernel, [grids.from_times(schedule, [schedule.last])])
      start = schedule.at(schedule.last)
      wanted = flows.DENOISER(jnp.asarray(start.b * flows.X_T), start, None).x0
      np.testing.assert_allclose(found[0], wanted, rtol=0, atol=1e-13)


if __name__ == '__main__':
  absltest.main()
