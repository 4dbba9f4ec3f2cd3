"""The blocked posterior against dense float64 sums."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy import special, stats

from gmm_diffusion.maths import mixtures, noise
from helpers import cases


def dense(queries, units):
  """Responsibilities [Q, J] and log-normaliser [Q], one unit at a time, with scipy."""
  logits = np.stack(
    [
      units.log_priors[j]
      + 0.5 * queries.shape[1] * np.log(p)
      - 0.5 * p * np.sum((queries - units.means[j]) ** 2, 1)
      for j, p in enumerate(units.precisions)
    ],
    1,
  )
  return special.softmax(logits, 1), special.logsumexp(logits, 1)


def problem(Q=13, J=29, C=5, seed=0):
  random = np.random.RandomState(seed)
  units = mixtures.Units(
    random.randn(J, C), np.exp(random.randn(J)), np.log(random.dirichlet(np.ones(J)))
  )
  return random.randn(Q, C), units, random.randn(J, 3)


class MixturesTest(cases.X64TestCase):
  @parameterized.parameters(1, 4, 7, 13, 29, 100)
  def test_posterior_for_any_block(self, block):
    queries, units, values = problem()
    weights, log_normaliser = dense(queries, units)
    found = mixtures.posterior(
      jnp.asarray(queries), jax.tree.map(jnp.asarray, units), jnp.asarray(values), block
    )
    np.testing.assert_allclose(found.mean, weights @ values, atol=1e-12)
    np.testing.assert_allclose(found.log_normaliser, log_normaliser, atol=1e-11)

  def test_far_queries_in_uneven_blocks(self):
    queries, units, values = (
      problem()
    )  # 29 units, four at a time: what fills the last block is nearer than any unit
    units = units._replace(means=units.means + 100)
    weights, log_normaliser = dense(queries, units)
    found = mixtures.posterior(
      jnp.asarray(queries), jax.tree.map(jnp.asarray, units), jnp.asarray(values), 4
    )
    np.testing.assert_allclose(found.mean, weights @ values, atol=1e-10)
    np.testing.assert_allclose(found.log_normaliser, log_normaliser, rtol=1e-12)

  def test_no_weight_is_above_one(self):
    queries, units, _ = (
      problem()
    )  # rounding of huge logits is as if the log-normaliser were too small
    pairs = mixtures.Pairs(
      (
        mixtures.Factor(
          jnp.asarray(queries), jnp.asarray(units.means), jnp.asarray(units.precisions)
        ),
      ),
      jnp.asarray(units.log_priors),
    )
    _, log_normaliser = dense(queries, units)
    self.assertEqual(float(mixtures.pair_weights(pairs, jnp.asarray(log_normaliser - 5)).max()), 1)

  @parameterized.parameters(1, 4, 7, 100)
  def test_transposed_sums_for_any_block(self, block):
    queries, units, _ = problem()
    weights, log_normaliser = dense(queries, units)
    y = np.random.RandomState(1).randn(len(queries), 2)
    mass, total = mixtures.transposed_sums(
      jnp.asarray(queries),
      jax.tree.map(jnp.asarray, units),
      jnp.asarray(log_normaliser),
      jnp.asarray(y),
      block,
    )
    np.testing.assert_allclose(mass, weights.sum(0), atol=1e-12)
    np.testing.assert_allclose(total, weights.T @ y, atol=1e-12)
    np.testing.assert_allclose(mass.sum(), len(queries), atol=1e-10)

  def test_log_prob_is_a_density(self):
    units = mixtures.units(
      jnp.array([[-1.0], [2.0]]), jnp.array([4.0, 0.25]), jnp.log(jnp.array([0.3, 0.7]))
    )
    x = np.linspace(-15, 20, 20001)
    expected = 0.3 * stats.norm.pdf(x, -1, 0.5) + 0.7 * stats.norm.pdf(x, 2, 2)
    np.testing.assert_allclose(
      np.exp(mixtures.log_prob(jnp.asarray(x)[:, None], units, block=512)), expected, atol=1e-12
    )

  def test_units_that_are_off_have_no_influence(self):
    queries, units, values = problem()
    off = units._replace(log_priors=np.where(np.arange(29) < 10, -np.inf, units.log_priors))
    kept = mixtures.Units(*(field[10:] for field in units))
    for block in (4, 100):
      found = mixtures.posterior(
        jnp.asarray(queries), jax.tree.map(jnp.asarray, off), jnp.asarray(values), block
      )
      expected = mixtures.posterior(
        jnp.asarray(queries), jax.tree.map(jnp.asarray, kept), jnp.asarray(values[10:]), block
      )
      np.testing.assert_allclose(found.mean, expected.mean, atol=1e-12)

  def test_all_units_off(self):
    queries, units, values = problem()
    off = jax.tree.map(jnp.asarray, units._replace(log_priors=np.full(29, -np.inf)))
    found = mixtures.posterior(jnp.asarray(queries), off, jnp.asarray(values), 8)
    np.testing.assert_array_equal(found.mean, 0)
    np.testing.assert_array_equal(found.log_normaliser, -np.inf)
    mass, _ = mixtures.transposed_sums(
      jnp.asarray(queries), off, found.log_normaliser, jnp.asarray(queries), 8
    )
    np.testing.assert_array_equal(mass, 0)

  def test_far_queries_do_not_underflow(self):
    units = mixtures.units(jnp.array([[0.0], [1.0]]), 1e6)
    found = mixtures.posterior(jnp.array([[1e3]]), units, jnp.array([[5.0], [7.0]]))
    np.testing.assert_allclose(found.mean, 7.0)
    self.assertTrue(np.isfinite(found.log_normaliser[0]))

  def test_memory_is_linear(self):
    def temporary(n):
      units = mixtures.units(jnp.zeros((n, 8), jnp.float32))
      arguments = jnp.zeros((n, 8), jnp.float32), units, jnp.zeros((n, 8), jnp.float32)
      return (
        jax.jit(lambda *a: mixtures.posterior(*a, block=256))
        .lower(*arguments)
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
      )

    # the weights alone would take 268 MB
    self.assertLess(temporary(8192), 8192 * 8 * 4 * 8 + 8 * 256**2 * 4)

  def test_samples(self):
    # mean and variance of each component; 5 standard errors, false alarm 1e-5
    units = mixtures.units(
      jnp.array([[-6.0, 0.0], [6.0, 1.0]]), jnp.array([4.0, 1.0]), jnp.log(jnp.array([0.25, 0.75]))
    )
    x = np.asarray(mixtures.sample(noise.sample_keys(0, np.arange(40000)), units))
    left = x[:, 0] < 0
    self.assertAlmostEqual(left.mean(), 0.25, delta=0.012)
    np.testing.assert_allclose(x[left].mean(0), [-6, 0], atol=0.03)
    np.testing.assert_allclose(x[left].std(0), [0.5, 0.5], atol=0.02)


if __name__ == '__main__':
  absltest.main()
