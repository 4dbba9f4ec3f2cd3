"""Mixture kernels: marginals of the chain, reductions, infeasible scales, bad options."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy import stats

from gmm_diffusion import samplers
from gmm_diffusion.denoisers import exact
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import grids, marginals, noise, schedules
from gmm_diffusion.samplers import mixture
from gmm_diffusion.samplers.run import run
from helpers import cases

D, N = 6, 200000
X0 = np.linspace(-1, 1, D)
FALSE_ALARM = 1e-6  # of one chain, Bonferroni over all entries of all steps
SKEWED = (0.1, 0.2, 0.3, 0.4)


def worst_z(options, base):
  """Largest |z| over mean and covariance entries of q(x_s | x_0), all steps; and its threshold."""
  schedule = schedules.rectified_flow() if base.startswith('rfim') else schedules.linear()
  grid = grids.make(schedule, 4, 'uniform')
  kernel = samplers.make(base, dict(components=4, **options))
  plan, report = kernel.plan(grid, (D,))
  eps = jax.random.normal(jax.random.key(1), (N, D))
  start = grid.a_t[0] * X0[None] + grid.b_t[0] * eps
  path = cases.sample(
    kernel, cases.known_x0(X0), grid, (D,), np.arange(N), start=jnp.asarray(start), keep='all'
  ).path
  scores = []
  for n in range(3):  # the last step ends at x_0 itself
    y = (np.asarray(path[n]) - grid.a_s[n] * X0) / grid.b_s[n]  # should be white
    scores += [np.abs(y.mean(0) / y.std(0) * np.sqrt(N)).max()]
    for i in range(D):
      for j in range(i + 1):
        product = y[:, i] * y[:, j]
        scores.append(abs(product.mean() - (i == j)) / product.std() * np.sqrt(N))
  entries = 3 * (D + D * (D + 1) // 2)
  return max(scores), stats.norm.isf(FALSE_ALARM / (2 * entries)), report


class ChainTest(cases.X64TestCase):
  @parameterized.product(
    base=['ddim_gmm', 'rfim_gmm'],
    offsets=['rand_centred', 'ortho'],
    form=['A', 'B'],
    priors=[(), SKEWED],
  )
  def test_marginals_are_kept(self, base, offsets, form, priors):
    worst, threshold, _ = worst_z(
      dict(
        eta=0.7,
        scale=9.0,
        offsets=offsets,
        form=form,
        covariance='exact',
        priors=priors,
        infeasible='shrink',
      ),
      base,
    )
    self.assertLess(worst, threshold)

  @parameterized.parameters('ddim_gmm', 'rfim_gmm')
  def test_marginals_are_kept_with_offsets_of_each_step(self, base):
    worst, threshold, _ = worst_z(
      dict(
        eta=0.7,
        scale=9.0,
        offsets='ortho',
        form='B',
        covariance='exact',
        shared=False,
        infeasible='shrink',
      ),
      base,
    )
    self.assertLess(worst, threshold)

  @parameterized.parameters('ddim_gmm', 'rfim_gmm')
  def test_clipping_at_eta_zero_is_detected(self, base):
    worst, threshold, report = worst_z(
      dict(eta=0.0, scale=0.5, offsets='ortho', form='B', covariance='exact', infeasible='clip'),
      base,
    )
    self.assertGreater(worst, 5 * threshold)
    self.assertEqual([row['infeasible'] for row in report], ['clipped'] * 3 + [''])
    # all of the kick is added: scale^2 sum_k pi_k |u_k|^2 / D = 0.25 * 3/4 / 6
    np.testing.assert_allclose(
      [row['added_variance'] for row in report], [0.25 * 0.75 / 6] * 3 + [0], rtol=1e-9
    )

  def test_the_diagonal_approximation_is_detected(self):
    worst, threshold, _ = worst_z(
      dict(
        eta=0.7, scale=9.0, offsets='ortho', form='B', covariance='diagonal', infeasible='shrink'
      ),
      'ddim_gmm',
    )
    self.assertGreater(worst, threshold)


class LastStepTest(cases.X64TestCase):
  """A step that ends at clean data (b_s = 0), where only offsets of zero keep the moments."""

  LINEAR = grids.make(schedules.linear(), 2, 'uniform')
  FLOW = grids.make(schedules.rectified_flow(), 2, 'uniform')

  def ends(self, name, count=50, **options):
    grid = self.FLOW if name.startswith('rfim') else self.LINEAR
    options = dict(dict(scale=3.0, components=4), **options)
    return np.asarray(
      cases.sample(samplers.make(name, options), cases.known_x0(X0), grid, (D,), np.arange(count)).x
    )

  @parameterized.product(
    name=['ddim_gmm', 'rfim_gmm', 'ddim_noise', 'rfim_noise', 'rfim_gmm_rand'],
    eta=[0.0, 0.7],
  )
  def test_it_returns_the_mean(self, name, eta):
    np.testing.assert_allclose(
      self.ends(name, eta=eta), np.broadcast_to(X0, (50, D)), rtol=0, atol=1e-12
    )

  @parameterized.parameters('ddim', 'rfim')
  def test_the_source_adds_an_offset_to_clean_data(self, base):
    # centred orthonormal offsets have length scale sqrt((K - 1) / K)
    offsets = self.ends(base + '_gmm', last_step='source') - X0
    np.testing.assert_allclose(np.linalg.norm(offsets, axis=1), 3 * 0.75**0.5, rtol=1e-12)
    self.assertLen(np.unique(np.round(offsets, 9), axis=0), 4)
    # and the control the same energy; 6 standard errors of a variance
    added = self.ends(base + '_noise', count=20000, last_step='source') - X0
    count = added.size
    self.assertAlmostEqual(np.mean(added**2) / (9 * 0.75 / D), 1, delta=6 * np.sqrt(2 / count))

  @parameterized.product(base=['ddim_gmm', 'rfim_gmm'], eta=[0.0, 0.5])
  def test_the_report_says_so(self, base, eta):
    grid = self.FLOW if base == 'rfim_gmm' else self.LINEAR

    def rows(**options):
      options = dict(dict(scale=3.0, components=4, eta=eta), **options)
      return samplers.make(base, options).plan(grid, (D,))[1]

    zero = dict(scale=0, infeasible='', covariance_residual=0, added_variance=0, mean_residual=0)
    self.assertEqual({key: rows()[-1][key] for key in zero}, zero)
    self.assertEqual(rows()[0]['scale'], 3)
    literal = rows(last_step='source')[-1]
    self.assertEqual((literal['scale'], literal['infeasible']), (3, 'clipped'))
    np.testing.assert_allclose(literal['added_variance'], 9 * 0.75 / D, rtol=1e-9)
    # nothing is infeasible about the mean
    feasible = 1e-3 * eta
    self.assertEqual(
      [row['infeasible'] for row in rows(scale=feasible, infeasible='error')], ['', '']
    )

  def test_a_grid_that_stops_before_clean_data_keeps_its_offsets(self):
    grid = grids.make(schedules.linear(), 3, 'uniform', 'first')
    _, report = samplers.make('ddim_gmm', dict(scale=3.0, components=4)).plan(grid, (D,))
    self.assertEqual([row['scale'] for row in report], [3, 3, 3])

  def test_unknown(self):
    with self.assertRaisesRegex(UserError, "unknown last_step 'noise'; valid: mean, source"):
      samplers.make('ddim_gmm', dict(last_step='noise'))


class ReductionTest(cases.X64TestCase):
  @parameterized.product(
    eta=[0.0, 0.6], offsets=['rand', 'ortho'], reduced=[dict(components=1), dict(scale=0.0)]
  )
  def test_no_offsets_is_ddim(self, eta, offsets, reduced):
    grid = grids.make(schedules.linear(), 5, 'trailing')
    options = {
      **dict(
        eta=eta, components=3, scale=2.0, offsets=offsets, form='A', shared=offsets == 'ortho'
      ),
      **reduced,
    }
    draw = lambda name: (
      cases.sample(
        samplers.make(name, options), exact.gaussian(0.3, 0.2), grid, (8,), np.arange(6)
      ).x
    )
    np.testing.assert_allclose(draw('ddim_gmm'), draw('ddim'), atol=1e-13)
    np.testing.assert_allclose(draw('ddim_noise'), draw('ddim'), atol=1e-13)

  def test_the_control_of_a_feasible_exact_mixture_is_ddim(self):
    grid = grids.make(schedules.linear(), 5, 'trailing')
    options = dict(eta=0.8, scale=5.0, infeasible='shrink', covariance='exact')
    draw = lambda name: (
      cases.sample(
        samplers.make(name, options), exact.gaussian(0.3, 0.2), grid, (16,), np.arange(6)
      ).x
    )
    np.testing.assert_allclose(draw('ddim_noise'), draw('ddim'), atol=1e-7)
    self.assertGreater(float(jnp.abs(draw('ddim_gmm') - draw('ddim')).max()), 0.1)

  @parameterized.product(variant=['rand', 'ortho', 'ortho_vub_shared'], eta=[0.0, 0.5])
  def test_the_control_has_the_total_variance_of_its_mixture(self, variant, eta):
    # one step around a known x_0, 1e5 samples; 6 standard errors of the summed variance
    grid = grids.from_times(schedules.linear(), [600], 500)
    options = dict(eta=eta, scale=0.5, components=4)
    start = jnp.zeros((100000, D))
    weight = float(marginals.noise_weight(grid, marginals.posterior_std(grid, eta))[0])

    def total(name):
      x = cases.sample(
        samplers.make(f'{name}_{variant}', options),
        cases.known_x0(X0),
        grid,
        (D,),
        np.arange(100000),
        start=start,
      ).x
      mean = float(grid.a_s[0]) * X0 + weight * (0 - float(grid.a_t[0]) * X0) / float(grid.b_t[0])
      return float(
        np.sum(np.mean((np.asarray(x) - mean) ** 2, 0))
      )  # about mu: a mean residual counts

    mixed, control = total('ddim_gmm'), total('ddim_noise')
    self.assertAlmostEqual(mixed / control, 1, delta=6 * np.sqrt(2 * 2 / D / 1e5))

  def test_samples_of_a_mixture_come_from_its_components(self):
    grid = grids.from_times(schedules.linear(), [600], 500)
    kernel = samplers.make('ddim_gmm', dict(components=4, scale=2.0, priors=SKEWED))
    result = cases.sample(
      kernel,
      cases.known_x0(X0),
      grid,
      (D,),
      np.arange(20000),
      start=jnp.zeros((20000, D)),
      keep='all',
    )
    component = np.asarray(result.info['component'][0])
    counts = np.bincount(component, minlength=4)
    self.assertGreater(stats.chisquare(counts, 20000 * np.array(SKEWED)).pvalue, 1e-4)
    self.assertLen(
      np.unique(np.round(np.asarray(result.x), 9), axis=0), 4
    )  # tau = 0: one point a component

  def test_offsets_are_shared_only_if_asked(self):
    grid = grids.make(schedules.linear(), 3, 'uniform')

    def kicks(shared):
      kernel = samplers.make(
        'ddim_gmm', dict(components=2, scale=1.0, shared=shared, offsets='rand_centred')
      )
      result = cases.sample(
        kernel,
        cases.known_x0(np.zeros(D)),
        grid,
        (D,),
        np.arange(50),
        start=jnp.zeros((50, D)),
        keep='all',
      )
      return np.unique(
        np.round(
          np.abs(np.diff(np.concatenate([result.path[:1], result.path]), axis=0)[1:, :, 0]), 6
        )
      )

    self.assertFalse(np.array_equal(kicks(True), kicks(False)))

  def test_redrawing_offsets_in_the_loop_changes_nothing(self):
    grid = grids.make(schedules.linear(), 3, 'uniform')
    kernel = samplers.make('ddim_gmm', dict(eta=0.5, components=4, scale=0.5, shared=False))
    draw = lambda: np.asarray(
      cases.sample(kernel, exact.gaussian(0.3, 0.2), grid, (D,), np.arange(5)).x
    )
    kept = draw()
    with mock.patch.object(mixture, 'KEEP_AT_MOST', 0):
      plan, _ = kernel.plan(grid, (D,))
      self.assertEqual(plan.rows.own.dtype, np.uint32)
      np.testing.assert_allclose(draw(), kept, atol=1e-12)


class InfeasibleTest(cases.X64TestCase):
  GRID = grids.make(schedules.linear(), 4, 'uniform')

  def test_shrink_reduces_to_the_bound(self):
    _, report = samplers.make('ddim_gmm', dict(eta=0.5, scale=9.0, infeasible='shrink')).plan(
      self.GRID, (16,)
    )
    for row in report:
      np.testing.assert_allclose(
        row['scale'], np.sqrt(8) * row['tau'], rtol=1e-6
      )  # scale^2 = K tau^2
      self.assertLess(row['covariance_residual'], 1e-7)
      self.assertEqual(row['infeasible'], 'shrunk' if row['b_s'] > 0 else '')

  def test_error_names_step_and_bound(self):
    with self.assertRaisesRegex(
      UserError, r'scale 9 is infeasible at step 0 of 4 \(t = 999\): the largest is'
    ):
      samplers.make('ddim_gmm', dict(eta=0.5, scale=9.0, infeasible='error')).plan(self.GRID, (16,))

  def test_feasible_scale_is_left_alone(self):
    grid = grids.make(schedules.linear(), 4, 'uniform', 'first')
    for infeasible in ('clip', 'shrink', 'error'):
      _, report = samplers.make('ddim_gmm', dict(eta=0.5, scale=1e-4, infeasible=infeasible)).plan(
        grid, (16,)
      )
      self.assertEqual([(row['scale'], row['infeasible']) for row in report], [(1e-4, '')] * 4)

  def test_scale_of_each_step(self):
    _, report = samplers.make('ddim_gmm', dict(scale=(0.4, 0.3, 0.2, 0.0))).plan(self.GRID, (16,))
    self.assertEqual([row['scale'] for row in report], [0.4, 0.3, 0.2, 0.0])


class ScaleIntervalTest(cases.X64TestCase):
  GRID = grids.make(schedules.linear(), 5, 'trailing', 'first')
  LEVEL = GRID.b_t / GRID.a_t  # falls from step to step

  def rows(self, name='ddim_gmm', **options):
    return samplers.make(name, dict(dict(eta=0.5, scale=2.0, components=4), **options)).plan(
      self.GRID, (8,)
    )

  def test_both_ends_are_inside(self):
    interval = tuple(self.LEVEL[[3, 1]] * (1 - 1e-12, 1 + 1e-12))
    _, report = self.rows(scale_interval=interval)
    self.assertEqual([row['scale'] for row in report], [0, 2, 2, 2, 0])
    for row, inside in zip(report, (False, True, True, True, False)):
      self.assertEqual(row['infeasible'], 'clipped' if inside else '')
      self.assertEqual(row['covariance_residual'] > 1e-3, inside)
      self.assertEqual(row['added_variance'] > 1e-3, inside)

  def test_it_masks_the_scales_of_the_steps(self):
    _, report = self.rows(
      scale=(5.0, 4.0, 3.0, 2.0, 1.0), scale_interval=[0, 1.001 * float(self.LEVEL[2])]
    )
    self.assertEqual([row['scale'] for row in report], [0, 0, 3, 2, 1])

  @parameterized.parameters(('ddim_gmm', 0.0), ('ddim_gmm_rand', 0.5), ('ddim_noise', 0.5))
  def test_no_step_inside_is_ddim(self, name, eta):
    options = dict(eta=eta, scale=2.0, components=4)
    draw = lambda name, **more: (
      cases.sample(
        samplers.make(name, dict(options, **more)),
        exact.gaussian(0.3, 0.2),
        self.GRID,
        (8,),
        np.arange(6),
      ).x
    )
    between = (float(self.LEVEL[2]) * 1.01, float(self.LEVEL[1]) * 0.99)
    np.testing.assert_allclose(draw(name, scale_interval=between), draw('ddim'), atol=1e-13)
    np.testing.assert_array_equal(draw(name, scale_interval=(0.0, float('inf'))), draw(name))
    self.assertGreater(float(jnp.abs(draw(name) - draw('ddim')).max()), 0.1)

  def test_pure_noise_is_inside_of_no_finite_interval(self):
    grid = grids.make(schedules.rectified_flow(), 3, 'uniform', 'first')  # a_t = 0 at the start
    used = lambda interval: [
      row['scale']
      for row in samplers.make(
        'rfim_gmm', dict(scale=1.0, components=2, scale_interval=interval)
      ).plan(grid, (4,))[1]
    ]
    self.assertEqual(used((0.0, 1e9)), [0, 1, 1])
    self.assertEqual(used((1.5, float('inf'))), [1, 1, 0])

  def test_the_weights_of_the_loss_follow(self):
    options = dict(scale=0.05, components=4)
    found = mixture.precisions(
      'ddim_gmm',
      1.0,
      dict(options, scale_interval=(0.0, 1.001 * float(self.LEVEL[3]))),
      self.GRID,
      8,
    )
    tau = marginals.posterior_std(self.GRID, 1.0)
    np.testing.assert_allclose(found[:3], 1 / tau[:3] ** 2, rtol=1e-12)
    self.assertGreater(found[3], 1 / tau[3] ** 2 * (1 + 1e-6))

  @parameterized.parameters(((1.0,),), ((2.0, 1.0),), ((-1.0, 1.0),), ((0.0, float('nan')),))
  def test_bad(self, interval):
    with self.assertRaisesRegex(
      UserError, r'scale_interval must be \(\) or \(low, high\) with 0 <= low <= high, got'
    ):
      samplers.make('ddim_gmm', dict(scale_interval=interval))


class OptionsTest(parameterized.TestCase):
  @parameterized.parameters(
    (dict(scale=-1.0), 'scale must be >= 0, got -1.0'),
    (dict(scale=float('nan')), 'scale must be >= 0, got nan'),
    (dict(components=0), 'components must be at least 1, got 0'),
    (dict(offsets='orto'), "unknown offsets 'orto'; valid: rand, rand_centred, ortho"),
    (dict(form='C'), "unknown form 'C'; valid: A, B"),
    (
      dict(form='A', covariance='vub'),
      "unknown covariance 'vub' for form A; valid: diagonal, exact",
    ),
    (
      dict(form='B', covariance='vub', offsets='rand'),
      "bounds orthonormal offsets only, got offsets 'rand'; valid: ortho",
    ),
    (dict(infeasible='ignore'), "unknown infeasible 'ignore'; valid: clip, shrink, error"),
    (dict(components=2, priors=(0.5, 0.4)), 'sum to 1, got sum 0.9'),
  )
  def test_bad_options(self, options, message):
    with self.assertRaisesRegex(UserError, message):
      samplers.make('ddim_gmm', options)

  def test_lists_serve_as_tuples(self):
    kernel = samplers.make(
      'ddim_gmm', dict(components=2, priors=[0.3, 0.7], scale=[0.1, 0.2, 0.3, 0.4])
    )
    self.assertLen(kernel.plan(InfeasibleTest.GRID, (4,))[1], 4)

  def test_plan_of_another_shape(self):
    kernel = samplers.make('ddim_gmm', dict(components=2))
    plan, _ = kernel.plan(InfeasibleTest.GRID, (2, 3))
    with self.assertRaisesRegex(UserError, r'made for samples of 6 elements, got shape \(2, 2\)'):
      run(
        kernel,
        exact.gaussian(0.0, 1.0),
        InfeasibleTest.GRID,
        plan,
        jnp.zeros((1, 2, 2)),
        lambda n: noise.at_step(noise.sample_keys(0, np.arange(1)), n, (2, 2)),
      )

  def test_more_components_than_dimensions(self):
    with self.assertRaisesRegex(
      UserError, r'components must be in 1..4 \(the number of elements of a sample\), got 8'
    ):
      samplers.make('ddim_gmm', {}).plan(InfeasibleTest.GRID, (2, 2))


if __name__ == '__main__':
  absltest.main()
