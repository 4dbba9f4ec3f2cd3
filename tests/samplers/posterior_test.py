"""The kernels with the covariance of the posterior: exact for Gaussian data, and their controls."""

import os

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from gmm_diffusion import samplers
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import grids, marginals, schedules
from gmm_diffusion.samplers import posterior
from gmm_diffusion.tune import posterior as measuring
from gmm_diffusion.tune.subject import Subject
from helpers import cases

LINEAR = schedules.linear()
SHAPE = (2, 3, 1)
BASIS = np.linalg.qr(np.random.RandomState(5).randn(6, 6))[0].T
VARIANCES = np.array([2.0, 1.0, 0.5, 0.2, 0.05, 0.01])  # of the data along the basis


def denoiser(weights):
  """The exact one of N(0, BASIS^T diag(VARIANCES) BASIS)."""
  basis = weights

  def denoise(x, time, cond):
    del cond
    gain = time.a * VARIANCES / (time.a**2 * VARIANCES + time.b**2)
    flat = (x.reshape(len(x), 6) @ basis.T * gain[None]) @ basis
    return marginals.from_x0(x, flat.reshape(x.shape).astype(x.dtype), time)

  return denoise


def known(levels):
  """The residuals of that denoiser in closed form, at levels log(a^2 / b^2)."""
  snr = np.exp(levels)[:, None]
  return {
    'level': levels,
    'variances': VARIANCES / (1 + snr * VARIANCES),
    'vectors': np.broadcast_to(BASIS, (len(levels), 6, 6)),
    'total': np.sum(VARIANCES / (1 + snr * VARIANCES), 1),
  }


