"""DEIS: golden runs of the original code up to their quadrature error, and integrals in closed
form."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from gmm_diffusion import samplers
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import grids, marginals, schedules
from gmm_diffusion.samplers import deis
from helpers import cases, flows

TORCH, TORCH_RUNS = flows.golden('g7_deis_th')
JAX, JAX_RUNS = flows.golden('g7_deis_tab')


def schedule_of(abar, time_of_abar, times):
  return dataclasses.replace(
    schedules.linear(),
    signal=lambda t: np.sqrt(abar(t)),
    noise=lambda t: np.sqrt(1 - abar(t)),
    clean=times[0],
    last=times[-1],
    time_of_log_snr=lambda value: time_of_abar(1 / (1 + np.exp(-value))),
    training_times=times,
  )


# The original's discrete models are linear in abar itself between integer times.
_T = np.arange(1000.0)
_ABAR = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
DISCRETE = schedule_of(
  lambda t: np.interp(t, _T, _ABAR), lambda abar: np.interp(-abar, -_ABAR, _T), _T
)
# -log abar = 0.1 t + 19.9 t^2 / 2, and its inverse
CONTINUOUS = schedule_of(
  lambda t: np.exp(-0.1 * t - 9.95 * t**2),
  lambda abar: (np.sqrt(0.01 - 39.8 * np.log(abar)) - 0.1) / 19.9,
  np.arange(1001) / 1000,
)
make = functools.cache(
  lambda order, discrete: deis.deis(order, DISCRETE if discrete else CONTINUOUS, extrapolate=False)
)


class GoldenTest(cases.X64TestCase):
  """The original's integrals are left Riemann sums: with n nodes their error falls as 1 / n, here
  also the results'."""

  def final(self, arrays, case, args, discrete):
    times = arrays[case + '/timesteps']
    grid = grids.from_times(DISCRETE if discrete else CONTINUOUS, times[:-1], times[-1])
    result = flows.sample(make(args['ab_order'] + 1, discrete), grid)
    self.assertEqual(result.nfe, args['calls'])
    return result.x

  @parameterized.parameters(*TORCH_RUNS)
  def test_million_nodes(self, case, args):
    fine = TORCH[case + '/final_million_nodes']
    # 1e4 nodes are off by a hundred times the error of 1e6; 1.5 allows for terms of higher order
    atol = 1.5 * np.abs(fine - TORCH[case + '/final']).max() / 99
    self.assertLess(atol, 1e-4)
    np.testing.assert_allclose(self.final(TORCH, case, args, True), fine, rtol=0, atol=atol)

  @parameterized.parameters(*JAX_RUNS)
  def test_ten_thousand_nodes(self, case, args):
    # 4.5e-3 is the largest effect of exact integrals that was found for 5 steps; it falls with
    # their length squared
    atol = 4.5e-3 * (5 / args['num_step']) ** 2
    np.testing.assert_allclose(
      self.final(JAX, case, args, args['sde'] == 'discrete'),
      JAX[case + '/final'],
      rtol=0,
      atol=atol,
    )


class IntegralTest(cases.X64TestCase):
  @parameterized.parameters('rectified_flow', 'linear')
  def test_polynomials_are_integrated_exactly(self, name):
    # eps = t^2 along the path: x / a grows by int t^2 d rho, whatever x; from the third step on
    schedule = schedules.SCHEDULES[name]()
    scale = schedule.last

    def denoiser(x, time, cond):
      return marginals.from_eps(x, jnp.full_like(x, (time.t / scale) ** 2), time)

    # not from pure noise, where x / a is not finite
    grid = grids.from_times(schedule, scale * np.array([0.9, 0.7, 0.45, 0.2, 0.05]))
    path = cases.sample(
      deis.deis(3, schedule, extrapolate=False), denoiser, grid, (1,), np.arange(2), keep='all'
    ).path[..., 0]
    found = (path[3:] / grid.a_s[3:, None] - path[2:-1] / grid.a_t[3:, None])[:, 0]
    if name == 'rectified_flow':  # t = rho / (1 + rho)
      primitive = lambda t: (r := t / (1 - t)) + 1 - 2 * np.log1p(r) - 1 / (1 + r)
      wanted = primitive(grid.s[3:]) - primitive(grid.t[3:])
    else:  # by parts, with a very fine midpoint rule: rho is singular only at the clean end
      rho = lambda t: schedule.noise(t) / schedule.signal(t)
      end = lambda t: (t / scale) ** 2 * rho(t)
      midpoints = [
        np.linspace(s, t, 2000001)[:-1] + (t - s) / 4e6 for t, s in zip(grid.t[3:], grid.s[3:])
      ]
      inner = np.array([np.mean(2 * t / scale**2 * rho(t)) for t in midpoints]) * (
        grid.t[3:] - grid.s[3:]
      )
      wanted = end(grid.s[3:]) - end(grid.t[3:]) + inner
    np.testing.assert_allclose(
      found, wanted, rtol=0, atol=1e-12 if name == 'rectified_flow' else 1e-9
    )

  def test_bad(self):
    with self.assertRaisesRegex(UserError, 'order must be in 1..4 for this sampler, got 5'):
      samplers.make('deis', dict(order=5), DISCRETE)
    with self.assertRaisesRegex(UserError, 'sampler deis needs the noise schedule'):
      samplers.make('deis', {})


if __name__ == '__main__':
  absltest.main()
