"""Jacobians of denoisers: closed forms of Gaussians, and the exact matrices of score machines."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from gmm_diffusion import samplers
from gmm_diffusion.denoisers import exact, geometry, network, score_machines
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import marginals, schedules
from gmm_diffusion.nets import cnn
from gmm_diffusion.types import Time
from helpers import cases


def at(sigma):
  """A variance-preserving time with this b / a."""
  a = 1 / np.sqrt(1 + sigma**2)
  return Time(np.float64(0), np.float64(a), np.float64(a * sigma))


def linear(K):
  """A denoiser x_0 = K x."""

  def denoise(x, time, cond):
    del cond
    return marginals.from_x0(x, x @ jnp.asarray(K.T, x.dtype), time)

  return denoise


def numbers(found):
  return np.mean(found.skew) / np.mean(found.size)


class MeasureTest(cases.X64TestCase):
  @parameterized.parameters((1.0, 2.5), (0.1, 4.95), (0.01, 4.9995))
  def test_dimension_of_gaussian(self, sigma, expected):
    variance = np.repeat([1.0, 0.0], [5, 7])
    x = jnp.asarray(np.random.RandomState(0).randn(400, 12))
    found = geometry.measure(exact.gaussian(np.zeros(12), variance), x, at(sigma), np.arange(400))
    # one probe has the deviation sqrt(2 / 5) of the value: 4 standard errors of 3,200 probes
    np.testing.assert_allclose(found.dimension.mean(), expected, rtol=4 * np.sqrt(0.4 / 3200))
    np.testing.assert_allclose(found.skew, 0, atol=1e-25)
    # of 5 equal singular values the power iteration finds any
    a, b = at(sigma).a, at(sigma).b
    np.testing.assert_allclose(found.largest, a / (a**2 + b**2), rtol=1e-10)

  def test_asymmetry_of_matrices(self):
    M = np.random.RandomState(1).randn(9, 9)
    x, ids = jnp.zeros((300, 9)), np.arange(300)
    ask = lambda K: geometry.measure(linear(K), x, at(0.5), ids)
    self.assertLess(numbers(ask(M + M.T)), 1e-25)
    np.testing.assert_allclose(numbers(ask(M - M.T)), 1, rtol=1e-12)
    expected = np.sum((M - M.T) ** 2) / (4 * np.sum(M**2))
    found = ask(M)
    np.testing.assert_allclose(numbers(found), expected, rtol=0.06)  # > 4 standard errors
    np.testing.assert_allclose(found.size.mean(), np.sum(M**2), rtol=0.06)
    np.testing.assert_allclose(found.dimension.mean(), at(0.5).a * np.trace(M), atol=1.5)
    largest = np.linalg.norm(M, 2)
    self.assertLessEqual(float(found.largest.max()), largest * (1 + 1e-12))
    self.assertGreater(float(jnp.median(found.largest)), 0.97 * largest)

  def test_derivatives_whose_squares_vanish(self):
    M = np.random.RandomState(1).randn(9, 9) * 1e-140
    found = geometry.measure(linear(M), jnp.zeros((50, 9)), at(0.5), np.arange(50))
    largest = np.linalg.norm(M * 1e140, 2)
    self.assertLessEqual(float(found.largest.max()) * 1e140, largest * (1 + 1e-9))
    nothing = geometry.measure(linear(0 * M), jnp.zeros((2, 9)), at(0.5), np.arange(2))
    np.testing.assert_array_equal(nothing.largest, 0)

  def test_products_are_those_of_the_matrix(self):
    M, v = np.random.RandomState(2).randn(4, 4), np.random.RandomState(3).randn(2, 4)
    right, left = geometry.products(linear(M), jnp.ones((2, 4)), at(1.0))
    np.testing.assert_allclose(right(v), v @ M.T, atol=1e-14)
    np.testing.assert_allclose(left(v), v @ M, atol=1e-14)

  def test_mixture_is_symmetric_and_positive(self):
    random = np.random.RandomState(4)
    denoiser = exact.mixture(random.randn(6, 5), 0.1 + random.rand(6))
    x = jnp.asarray(random.randn(8, 5))
    K = np.asarray(geometry.jacobians(denoiser, x, at(0.7)))
    np.testing.assert_allclose(K, K.swapaxes(1, 2), atol=1e-12)
    self.assertGreater(np.linalg.eigvalsh(K).min(), 0)
    step = 1e-5  # against finite differences
    for i in range(5):
      move = step * np.eye(5)[i : i + 1]
      up, down = (denoiser(x + sign * move, at(0.7), None).x0 for sign in (1, -1))
      np.testing.assert_allclose(K[:, :, i], (up - down) / (2 * step), atol=1e-8)
    found = geometry.measure(denoiser, x, at(0.7), np.arange(8))
    self.assertLess(float(numbers(found)), 1e-20)
    sharp = np.linalg.norm(K, 2, (1, 2))
    self.assertTrue(np.all(found.largest <= sharp * (1 + 1e-12)))
    self.assertTrue(np.all(found.largest > 0.9 * sharp))

  @parameterized.parameters(('IS', 0, 1e-12), ('ES', 0, 1e-12), ('LS', 1e-3, 1), ('ELS', 1e-3, 1))
  def test_local_machines_are_no_gradients(self, name, low, high):
    images = np.random.RandomState(5).rand(20, 4, 4, 1) * 2 - 1
    options = {'size': 3} if name in ('LS', 'ELS') else {}
    x = jnp.asarray(0.8 * images[:3] + 0.6 * np.random.RandomState(6).randn(3, 4, 4, 1))
    machine = score_machines.make(name, jnp.asarray(images), **options)
    time = Time(np.float64(0), np.float64(0.8), np.float64(0.6))
    K = np.asarray(geometry.jacobians(machine, x, time))
    found = np.sum((K - K.swapaxes(1, 2)) ** 2) / (4 * np.sum(K**2))
    self.assertBetween(found, low, high)
    estimated = numbers(geometry.measure(machine, x, time, np.arange(3)))
    np.testing.assert_allclose(estimated, found, rtol=0.5, atol=1e-12)

  @parameterized.parameters((0.0,), ([0.3, 0.0],))
  def test_refuses_clean_items(self, b):
    time = Time(np.float64(0), np.ones(np.shape(b)), np.asarray(b))
    with self.assertRaisesRegex(UserError, 'b is 0; take a time that is not clean'):
      geometry.measure(linear(np.eye(2)), jnp.ones((2, 2)), time, np.arange(2))

  def test_refuses_a_network_of_classes_without_labels(self):
    module = cnn.CNN(channels=4, blocks=1, out_channels=1, classes=3)
    x = jnp.ones((2, 4, 4, 1))
    params = module.init(jax.random.key(0), x, jnp.zeros(2), jnp.zeros(2, int))
    schedule = schedules.linear()
    of = network.network(lambda *given: module.apply(params, *given), schedule)
    with self.assertRaisesRegex(UserError, r'3 labels was asked without any: .* one of 0\.\.2'):
      geometry.measure(of, x, schedule.at(500), np.arange(2))

  def test_items_do_not_depend_on_each_other(self):
    images = np.random.RandomState(5).rand(20, 4, 4, 1)
    denoiser, x = exact.empirical(jnp.asarray(images)), jnp.asarray(images[:6])
    whole = geometry.measure(denoiser, x, at(0.5), np.arange(6))
    part = geometry.measure(denoiser, x[4:], at(0.5), np.arange(4, 6))
    for one, other in zip(whole, part):
      np.testing.assert_allclose(one[4:], other, rtol=1e-10, atol=1e-14)


class GaugeTest(cases.X64TestCase):
  def test_asymmetry_grows_and_the_pair_is_consistent(self):
    plain = exact.gaussian(np.zeros(2), np.array([1.0, 0.3]))
    x, J = jnp.asarray(np.random.RandomState(0).randn(50, 2)), np.array([[0.0, 1.0], [-1.0, 0.0]])
    before = 0
    for c in (0.5, 1.0, 2.0):
      turned = geometry.gauge(plain, J, c)
      found = turned(x, at(0.5), None)
      np.testing.assert_allclose(at(0.5).a * found.x0 + at(0.5).b * found.eps, x, atol=1e-12)
      asymmetry = numbers(geometry.measure(turned, x, at(0.5), np.arange(50)))
      self.assertGreater(asymmetry, before)
      before = asymmetry

  def test_marginals_hold_as_steps_grow_smaller(self):
    # a Gaussian of variances 1 and .01, turned: the samples' covariance converges to the same
    turned = geometry.gauge(
      exact.gaussian(np.zeros(2), np.array([1.0, 0.01])), np.array([[0.0, 1.0], [-1.0, 0.0]])
    )
    errors = []
    for steps in (20, 80, 320):
      x = np.asarray(
        samplers.draw(
          turned, schedules.edm(sigma_max=20.0), (2,), ids=range(4000), steps=steps, grid='karras'
        )
      )
      errors.append(abs(np.log(x.std(0) / [1.0, 0.1])).max())
    self.assertGreater(errors[0], 0.2)
    self.assertLess(errors[1], errors[0] / 2)
    self.assertLess(errors[2], 0.06)  # 5 standard errors of a deviation from 4,000 samples

  def test_weights_and_spread_of_modes_hold_as_steps_grow_smaller(self):
    # three narrow modes of unequal weights: a turn mixes them up in few steps, and not in many
    centres = np.array([[0.0, 1.0], [0.87, -0.5], [-0.87, -0.5]])
    weights, deviation, count = np.array([0.6, 0.3, 0.1]), 0.05, 4000
    turned = geometry.gauge(
      exact.mixture(
        *(jnp.asarray(v, jnp.float32) for v in (centres, deviation**2, np.log(weights)))
      ),
      np.array([[0.0, 1.0], [-1.0, 0.0]]),
    )
    spread, away = [], []
    for steps in (20, 80, 320, 1280):
      x = np.asarray(
        samplers.draw(
          turned, schedules.edm(sigma_max=20.0), (2,), ids=range(count), steps=steps, grid='karras'
        )
      )
      square = np.sum((x[:, None] - centres[None]) ** 2, -1)
      nearest = square.argmin(1)
      shares = np.bincount(nearest, minlength=3) / count
      away.append(np.abs(shares - weights) / np.sqrt(weights * (1 - weights) / count))
      own = [np.mean(square[nearest == j, j]) ** 0.5 for j in range(3)]
      spread.append(np.array(own) / np.sqrt(2 * deviation**2) - 1)
    self.assertGreater(away[0].max(), 10)  # standard errors
    self.assertLess(away[2].max(), 4)
    self.assertLess(away[3].max(), 4)
    self.assertGreater(spread[0].min(), 1)
    np.testing.assert_array_less(spread[1], spread[0] / 4)
    np.testing.assert_array_less(spread[2], spread[1] / 3)
    # 3 standard errors of the spread of the 400 samples of the least mode, and what is left
    np.testing.assert_allclose(spread[3], 0, atol=3 / np.sqrt(4 * 400) + 0.02)

  @parameterized.parameters((np.eye(2),), (np.zeros((2, 3)),), (np.zeros(4),))
  def test_refuses_what_is_not_antisymmetric(self, J):
    with self.assertRaisesRegex(UserError, 'antisymmetric'):
      geometry.gauge(exact.gaussian(np.zeros(2), 1.0), J)

  def test_refuses_another_size(self):
    turned = geometry.gauge(exact.gaussian(np.zeros(2), 1.0), np.zeros((3, 3)))
    with self.assertRaisesRegex(UserError, 'J is of 3 elements, and a sample has 2'):
      turned(jnp.zeros((1, 2)), at(1.0), None)


if __name__ == '__main__':
  absltest.main()
