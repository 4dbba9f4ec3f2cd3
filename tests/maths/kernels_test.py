"""The distance between samples and data, and what each kernel sees of it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from gmm_diffusion.maths import kernels
from gmm_diffusion.metrics import kernel as metric
from helpers import cases

TWO = np.array([-1.0, 1.0])  # mean 0, variance 1, no third moment
THREE = np.sqrt(1.5) * np.array([-1.0, 0.0, 1.0])  # the same, and another fourth
WIDER = 1.2 * THREE


def linear(x, y):
  """The polynomial of degree 1."""
  return x @ y.T / x.shape[1] + 1


def expected(kernel, x, y):
  """What (1) is on average for independent items of two lists of points of equal chance."""
  mean = lambda a, b: float(jnp.mean(kernel(jnp.array(a)[:, None], jnp.array(b)[:, None])))
  return mean(x, x) + mean(y, y) - 2 * mean(x, y)


def averaged(kernel, x, y):
  """The average of (1) over all pairs of independent items of each list."""
  pairs = lambda z: [np.array(two)[:, None] for two in itertools.product(z, z)]
  found = [kernels.mmd(kernel, jnp.array(a), jnp.array(b)) for a in pairs(x) for b in pairs(y)]
  return float(np.mean(found))


class KernelsTest(cases.X64TestCase):
  @parameterized.product(size=('6x4', '16x10'), name=('poly3', 'poly1', 'rbf'))
  def test_value_and_gradient_as_published(self, size, name):
    golden = cases.golden('g10_mmd')
    kernel = {'poly3': kernels.polynomial, 'poly1': linear, 'rbf': kernels.gaussian}[name]
    x, y = (jnp.array(golden[f'{size}/{side}'], jnp.float64) for side in 'xy')
    value, gradient = jax.value_and_grad(lambda x: kernels.mmd(kernel, x, y))(x)
    np.testing.assert_allclose(value, golden[f'{size}/{name}/value'], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(gradient, golden[f'{size}/{name}/grad_x'], rtol=1e-13, atol=1e-14)

  @parameterized.parameters('6x4', '16x10')
  def test_samples_against_themselves_as_published(self, size):
    # below 0: an item and itself count between the two sides, and not within one
    golden = cases.golden('g10_mmd')
    x = jnp.array(golden[f'{size}/x'])
    found = kernels.mmd(kernels.polynomial, x, x)
    self.assertLess(found, 0)
    np.testing.assert_allclose(found, golden[f'{size}/same_poly3'], rtol=1e-13)

  def test_is_the_metric(self):
    x, y = np.random.RandomState(0).randn(2, 12, 5)
    found = kernels.mmd(kernels.polynomial, jnp.array(x), jnp.array(y + 0.3))
    np.testing.assert_allclose(found, metric.kernel_distance(x, y + 0.3).value, rtol=1e-12)

  def test_what_kernels_see(self):
    self.assertAlmostEqual(expected(kernels.polynomial, TWO, THREE), 0)  # not the fourth moment
    self.assertGreater(expected(kernels.gaussian, TWO, THREE), 0.01)
    self.assertGreater(expected(kernels.energy, TWO, THREE), 0.01)
    for kernel in kernels.KERNELS.values():
      self.assertGreater(expected(kernel, WIDER, THREE), 0.003)

  def test_degree_one_sees_the_mean_only(self):
    self.assertAlmostEqual(averaged(linear, WIDER, TWO), 0, places=9)
    self.assertGreater(averaged(kernels.polynomial, WIDER, TWO), 0.003)
    self.assertAlmostEqual(averaged(linear, THREE + 0.3, TWO), 0.3**2, places=9)

  @parameterized.parameters(*kernels.KERNELS)
  def test_false_alarms_for_equal_laws(self, name):
    """Over 3,000 pairs of sets of 8 the average is 0 where the laws are equal and only there; 4
    standard errors are a false alarm in 16,000."""
    x, y = jnp.asarray(np.random.RandomState(5).randn(2, 3000, 8, 2))
    distance = jax.jit(jax.vmap(lambda x, y: kernels.mmd(kernels.KERNELS[name], x, y)))

    def errors_above_0(y):
      found = np.asarray(distance(x, y))
      return found.mean() / (found.std() / np.sqrt(len(found)))

    self.assertLess(abs(errors_above_0(y)), 4)
    for other in (y + 0.5, 1.5 * y):
      self.assertGreater(errors_above_0(other), 8)

  def test_energy_distance_of_points(self):
    # 2 E|X - Y| - E|X - X'| - E|Y - Y'| of {0} and {-1, 1}: 2 - 0 - 1
    self.assertAlmostEqual(expected(kernels.energy, [0.0], TWO), 1 - 1e-3, delta=1e-3)

  @parameterized.parameters(*kernels.KERNELS)
  def test_averages_to_what_is_expected(self, name):
    kernel = kernels.KERNELS[name]
    self.assertAlmostEqual(averaged(kernel, THREE, TWO), expected(kernel, THREE, TWO), places=9)

  @parameterized.parameters(*kernels.KERNELS)
  def test_gradient_is_finite_where_samples_are_equal(self, name):
    x, y = jnp.zeros((4, 3)), jnp.zeros((4, 3))
    gradient = jax.grad(lambda x: kernels.mmd(kernels.KERNELS[name], x, y))(x)
    self.assertTrue(np.isfinite(gradient).all())


if __name__ == '__main__':
  absltest.main()
