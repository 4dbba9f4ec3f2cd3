"""Gaussian kernels: golden runs of the original code, closed forms, convergence order."""

import json

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from gmm_diffusion import samplers
from gmm_diffusion.denoisers import exact, guidance
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import grids, noise, schedules
from gmm_diffusion.samplers.run import run
from helpers import cases

FILES = {name: cases.golden(name) for name in ('g7_guided_diffusion', 'g7_ermongroup_ddim')}
RUNS = [
  (file, case, dict(spec['args']))
  for file, arrays in FILES.items()
  for case, spec in json.loads(str(arrays['config']))['cases'].items()
]
GRIDS = {
  'ddim10': 'stride',
  'ddim25': 'stride',
  '10': 'uniform',
  '50': 'uniform',
  'uniform': 'leading',
  'quad': 'quadratic',
}
PROBLEM = cases.golden('g7_problem')


def exact_flow(x, mean, variance, start, end):
  """Probability flow of N(mean, variance) data: (x - a m) / sqrt(a^2 v + b^2) is constant."""
  spread = lambda time: np.sqrt(time.a**2 * variance + time.b**2)
  return end.a * mean + spread(end) / spread(start) * (x - start.a * mean)


class GoldenTest(cases.X64TestCase):
  @parameterized.parameters(*RUNS)
  def test_trajectory(self, file, case, args):
    states, times = FILES[file][case + '/states'], FILES[file][case + '/timesteps']
    grid = grids.make(
      schedules.linear(), len(times), GRIDS[args.get('timestep_respacing', args.get('skip_type'))]
    )
    np.testing.assert_array_equal(grid.t, times)
    denoiser = exact.gaussian(PROBLEM['m'], PROBLEM['v'])
    noisy = args['sampler'] == 'ddpm_noisy'  # the one case with beta as variance; it always clips
    if args.get('clip_denoised', noisy):
      denoiser = guidance.clip_x0(denoiser)
    if args['sampler'].startswith('ddpm'):
      kernel = samplers.make('ddpm', dict(variance='large' if noisy else 'small'))
    else:
      kernel = samplers.make('ddim', dict(eta=args['eta']))
    plan, _ = kernel.plan(grid, (4,))
    draws = jnp.asarray(PROBLEM['noise'], jnp.float64)
    x = jnp.asarray(PROBLEM['x_T'], jnp.float64)
    result = run(
      kernel, denoiser, grid, plan, x, lambda n: noise.StepNoise(draws[n], jnp.zeros(8)), keep='all'
    )
    np.testing.assert_allclose(result.path, states[1:], rtol=0, atol=1e-9)


class ConvergenceTest(cases.X64TestCase):
  def fitted_order(self, name, schedule, grid_name, end):
    mean, variance = PROBLEM['m'], PROBLEM['v']
    steps = np.array([40, 80, 160, 320, 640])
    errors = []
    for n in steps:
      grid = grids.make(schedule, int(n), grid_name, end)
      x = np.float64(PROBLEM['x_T'])
      kernel = samplers.make(name, dict(eta=0.0))
      found = cases.sample(
        kernel, exact.gaussian(mean, variance), grid, (4,), np.arange(8), start=jnp.asarray(x)
      ).x
      target = exact_flow(x, mean, variance, schedule.at(grid.t[0]), schedule.at(grid.s[-1]))
      errors.append(np.abs(found - target).max())
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]

  def test_ddim_is_of_first_order_on_the_log_snr_grid(self):
    self.assertAlmostEqual(
      self.fitted_order('ddim', schedules.linear(), 'log_snr', 'first'), 1, delta=0.15
    )

  def test_ddim_is_of_first_order_on_other_schedules(self):
    self.assertAlmostEqual(
      self.fitted_order('ddim', schedules.cosine(), 'log_snr', 'first'), 1, delta=0.15
    )
    self.assertAlmostEqual(
      self.fitted_order('ddim', schedules.edm(), 'log_snr', 'first'), 1, delta=0.15
    )

  def test_euler_is_of_first_order_on_the_flow(self):
    self.assertAlmostEqual(
      self.fitted_order('euler', schedules.rectified_flow(), 'uniform', 'clean'), 1, delta=0.15
    )

  def test_flow_starts_from_pure_noise(self):
    # at t = 1 the formula must not divide by a = 0
    grid = grids.make(schedules.rectified_flow(), 1, 'uniform')
    x = jnp.asarray(PROBLEM['x_T'], jnp.float64)
    found = cases.sample(
      samplers.make('euler', {}),
      exact.gaussian(PROBLEM['m'], PROBLEM['v']),
      grid,
      (4,),
      np.arange(8),
      start=x,
    ).x
    np.testing.assert_allclose(
      found, np.broadcast_to(PROBLEM['m'], (8, 4)), atol=1e-12
    )  # E[x_0 | pure noise]


