"""Minority score and labels, and exact guidance towards a component."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from gmm_diffusion import samplers
from gmm_diffusion.denoisers import exact, guidance
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import schedules
from gmm_diffusion.metrics import minority
from gmm_diffusion.types import Time
from helpers import cases

TIME = Time(np.float64(0), np.float64(0.6), np.float64(0.8))
MEANS, VARIANCES, PRIORS = np.array([[-1.0, 0.0], [1.0, 0.5]]), np.array([0.02, 0.1]), [0.95, 0.05]


class ScoreTest(cases.X64TestCase):
  def test_gaussian(self):
    """l = (b^2 / (a^2 v + b^2))^2 |x_0 - m|^2 / D + (k b)^2, k = a v / (a^2 v + b^2): it grows with
    the distance from the mean. 5 standard errors are a false alarm in two million."""
    m, v, draws, D = 0.4, 0.7, 20_000, 3
    a, b = TIME.a, TIME.b
    x0 = np.random.RandomState(0).randn(4, D)
    found = minority.score(
      exact.gaussian(np.full(D, m), v), jnp.asarray(x0), TIME, np.arange(4), draws
    )
    V = a**2 * v + b**2
    offset, k = b**2 / V * (x0 - m), a * v / V * b
    expected = np.mean(offset**2, 1) + k**2
    error = np.sqrt((2 * k**4 / D + 4 * k**2 * np.mean(offset**2, 1) / D) / draws)
    self.assertTrue(np.all(np.abs(found - expected) < 5 * error))

  def test_noise_belongs_to_the_item(self):
    denoiser, x0 = exact.gaussian(np.zeros(2), 1.0), jnp.ones((3, 2))
    together = minority.score(denoiser, x0, TIME, np.array([5, 6, 7]))
    np.testing.assert_allclose(
      minority.score(denoiser, x0[:1], TIME, np.array([6])), together[1:2], atol=1e-12
    )
    self.assertLen(set(np.asarray(together).tolist()), 3)

  def test_a_small_component_is_rare(self):
    denoiser = exact.mixture(jnp.asarray(MEANS), VARIANCES, jnp.log(jnp.asarray(PRIORS)))
    at = Time(np.float64(0), np.float64(0.16), np.float64(0.987))
    found = minority.score(denoiser, jnp.asarray(MEANS), at, np.arange(2), 50)
    self.assertGreater(found[1], 5 * found[0])


class LabelsTest(parameterized.TestCase):
  def test_as_many_in_each(self):
    scores = np.random.RandomState(0).permutation(100) / 7
    found = minority.labels(scores, 5)
    np.testing.assert_array_equal(np.bincount(found), np.full(5, 20))
    np.testing.assert_array_equal(found[np.argsort(scores)], np.repeat(np.arange(5), 20))

  def test_ties_go_up(self):
    np.testing.assert_array_equal(minority.labels(np.array([0.0, 1, 1, 1]), 4), [0, 3, 3, 3])

  @parameterized.parameters((np.zeros(3), 4), (np.array([0, np.nan]), 2))
  def test_bad_input(self, scores, classes):
    with self.assertRaisesRegex(UserError, f'{classes} classes need at least as many items'):
      minority.labels(scores, classes)


class GuidanceTest(cases.X64TestCase):
  def setUp(self):
    super().setUp()
    log_priors = jnp.log(jnp.asarray(PRIORS))
    self.mixture = exact.mixture(jnp.asarray(MEANS), VARIANCES, log_priors)
    self.log_prob = exact.log_responsibility(MEANS, VARIANCES, log_priors)

  def test_guided_denoiser_is_that_of_the_component(self):
    x, labels = jnp.asarray(np.random.RandomState(0).randn(8, 2)), jnp.arange(8) % 2
    found = guidance.classifier(self.mixture, self.log_prob, 1.0)(x, TIME, labels).x0
    for component in (0, 1):
      alone = exact.gaussian(MEANS[component], VARIANCES[component])(x, TIME, None).x0
      rows = np.asarray(labels) == component
      np.testing.assert_allclose(found[rows], alone[rows], atol=1e-12)

  def test_probabilities(self):
    x = jnp.asarray(np.random.RandomState(0).randn(8, 2))
    log_probs = [self.log_prob(x, TIME, jnp.full(8, i)) for i in (0, 1)]
    np.testing.assert_allclose(jnp.sum(jnp.exp(jnp.stack(log_probs)), 0), np.ones(8), atol=1e-12)

  def test_a_rare_component_can_be_asked_for(self):
    guided = guidance.classifier(self.mixture, self.log_prob, 1.0)
    denoise = lambda x, time, cond: jax.tree.map(lambda y: y.astype(x.dtype), guided(x, time, cond))
    x = np.asarray(
      samplers.draw(
        denoise, schedules.cosine(), (2,), np.arange(200), steps=50, cond=jnp.ones(200, jnp.int32)
      )
    )
    nearer = np.linalg.norm(x - MEANS[1], axis=1) < np.linalg.norm(x - MEANS[0], axis=1)
    self.assertTrue(np.all(nearer))
    np.testing.assert_allclose(x.mean(0), MEANS[1], atol=0.1)


if __name__ == '__main__':
  absltest.main()