class PosteriorTest(cases.X64TestCase):
  def setUp(self):
    super().setUp()
    self.path = os.path.join(self.create_tempdir(), 'residuals.npz')
    self.grid = grids.make(LINEAR, 4, 'log_snr')
    levels = 2 * np.log(self.grid.a_t / self.grid.b_t)
    cases.residuals(self.path, SHAPE, **known(np.sort(levels)))

  def drawn(self, name, count=40_000, **options):
    """Coefficients of the states before the last step along the basis, [count, 6], and their
    variances as they should be."""
    options = {'posterior': self.path, 'directions': 6, **options}
    kernel = samplers.make(name, options, LINEAR)
    z = np.random.RandomState(1).randn(count, 6)
    start = z * np.sqrt(self.grid.a_t[0] ** 2 * VARIANCES + self.grid.b_t[0] ** 2) @ BASIS
    found = cases.sample(
      kernel, denoiser(jnp.asarray(BASIS)), self.grid, SHAPE, np.arange(count), keep='all',
      start=start.reshape(count, *SHAPE),
    ).path[-2]  # fmt: skip
    wanted = self.grid.a_s[-2] ** 2 * VARIANCES + self.grid.b_s[-2] ** 2
    return np.asarray(found).reshape(count, 6) @ BASIS.T, wanted

  @parameterized.product(kind=['axes', 'corners', 'gaussian'], eta=[0.0, 0.5, 1.0])
  def test_all_directions_keep_the_marginals_of_gaussian_data(self, kind, eta):
    name, more = 'posterior_gmm', {'places': kind}
    if kind == 'gaussian':
      name, more = 'posterior_gaussian', {}
    found, wanted = self.drawn(name, eta=eta, **more)
    covariance = found.T @ found / len(found)
    scale = np.sqrt(np.outer(wanted, wanted))
    np.testing.assert_allclose(covariance / scale, np.eye(6), atol=0.05)
    plain, _ = self.drawn('ddim', count=2000, eta=eta)
    self.assertGreater(np.max(np.abs(np.mean(plain**2, 0) / wanted - 1)), 0.1)

  def test_the_control_has_the_energy_and_no_directions(self):
    options = {'posterior': self.path, 'directions': 2, 'eta': 0.3, 'scale': 0.8}
    plan, _ = samplers.make('posterior_gmm', options, LINEAR).plan(self.grid, SHAPE)
    same, _ = samplers.make('posterior_noise', options, LINEAR).plan(self.grid, SHAPE)
    np.testing.assert_array_equal(plan.rows.std, same.rows.std)
    self.assertEqual(samplers.control_of('posterior_gmm'), 'posterior_noise')
    self.assertTrue(samplers.is_control('posterior_noise'))
    # one step from one state: the scatter around the mean of DDIM
    one = grids.StepGrid(*(level[1:2] for level in self.grid))
    start = np.broadcast_to(np.linspace(-1, 1, 6).reshape(SHAPE), (40_000, *SHAPE))
    scatter = {}
    for name in ('posterior_gmm', 'posterior_gaussian', 'posterior_noise'):
      kernel = samplers.make(name, options, LINEAR)
      x = cases.sample(
        kernel, denoiser(jnp.asarray(BASIS)), one, SHAPE, np.arange(40_000), start=start
      ).x
      scatter[name] = np.var(np.asarray(x).reshape(-1, 6) @ BASIS.T, 0)
    tau = plan.rows.tau[1]
    directed = tau**2 + np.append(plan.rows.std[1] ** 2, np.zeros(4))
    flat = np.full(6, tau**2 + np.sum(plan.rows.std[1] ** 2) / 6)
    np.testing.assert_allclose(scatter['posterior_gmm'], directed, rtol=0.03)
    np.testing.assert_allclose(scatter['posterior_gaussian'], directed, rtol=0.03)
    np.testing.assert_allclose(scatter['posterior_noise'], flat, rtol=0.03)
    self.assertAlmostEqual(directed.sum(), flat.sum())

  def test_scale_0_is_ddim(self):
    plain = samplers.make('ddim', {'eta': 0.0}, LINEAR)
    ask = lambda kernel: (
      cases.sample(kernel, denoiser(jnp.asarray(BASIS)), self.grid, SHAPE, np.arange(3)).x
    )
    for name in cases.POSTERIOR:
      kernel = samplers.make(name, {'posterior': self.path, 'directions': 2, 'scale': 0.0}, LINEAR)
      np.testing.assert_allclose(ask(kernel), ask(plain), atol=1e-12)

  def test_measured_residuals_are_those_of_the_closed_form(self):
    z = np.random.RandomState(2).randn(20_000, 6)
    items = (z * np.sqrt(VARIANCES) @ BASIS).reshape(-1, *SHAPE).astype(np.float32)
    it = Subject(denoiser, BASIS.astype(np.float32), LINEAR, SHAPE, batch=5000)
    found = measuring.measure(it, items, 3, 4, 0)
    self.assertTrue(np.all(np.diff(found['level']) > 0))
    wanted = known(found['level'])
    np.testing.assert_allclose(found['variances'][1:], wanted['variances'][1:, :4], rtol=0.05)
    np.testing.assert_allclose(found['total'], wanted['total'], rtol=0.05)
    # of well separated eigenvalues the vectors are those of the data
    overlap = np.abs(np.sum(found['vectors'][0] * BASIS[:4], 1))
    np.testing.assert_allclose(overlap, 1, atol=0.01)

  def test_both_products_have_the_same_components(self):
    r = np.random.RandomState(3).randn(12, 10) * np.linspace(3, 0.1, 10)
    values, vectors, total = measuring.components(r, 3)
    turned, own, same = measuring.components(r[:9], 3)
    direct = np.linalg.svd(r[:9], full_matrices=False)
    np.testing.assert_allclose(turned, direct[1][:3] ** 2 / 9, rtol=1e-5)
    np.testing.assert_allclose(np.abs(np.sum(own * direct[2][:3], 1)), 1, atol=1e-5)
    self.assertAlmostEqual(same, np.sum(r[:9] ** 2) / 9, places=4)
    np.testing.assert_allclose(values, np.linalg.svd(r)[1][:3] ** 2 / 12, rtol=1e-5)
    self.assertAlmostEqual(total, np.sum(r**2) / 12, places=4)
    self.assertEqual(vectors.shape, (3, 10))

  @parameterized.parameters(
    ({'posterior': ''}, 'need sampler.posterior'),
    ({'posterior': 'nowhere.npz'}, 'no nowhere.npz; make it with --mode=posterior'),
    ({'directions': 7}, r'directions must be in 1..6'),
    ({'scale': -1.0}, 'scale must be >= 0, got -1'),
    ({'eta': 2.0}, r'eta must be in \[0, 1\]'),
    ({'places': 'edges'}, "unknown places 'edges'; valid: axes, corners"),
    ({'places': 'corners', 'directions': 21}, "places 'corners' takes up to 20 directions, got 21"),
  )
  def test_bad_options(self, options, message):
    with self.assertRaisesRegex(UserError, message):
      samplers.make('posterior_gmm', {'posterior': self.path, **options}, LINEAR)

  def test_another_shape(self):
    kernel = samplers.make('posterior_gmm', {'posterior': self.path, 'directions': 2}, LINEAR)
    with self.assertRaisesRegex(UserError, r'samples of shape \[2, 3, 1\], these are \[6\]'):
      kernel.plan(self.grid, (6,))

  @parameterized.parameters(
    {'level': np.zeros(2)}, {'variances': np.full((3, 6), np.nan)}, {'shape': np.array([7])},
    {'vectors': np.zeros((3, 5, 6))}, {'denoiser': 0, 'shape': 'abc'},
  )  # fmt: skip
  def test_damaged_files(self, **arrays):
    path = cases.residuals(os.path.join(self.create_tempdir(), 'x.npz'), (6,))
    np.savez(path, **{**np.load(path), **arrays})
    with self.assertRaisesRegex(UserError, 'holds no residuals'):
      posterior.read(path)
    for content in (b'no zip', b'PK\3\4 cut off'):
      with open(path, 'wb') as file:
        file.write(content)
      with cases.all_closed(), self.assertRaisesRegex(UserError, 'holds no residuals'):
        posterior.read(path)


if __name__ == '__main__':
  absltest.main()