class ClosedFormTest(cases.X64TestCase):
  def test_euler_is_a_step_along_the_velocity(self):
    schedule = schedules.rectified_flow()
    grid = grids.make(schedule, 4, 'uniform')
    denoiser = exact.gaussian(0.2, 0.3)
    x = jnp.asarray(np.random.RandomState(0).randn(5, 3))
    path = cases.sample(
      samplers.make('euler', {}), denoiser, grid, (3,), np.arange(5), start=x, keep='all'
    ).path
    before = x
    for n in range(4):
      time = schedule.at(grid.t[n])
      found = denoiser(before, time, None)
      slope = found.eps - found.x0
      np.testing.assert_allclose(path[n], before + (grid.s[n] - grid.t[n]) * slope, atol=1e-12)
      before = path[n]

  @parameterized.parameters(('ddim', 1.0), ('ddim', 0.5), ('rfim', 0.5), ('rfim', 1.0))
  def test_variance_of_one_step(self, name, eta):
    # 1e5 samples of one step around a known x_0: standard deviation tau, to 5 standard errors
    schedule = schedules.rectified_flow() if name == 'rfim' else schedules.linear()
    times = [0.8, 0.5] if name == 'rfim' else [800, 500]
    grid = grids.from_times(schedule, times[:1], times[1])
    start = jnp.full((100000, 1), 0.7)
    x = cases.sample(
      samplers.make(name, dict(eta=eta)),
      cases.known_x0(np.array([0.2])),
      grid,
      (1,),
      np.arange(100000),
      start=start,
    ).x
    a_t, b_t, a_s, b_s = (float(v[0]) for v in grid[2:])
    tau = eta * b_s if name == 'rfim' else eta * b_s / b_t * np.sqrt(1 - a_t**2 / a_s**2)
    eps = (0.7 - a_t * 0.2) / b_t
    self.assertAlmostEqual(float(x.std()) / tau, 1, delta=5 / np.sqrt(2e5))
    self.assertAlmostEqual(
      float(x.mean()), a_s * 0.2 + np.sqrt(b_s**2 - tau**2) * eps, delta=5 * tau / np.sqrt(1e5)
    )

  @parameterized.parameters('ddim', 'rfim')
  def test_eta_zero_is_deterministic(self, name):
    schedule = schedules.rectified_flow() if name == 'rfim' else schedules.linear()
    grid = grids.make(schedule, 5, 'uniform')
    start = jnp.ones((2, 3))
    draw = lambda seed: (
      cases.sample(
        samplers.make(name, {}),
        exact.gaussian(0.0, 1.0),
        grid,
        (3,),
        np.arange(2),
        seed=seed,
        start=start,
      ).x
    )
    np.testing.assert_array_equal(draw(0), draw(1))

  def test_ddim_with_eta_one_is_ddpm(self):
    grid = grids.make(schedules.linear(), 6, 'uniform')
    draw = lambda name, **options: (
      cases.sample(
        samplers.make(name, options), exact.gaussian(0.1, 0.3), grid, (3,), np.arange(4)
      ).x
    )
    np.testing.assert_array_equal(draw('ddim', eta=1.0), draw('ddpm'))

  @parameterized.parameters(
    ('ddim', -0.1), ('ddim', 1.5), ('rfim', 2.0), ('ddim_gmm', -1.0), ('ddim_noise', 1.01)
  )
  def test_eta_outside_the_unit_interval(self, name, eta):
    with self.assertRaisesRegex(UserError, rf'eta must be in \[0, 1\], got {eta:g}'):
      samplers.make(name, dict(eta=eta))

  def test_unknown_variance(self):
    with self.assertRaisesRegex(UserError, "unknown variance 'tiny'; valid: small, large, learned"):
      samplers.make('ddpm', dict(variance='tiny'))


if __name__ == '__main__':
  absltest.main()
