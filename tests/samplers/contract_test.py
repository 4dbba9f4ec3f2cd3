"""What every sampler in SAMPLERS, and every source variant, must do."""

import collections
import functools
import os
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from gmm_diffusion import samplers
from gmm_diffusion.denoisers import exact
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import grids, noise, schedules
from gmm_diffusion.samplers.run import run
from helpers import cases

SHAPE = (2, 4, 1)
# all but 'tuned', which is what its file holds: linear_test.py, tasks/diffusion/tune_test.py
NAMES = (
  cases.SAMPLERS + cases.POSTERIOR + tuple(f'ddim_gmm_{variant}' for variant in samplers.VARIANTS)
)
FOLDER = tempfile.TemporaryDirectory()
OPTIONS = dict(
  components=3,
  scale=0.3,
  eta=0.4,
  infeasible='shrink',
  directions=3,
  posterior=cases.residuals(os.path.join(FOLDER.name, 'residuals.npz'), SHAPE),
)
GAUSSIAN = exact.gaussian(0.3, 0.25)


@functools.cache
def setup(name, steps=5, eta=0.4):
  flow = name.startswith(('rfim', 'euler'))
  schedule = schedules.rectified_flow() if flow else schedules.linear()
  return samplers.make(name, dict(OPTIONS, eta=eta), schedule), grids.make(
    schedule, steps, 'uniform'
  )


def with_etas():
  """Of each sampler the cases that differ."""
  for name in NAMES:
    takes = 'eta' in samplers.options_of(samplers.resolve(name, OPTIONS)[0])
    for steps in (1, 5):
      for eta in (0.0, 1.0) if takes else (0.4,):
        yield {'name': name, 'steps': steps, 'eta': eta}


class ContractTest(cases.X64TestCase):
  @parameterized.parameters(*with_etas())
  def test_shapes_and_finite_values(self, name, steps, eta):
    kernel, grid = setup(name, steps, eta)
    result = cases.sample(
      kernel, GAUSSIAN, grid, SHAPE, np.arange(3), keep='all', dtype=jnp.float32
    )
    self.assertEqual((result.x.shape, result.x.dtype), ((3,) + SHAPE, jnp.float32))
    self.assertEqual(result.path.shape, (steps, 3) + SHAPE)
    np.testing.assert_array_equal(result.path[-1], result.x)
    self.assertTrue(np.all(np.isfinite(result.path)))

  @parameterized.parameters(*NAMES, 'ddim_noise_ortho', 'rfim_noise_rand')
  def test_clean_data_gets_no_noise(self, name):
    x0 = np.linspace(-1, 1, 8).reshape(SHAPE)
    options = dict(OPTIONS, eta=0.7, scale=3.0, churn=1.0, variance='large', infeasible='clip')
    _, grid = setup(name)
    kernel = samplers.make(name, options, schedules.linear())
    found = cases.sample(kernel, cases.known_x0(x0), grid, SHAPE, np.arange(3)).x
    np.testing.assert_allclose(found, np.broadcast_to(x0, (3, *SHAPE)), rtol=0, atol=1e-9)

  @parameterized.parameters(*NAMES)
  def test_a_sample_does_not_depend_on_the_others(self, name):
    kernel, grid = setup(name)
    of = lambda *ids: cases.sample(kernel, GAUSSIAN, grid, SHAPE, np.array(ids)).x
    every = np.concatenate([of(0, 1, 2), of(3, 4, 5), of(6, 7, 8)])  # as many: one compilation
    for ids in ([4], [7, 4, 0]):
      np.testing.assert_allclose(of(*ids), every[np.array(ids)], atol=1e-13)

  @parameterized.parameters(*NAMES)
  def test_one_trace_and_evaluations_are_counted(self, name):
    kernel, grid = setup(name)
    traces, calls = [], collections.Counter()

    def counting(x, time, cond):
      traces.append(x.shape)
      jax.debug.callback(lambda t: calls.update([float(t)]), time.t)
      return GAUSSIAN(x, time, cond)

    plan, _ = kernel.plan(grid, SHAPE)

    @jax.jit
    def fn(plan, keys):
      x = noise.initial(keys, SHAPE, jnp.float64)
      result = run(kernel, counting, grid, plan, x, lambda n: noise.at_step(keys, n, SHAPE))
      return result.x, result.nfe

    first, nfe = fn(plan, noise.sample_keys(0, np.arange(3)))
    jax.block_until_ready(first)
    jax.effects_barrier()
    self.assertEqual(calls.total(), int(nfe))
    self.assertEqual(sorted(calls, reverse=True), grid.t.tolist())
    second, _ = fn(plan, noise.sample_keys(1, np.arange(3)))
    self.assertLen(traces, 2 if name == 'heun' else 1)  # two evaluations in one step
    self.assertGreater(float(jnp.max(jnp.abs(first - second))), 1e-3)

  def test_the_trajectory_is_opt_in(self):
    kernel, grid = setup('ddim_gmm')
    result = cases.sample(kernel, GAUSSIAN, grid, SHAPE, np.arange(2))
    self.assertIsNone(result.path)
    self.assertIsNone(result.info)

  def test_the_settings_of_a_variant_win(self):
    for base in ('ddim_gmm', 'ddim_noise', 'rfim_gmm', 'rfim_noise'):
      name, options = samplers.resolve(
        base + '_ortho_vub',
        dict(OPTIONS, offsets='rand', covariance='exact', form='A', shared=True, variance='small'),
      )
      self.assertEqual(name, base)
      own = {key: OPTIONS[key] for key in ('components', 'scale', 'eta', 'infeasible')}
      expected = dict(own, offsets='ortho', covariance='vub', form='B', shared=False)
      self.assertEqual({key: options[key] for key in expected}, expected)
      self.assertNotIn('variance', options)  # of another sampler
    self.assertEqual(samplers.control_of('ddim_gmm_rand'), 'ddim_noise_rand')
    self.assertIsNone(samplers.control_of('ddim_noise_rand'))

  def test_unknown_names(self):
    with self.assertRaisesRegex(UserError, "unknown sampler 'ddmi'; valid: ddpm, ddim"):
      samplers.make('ddmi', {})
    with self.assertRaisesRegex(
      UserError,
      "unknown sampler option 'compnents'; valid: .*, components, covariance, directions, eta",
    ):
      samplers.make('ddim_gmm', dict(compnents=3))
    kernel, grid = setup('ddim')
    with self.assertRaisesRegex(UserError, "unknown keep 'some'; valid: last, all"):
      cases.sample(kernel, GAUSSIAN, grid, SHAPE, np.arange(2), keep='some')


if __name__ == '__main__':
  absltest.main()
