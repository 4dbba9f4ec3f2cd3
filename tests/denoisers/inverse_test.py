"""Denoisers that know a measurement, against closed forms and against the exact posterior."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy import stats

from gmm_diffusion import samplers
from gmm_diffusion.denoisers import exact, guidance, inverse
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import grids, schedules
from gmm_diffusion.types import Time
from helpers import cases

TIME = Time(np.float64(0), np.float64(0.6), np.float64(0.8))
EXPLODING = Time(np.float64(0), np.float64(1.0), np.float64(1.7))  # a^2 + b^2 is not 1
KNOWN = np.random.RandomState(3).randint(2, size=(4, 6, 1))
A = np.random.RandomState(4).randn(2, 3)
OPERATORS = {  # name -> (operator, shape of a sample)
  'identity': (inverse.identity(), (4, 6, 2)),
  'mask': (inverse.mask(KNOWN), (4, 6, 2)),
  'box': (inverse.box(2), (4, 6, 2)),
  'blur': (inverse.blur(0.7), (4, 6, 2)),
  'matrix': (inverse.matrix(A), (3,)),
}
# a mixture in three dimensions
MEANS = np.array([[-1.0, 0.5, 0.2], [0.8, 0.9, -0.4], [0.3, -1.0, 0.6]])
VARIANCES, PRIORS = np.array([0.05, 0.2, 0.1]), np.array([0.5, 0.2, 0.3])


def dense(operator, shape):
  """The matrix of an operator, column by column."""
  basis = jnp.eye(int(np.prod(shape))).reshape(-1, *shape)
  return np.asarray(operator.apply(basis)).reshape(len(basis), -1).T


def posterior_of_gaussian(m, v, A, x, y, noise, time=TIME):
  """E[x_0 | x_t, y] of x_0 ~ N(m, v I), by the joint normal law of (x_0, x_t, y)."""
  a, b, D = time.a, time.b, len(m)
  H = np.concatenate([a * np.eye(D), A])
  R = np.diag(np.concatenate([np.full(D, b**2), np.full(len(A), noise**2)]))
  gain = v * H.T @ np.linalg.inv(v * H @ H.T + R)
  return m + (np.concatenate([x, y]) - H @ m) @ gain.T


class OperatorTest(cases.X64TestCase):
  @parameterized.parameters(*OPERATORS)
  def test_adjoint_solution_and_spectrum_are_those_of_the_matrix(self, name):
    operator, shape = OPERATORS[name]
    matrix, random = dense(operator, shape), np.random.RandomState(0)
    x = random.randn(5, *shape)
    y = np.asarray(operator.apply(jnp.asarray(x)))
    flat = lambda z: np.asarray(z).reshape(len(z), -1)
    np.testing.assert_allclose(flat(y), flat(x) @ matrix.T, atol=1e-12)
    back = operator.adjoint(jnp.asarray(y))
    self.assertEqual(back.shape, x.shape)
    np.testing.assert_allclose(flat(back), flat(y) @ matrix, atol=1e-12)
    square = matrix @ matrix.T
    solved = np.linalg.solve(0.3 * np.eye(len(square)) + 1.7 * square, flat(y).T).T
    np.testing.assert_allclose(flat(operator.solve(jnp.asarray(y), 0.3, 1.7)), solved, atol=1e-12)
    found = np.sort(np.asarray(operator.spectrum(shape)))
    np.testing.assert_allclose(found, np.sort(np.linalg.eigvalsh(square)), atol=1e-12)

  def test_bad_operators(self):
    with self.assertRaisesRegex(UserError, 'a mask must be 0 or 1 everywhere'):
      inverse.mask(np.array([0.5]))
    with self.assertRaisesRegex(UserError, 'width of a blur must be positive, got 0'):
      inverse.blur(0.0)
    with self.assertRaisesRegex(UserError, '4 x 6 cannot be divided into boxes of 4 x 4'):
      inverse.box(4).apply(jnp.zeros((1, 4, 6, 1)))


class MethodTest(cases.X64TestCase):
  def setUp(self):
    super().setUp()
    random = np.random.RandomState(1)
    self.x, self.y = random.randn(6, 3), random.randn(6, 2)
    self.operator = inverse.matrix(A)
    self.mixture = exact.mixture(jnp.asarray(MEANS), VARIANCES, jnp.log(PRIORS))

  def guided(self, denoiser, method, noise=0.4, x=None, y=None, time=TIME, **options):
    x, y = self.x if x is None else x, self.y if y is None else y
    guide = inverse.posterior(denoiser, self.operator, jnp.asarray(y), noise, method, **options)
    return jax.jit(lambda x: guide(x, time, None))(jnp.asarray(x))

  @parameterized.product(case=[('moment', 0.7), ('pigdm', 1.0)], time=[TIME, EXPLODING])
  def test_exact_for_gaussian_data(self, case, time):
    (method, variance), m = case, np.array([0.3, -0.5, 1.0])
    found = self.guided(exact.gaussian(m, variance), method, time=time).x0
    expected = [
      posterior_of_gaussian(m, variance, A, *both, 0.4, time) for both in zip(self.x, self.y)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-10)

  def test_dps_is_guidance_by_the_density_of_the_measurement(self):
    def log_prob(x, time, y):
      residual = y - self.mixture(x, time, None).x0 @ A.T
      return -jnp.sum(residual**2, -1) / (2 * 0.4**2)

    guided = guidance.classifier(self.mixture, log_prob, 1.0)
    expected = guided(jnp.asarray(self.x), TIME, jnp.asarray(self.y))
    found = self.guided(self.mixture, 'dps')
    np.testing.assert_allclose(found.x0, expected.x0, atol=1e-10)
    np.testing.assert_allclose(found.eps, expected.eps, atol=1e-10)

  def test_stsl_is_the_gradient_of_jensens_bound(self):
    row = jnp.asarray(A[:1])  # one number is measured: its trace has no error of estimation
    self.operator, y = inverse.matrix(row), self.y[:, :1]

    def bound(x, y):
      mean = lambda x: self.mixture(x[None], TIME, None).x0[0]
      _, pull = jax.vjp(mean, x)
      variance = TIME.b**2 / TIME.a * jnp.vdot(pull(row[0])[0], row[0])
      return -((y[0] - jnp.vdot(row[0], mean(x))) ** 2 + variance) / (2 * 0.4**2)

    def slope(x, y, step=1e-5):  # by differences: the posterior has no second derivative
      move = lambda e: (bound(x + e, y) - bound(x - e, y)) / (2 * step)
      return jnp.stack([move(e) for e in step * jnp.eye(3)])

    plain = self.mixture(jnp.asarray(self.x), TIME, None).eps
    slopes = jax.jit(jax.vmap(slope))(jnp.asarray(self.x), jnp.asarray(y))
    expected = plain - TIME.b * slopes
    found = self.guided(self.mixture, 'stsl', y=y).eps
    np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())
    dps = self.guided(self.mixture, 'dps', y=y).eps
    self.assertGreater(np.abs(dps - expected).max(), 0.2 * np.abs(expected).max())

  def test_stsl_is_dps_for_gaussian_data(self):
    prior = exact.gaussian(MEANS[0], 0.7)
    np.testing.assert_allclose(
      self.guided(prior, 'stsl').x0, self.guided(prior, 'dps').x0, atol=1e-9
    )

  @parameterized.parameters(*inverse.METHODS)
  def test_a_measurement_that_says_nothing(self, method):
    plain = self.mixture(jnp.asarray(self.x), TIME, None)
    np.testing.assert_allclose(self.guided(self.mixture, method, noise=1e7).x0, plain.x0, atol=1e-9)

  @parameterized.product(
    method=inverse.METHODS, operator=[inverse.matrix(0 * A), inverse.mask(np.zeros(3, np.int32))]
  )
  def test_an_operator_that_shows_nothing_leaves_the_prior(self, method, operator):
    self.operator = operator
    y = np.random.RandomState(1).randn(6, *operator.apply(jnp.asarray(self.x)).shape[1:])
    plain, found = (
      self.mixture(jnp.asarray(self.x), TIME, None),
      self.guided(self.mixture, method, y=y),
    )
    np.testing.assert_allclose(found.x0, plain.x0, rtol=0, atol=1e-14)
    np.testing.assert_allclose(found.eps, plain.eps, rtol=0, atol=1e-14)

  @parameterized.parameters(*inverse.METHODS)
  def test_a_sample_does_not_depend_on_its_batch(self, method):
    together = self.guided(self.mixture, method).x0
    alone = self.guided(self.mixture, method, x=self.x[4:5], y=self.y[4:5]).x0
    np.testing.assert_allclose(alone[0], together[4], atol=1e-12)

  def test_one_measurement_for_all(self):
    one = self.guided(self.mixture, 'pigdm', y=self.y[:1]).x0
    each = self.guided(self.mixture, 'pigdm', y=np.repeat(self.y[:1], 6, 0)).x0
    np.testing.assert_array_equal(one, each)

  @parameterized.parameters(
    (dict(method='ddrm'), "unknown method 'ddrm'; valid: dps, pigdm, moment, stsl"),
    (dict(method='dps', noise=0.0), "must be above 0 for 'dps', got 0"),
    (dict(method='pigdm', noise=-1.0), "must be at least 0 for 'pigdm', got -1"),
    (dict(method='pigdm', y=np.zeros((6, 3))), r'shape \[6, 2\], or \[1, 2\] .* got \[6, 3\]'),
    (dict(method='pigdm', y=np.zeros((5, 2))), r'shape \[6, 2\], or \[1, 2\] .* got \[5, 2\]'),
  )
  def test_bad_input(self, settings, message):
    with self.assertRaisesRegex(UserError, message):
      self.guided(self.mixture, **settings)


class ExactTest(cases.X64TestCase):
  def test_one_component_is_the_gaussian(self):
    random = np.random.RandomState(2)
    x, y = random.randn(6, 3), random.randn(6, 2)
    denoiser = inverse.mixture(MEANS[:1], VARIANCES[:1], inverse.matrix(A), y, 0.4)
    expected = [posterior_of_gaussian(MEANS[0], VARIANCES[0], A, *both, 0.4) for both in zip(x, y)]
    np.testing.assert_allclose(denoiser(jnp.asarray(x), TIME, None).x0, expected, atol=1e-12)

  def test_components_by_their_joint_density(self):
    x, y = np.random.RandomState(2).randn(1, 3), np.random.RandomState(5).randn(1, 2)
    noise, H = 0.4, np.concatenate([TIME.a * np.eye(3), A])
    R = np.diag([TIME.b**2] * 3 + [noise**2] * 2)
    seen = np.concatenate([x[0], y[0]])
    weights = [
      p * stats.multivariate_normal.pdf(seen, H @ m, v * H @ H.T + R)
      for m, v, p in zip(MEANS, VARIANCES, PRIORS)
    ]
    means = [posterior_of_gaussian(m, v, A, x[0], y[0], noise) for m, v in zip(MEANS, VARIANCES)]
    denoiser = inverse.mixture(MEANS, VARIANCES, inverse.matrix(A), y, noise, np.log(PRIORS))
    found = denoiser(jnp.asarray(x), TIME, None).x0[0]
    np.testing.assert_allclose(found, np.average(means, 0, weights), atol=1e-10)

  def test_an_operator_that_shows_nothing_leaves_the_prior(self):
    x, y = jnp.asarray(np.random.RandomState(2).randn(6, 3)), np.random.RandomState(5).randn(6, 2)
    nothing, data = inverse.matrix(0 * A), np.random.RandomState(0).randn(20, 3)
    for found, prior in (
      (
        inverse.mixture(MEANS, VARIANCES, nothing, y, 0.4, np.log(PRIORS)),
        exact.mixture(jnp.asarray(MEANS), VARIANCES, jnp.log(PRIORS)),
      ),
      (inverse.empirical(data, nothing, y, 0.4, block=8), exact.empirical(jnp.asarray(data))),
    ):
      wanted = prior(x, TIME, None).x0
      np.testing.assert_allclose(found(x, TIME, None).x0, wanted, rtol=0, atol=1e-13)

  @parameterized.parameters(*OPERATORS)
  def test_empirical_is_a_mixture_without_width(self, name):
    operator, shape = OPERATORS[name]
    random = np.random.RandomState(0)
    data, x = random.randn(20, *shape), jnp.asarray(random.randn(6, *shape))
    y = operator.apply(jnp.asarray(data[3:9])) + 0.1
    weights = -np.sum((np.asarray(x)[:, None] - 0.6 * data[None]) ** 2, tuple(range(2, x.ndim + 1)))
    measured = np.asarray(operator.apply(jnp.asarray(data)))
    residuals = (np.asarray(y)[:, None] - measured[None]) ** 2
    weights = weights / (2 * 0.8**2) - np.sum(residuals, tuple(range(2, y.ndim + 1))) / (2 * 0.9**2)
    weights = np.exp(weights - weights.max(1, keepdims=True))
    expected = np.tensordot(weights / weights.sum(1, keepdims=True), data, 1)
    for found in (
      inverse.empirical(data, operator, y, 0.9, block=8),
      inverse.mixture(data, 0.0, operator, y, 0.9),
    ):
      np.testing.assert_allclose(found(x, TIME, None).x0, expected, atol=1e-10)

  def test_sampling_hits_the_posterior(self):
    """The first coordinate of a mixture is seen; 4 standard errors are a false alarm in 16,000."""
    row, y, noise, N = np.array([[1.0, 0, 0]]), 0.1, 0.3, 4000
    denoiser = inverse.mixture(
      MEANS, VARIANCES, inverse.matrix(row), np.array([[y]]), noise, jnp.log(PRIORS)
    )
    schedule = schedules.cosine(1000)
    grid = grids.make(schedule, 200, 'trailing')
    x = np.asarray(
      samplers.draw(denoiser, schedule, (3,), np.arange(N), 5, 'ddim', grid=grid, eta=1.0)
    )
    likelihood = stats.norm.pdf(y, MEANS[:, 0], np.sqrt(VARIANCES + noise**2))
    shares = PRIORS * likelihood / np.sum(PRIORS * likelihood)
    first = MEANS[:, 0] + VARIANCES / (VARIANCES + noise**2) * (y - MEANS[:, 0])
    means = np.concatenate([first[:, None], MEANS[:, 1:]], 1)
    deviation = x.std(0) / np.sqrt(N)
    self.assertTrue(np.all(np.abs(x.mean(0) - shares @ means) < 4 * deviation + 0.005))
    spread = np.stack([VARIANCES * noise**2 / (VARIANCES + noise**2), VARIANCES, VARIANCES], 1)
    expected = shares @ (spread + means**2) - (shares @ means) ** 2
    np.testing.assert_allclose(x.var(0), expected, rtol=0.08)


if __name__ == '__main__':
  absltest.main()
