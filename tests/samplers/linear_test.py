"""Tables of samplers: embedded samplers are the originals, and what a table keeps."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from gmm_diffusion import samplers
from gmm_diffusion.denoisers import exact
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import bands, grids, schedules
from gmm_diffusion.samplers import linear
from helpers import cases

LINEAR = schedules.linear()
SHAPE = (4, 2, 1)
MEANS = np.random.RandomState(0).standard_normal((3, *SHAPE))


def denoiser(x, time, cond):
  return exact.mixture(MEANS, np.array([0.1, 0.3, 0.2]))(x, time, cond)


DETERMINISTIC = (
  ('ddim', {}),
  *(('dpmpp', dict(order=order, solver=s)) for order in (2, 3) for s in ('published', 'exact')),
  *(('deis', dict(order=order)) for order in (2, 3, 4)),
  *(('unipc', dict(order=order, bh=bh)) for order in (1, 2, 3) for bh in ('bh1', 'bh2')),
  *(('ipndm', dict(order=order)) for order in (1, 2, 3, 4)),
  ('heun', {}),
  ('bdia', dict(gamma=0.7)),
)
STOCHASTIC = (
  ('ddim', dict(eta=0.6)),
  ('ddpm', dict(variance='large')),
  ('dpmpp_sde', dict(order=2)),
  ('ddim_noise', dict(scale=0.4, components=3, eta=0.5)),
)


def embedded(name, options, grid, shape=SHAPE):
  kernel = samplers.make(name, options, LINEAR)
  return kernel, linear.embed(kernel, grid, shape)


class EmbedTest(cases.X64TestCase):
  @parameterized.parameters(*DETERMINISTIC, *STOCHASTIC)
  def test_the_table_is_the_sampler(self, name, options):
    grid = grids.make(LINEAR, 5, 'log_snr', 'first' if options.get('order') == 3 else 'clean')
    kernel, table = embedded(name, options, grid)
    ids = np.arange(4)
    wanted = cases.sample(kernel, denoiser, grid, SHAPE, ids)
    found = cases.sample(linear.linear(table), denoiser, linear.grid_of(table), SHAPE, ids)
    np.testing.assert_allclose(found.x, wanted.x, rtol=0, atol=1e-10)
    self.assertEqual(int(found.nfe), int(wanted.nfe))

  @parameterized.parameters(('ddim', {}), ('ddim', dict(eta=0.6)), ('dpmpp', {}), ('heun', {}))
  def test_bands_of_equal_numbers_change_nothing(self, name, options):
    grid = grids.make(LINEAR, 4, 'log_snr')
    _, table = embedded(name, options, grid)
    three = table._replace(
      **{key: np.repeat(getattr(table, key), 3, -1) for key in ('keep', 'weights', 'std')}
    )
    ids, steps = np.arange(4), linear.grid_of(table)
    np.testing.assert_allclose(
      cases.sample(linear.linear(three, bands.make(SHAPE, 3)), denoiser, steps, SHAPE, ids).x,
      cases.sample(linear.linear(table), denoiser, steps, SHAPE, ids).x,
      atol=1e-12,
    )

  def test_churn_is_embedded_in_its_variance(self):
    # its noise comes before the call of a step, so it is drawn under another number
    grid = grids.make(schedules.edm(), 6, 'log_snr')
    kernel = samplers.make('heun', dict(churn=2.0), schedules.edm())
    table = linear.embed(kernel, grid, SHAPE)
    self.assertEqual(np.count_nonzero(table.std), 5)  # not at the noisiest level
    for row in linear.consistency(table):
      np.testing.assert_allclose(row['mean'], 0, atol=1e-9)
      np.testing.assert_allclose(row['variance'], 0, atol=1e-6)  # of up to 80^2

  @parameterized.parameters('ddim_gmm', 'time_shift')
  def test_what_is_not_linear_is_refused(self, name):
    with self.assertRaisesRegex(UserError, 'not linear'):
      embedded(name, dict(components=2, scale=0.1), grids.make(LINEAR, 8, 'uniform'))

  def test_bad_tables(self):
    grid = grids.make(LINEAR, 3, 'log_snr')
    _, table = embedded('ddim', {}, grid)
    with self.assertRaisesRegex(UserError, 'the table has 1 bands, the transform 3'):
      linear.linear(table, bands.make(SHAPE, 3))
    with self.assertRaisesRegex(UserError, 'not finite'):
      linear.linear(table._replace(keep=np.nan * table.keep))
    with self.assertRaisesRegex(UserError, 'the table has 3 rows, the grid 4 steps'):
      linear.linear(table).plan(grids.make(LINEAR, 4, 'log_snr'), SHAPE)


class ConsistencyTest(cases.X64TestCase):
  @parameterized.parameters(*DETERMINISTIC, *STOCHASTIC[:3])
  def test_consistent_samplers(self, name, options):
    # DDPM of the larger variance is the one that is not
    _, table = embedded(name, options, grids.make(LINEAR, 6, 'log_snr', 'first'))
    found = linear.consistency(table)
    self.assertLess(max(np.abs(row['mean']).max() for row in found), 1e-9)
    worst = max(np.abs(row['variance']).max() for row in found)
    if options.get('variance') == 'large':
      self.assertGreater(worst, 1e-3)
    else:
      self.assertLess(worst, 1e-9)


class ExactInOneStepTest(cases.X64TestCase):
  """Gaussian data with the spectrum S(k) = 1 / |k|^2: the flow multiplies every coefficient by its
  own g(k), which a table with a number for each of them has, and a scalar table has not."""

  def test_bands_are_exact_and_scalars_are_not(self):
    shape = (8, 8, 1)
    k = bands.frequency(shape[:2])
    spectrum = 1 / np.maximum(k, k[k > 0].min()) ** 2
    axes = (bands.cosine(8), bands.cosine(8))
    every = bands.Bands(axes, np.eye(64).reshape(64, 8, 8))  # a band for each coefficient
    grid = grids.from_times(LINEAR, [999.0], 0.0)
    a, b, a_s, b_s = (float(level[0]) for level in (grid.a_t, grid.b_t, grid.a_s, grid.b_s))
    flow = np.sqrt((a_s**2 * spectrum + b_s**2) / (a**2 * spectrum + b**2))

    def denoise(x, time, cond):
      del cond
      v = every.analyse(x)
      m = every.synthesise(
        (time.a * spectrum / (time.a**2 * spectrum + time.b**2))[None, ..., None] * v
      )
      return linear.Prediction(m, (x - time.a * m) / time.b)

    x = np.random.RandomState(1).standard_normal((5, *shape))
    wanted = every.synthesise(flow[None, ..., None] * every.analyse(jnp.asarray(x)))
    table = linear.Table(
      grid.now, np.array([a, a_s]), np.array([b, b_s]), flow.reshape(1, 64), np.zeros((1, 1, 64)),
      np.zeros((1, 64)),
    )  # fmt: skip
    found = cases.sample(
      linear.linear(table, every), denoise, grid, shape, np.arange(5), start=jnp.asarray(x)
    )
    np.testing.assert_allclose(found.x, wanted, atol=1e-11)
    # the best scalar pair (A, B), by least squares over all coefficients
    gain = a * spectrum / (a**2 * spectrum + b**2)
    weight = np.sqrt(a**2 * spectrum + b**2).ravel()  # of a coefficient of x
    design = np.stack([np.ones(64), gain.ravel()], 1) * weight[:, None]
    _, rest, *_ = np.linalg.lstsq(design, flow.ravel() * weight)
    self.assertGreater(rest[0] / np.sum((flow.ravel() * weight) ** 2), 1e-3)


if __name__ == '__main__':
  absltest.main()
