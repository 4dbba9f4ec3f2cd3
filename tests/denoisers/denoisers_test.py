"""Exact denoisers against numerical integrals; clipping and guidance."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy import special, stats

from gmm_diffusion.denoisers import exact, guidance, inverse
from gmm_diffusion.denoisers.network import network
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import marginals, schedules
from gmm_diffusion.types import Time
from helpers import cases

TIME = Time(np.float64(0), np.float64(0.6), np.float64(0.8))


class ExactTest(cases.X64TestCase):
  def test_gaussian_reproduces_the_golden_predictor(self):
    problem = cases.golden('g7_problem')
    schedule = schedules.linear()
    denoiser = exact.gaussian(problem['m'], problem['v'])
    for x, t, expected in zip(problem['eps_x'], problem['eps_t'], problem['eps_out']):
      np.testing.assert_allclose(
        denoiser(jnp.asarray(x, jnp.float64), schedule.at(t), None).eps, expected, atol=1e-12
      )

  def test_mixture_is_the_posterior_mean(self):
    # one dimension: integrate x_0 p(x_0) N(x; a x_0, b^2) on a grid
    means, variances, priors = (
      np.array([-1.0, 0.5, 2.0]),
      np.array([0.04, 0.3, 0.01]),
      np.array([0.2, 0.5, 0.3]),
    )
    x0 = np.linspace(-8, 8, 400001)
    density = sum(p * stats.norm.pdf(x0, m, v**0.5) for m, v, p in zip(means, variances, priors))
    denoiser = exact.mixture(jnp.asarray(means)[:, None], variances, jnp.log(priors))
    for x in (-1.5, 0.0, 0.9, 3.0):
      weights = density * stats.norm.pdf(x, 0.6 * x0, 0.8)
      expected = np.sum(weights * x0) / np.sum(weights)
      found = denoiser(jnp.array([[x]]), TIME, None)
      np.testing.assert_allclose(found.x0[0, 0], expected, atol=1e-9)
      np.testing.assert_allclose(0.6 * found.x0 + 0.8 * found.eps, [[x]], atol=1e-12)

  def test_empirical_is_attention_over_the_data(self):
    random = np.random.RandomState(0)
    data, x = random.randn(50, 2, 2, 1), random.randn(7, 2, 2, 1)
    logits = -np.sum((x[:, None] - 0.6 * data[None]) ** 2, (2, 3, 4)) / (2 * 0.8**2)
    expected = np.einsum('qj,jhwc->qhwc', special.softmax(logits, 1), data)
    for block in (8, 1024):
      np.testing.assert_allclose(
        exact.empirical(jnp.asarray(data), block)(jnp.asarray(x), TIME, None).x0,
        expected,
        atol=1e-12,
      )

  def test_empirical_at_low_noise_is_the_nearest_image(self):
    data = np.random.RandomState(0).randn(20, 3)
    time = Time(np.float64(0), np.float64(1 - 1e-8), np.float64(1e-4))
    found = exact.empirical(jnp.asarray(data))(jnp.asarray(data[:5] + 1e-3), time, None)
    np.testing.assert_allclose(found.x0, data[:5], atol=1e-12)


class GuidanceTest(cases.X64TestCase):
  def test_clipping_derives_eps_again(self):
    denoiser = guidance.clip_x0(exact.gaussian(0.0, 9.0))
    x = jnp.array([[-5.0, 0.1, 4.0]])
    found = denoiser(x, TIME, None)
    np.testing.assert_allclose(
      found.x0, jnp.clip(exact.gaussian(0.0, 9.0)(x, TIME, None).x0, -1, 1)
    )
    np.testing.assert_allclose(0.6 * found.x0 + 0.8 * found.eps, x, atol=1e-12)

  @parameterized.parameters(0.0, 1.0, 2.5)
  def test_classifier_free(self, scale):
    def denoiser(x, time, labels):
      return marginals.from_x0(x, x * 0 + labels[:, None].astype(x.dtype), time)

    x, labels = jnp.ones((3, 2)), jnp.array([0, 1, 4])
    found = guidance.classifier_free(denoiser, scale, 10)(x, TIME, labels)
    np.testing.assert_allclose(found.x0[:, 0], 10 + scale * (np.array([0, 1, 4]) - 10), atol=1e-12)
    np.testing.assert_allclose(0.6 * found.x0 + 0.8 * found.eps, x, atol=1e-12)

  def test_only_some_channels_are_guided(self):
    denoiser = lambda x, time, labels: marginals.from_x0(
      x, x * 0 + labels[:, None].astype(x.dtype), time
    )
    found = guidance.classifier_free(denoiser, 3.0, 10, channels=2)(
      jnp.ones((2, 3)), TIME, jnp.array([0, 4])
    )
    np.testing.assert_allclose(found.x0, [[-20, -20, 0], [-8, -8, 4]], atol=1e-12)

  @parameterized.parameters(
    ((0.0, 0.74), False), ((0.74, 0.76), True), ((0.76, 9.0), False), ((0.75, 0.75), True)
  )
  def test_interval(self, interval, inside):
    time = Time(np.float64(0), np.float64(0.5), np.float64(0.375))  # b / a = 0.75
    sizes = []

    def denoiser(x, time, labels):
      sizes.append(len(x))
      return marginals.from_x0(x, x * 0 + labels[:, None].astype(x.dtype), time)

    guided = guidance.classifier_free(denoiser, 3.0, 10, interval=interval)
    found = jax.jit(lambda x, labels: guided(x, time, labels))(jnp.ones((1, 2)), jnp.array([4]))
    np.testing.assert_allclose(found.x0, [[-8, -8]] if inside else [[4, 4]], atol=1e-12)
    self.assertEqual(sorted(sizes), [1, 2])  # outside, the batch is not doubled

  @parameterized.product(interval=[None, (0.7, 0.8)], channels=[0, 1])
  def test_a_time_for_each_sample(self, interval, channels):
    def denoiser(x, time, labels):
      self.assertIn(jnp.shape(time.b), ((), (len(x),)))
      return marginals.from_x0(x, x * 0 + labels[:, None].astype(x.dtype), time)

    guided = jax.jit(guidance.classifier_free(denoiser, 3.0, 10, channels, interval))
    x, labels = jnp.ones((3, 2)), jnp.array([0, 1, 4])
    levels = Time(jnp.arange(3.0), jnp.array([0.9, 0.8, 0.5]), jnp.array([0.4, 0.6, 0.9]))
    found = guided(x, levels, labels)
    for n in range(3):
      one = Time(*(level[n] for level in levels))
      alone = guided(x[n : n + 1], one, labels[n : n + 1])
      np.testing.assert_allclose(found.x0[n], alone.x0[0], atol=1e-12)
      np.testing.assert_allclose(found.eps[n], alone.eps[0], atol=1e-12)

  def test_classifier_guidance_with_the_exact_classifier_is_the_conditional_denoiser(self):
    # two Gaussian classes: score(x | y) = score(x) + grad log p(y | x)
    means = jnp.array([[-1.0], [1.5]])
    joint = exact.mixture(means, 0.1)

    def log_prob(x, time, labels):
      total = time.a**2 * 0.1 + time.b**2
      logits = -((x - time.a * means[:, 0][None]) ** 2) / (2 * total)
      return jax.nn.log_softmax(logits)[jnp.arange(len(x)), labels]

    x, labels = jnp.array([[0.3], [-2.0], [1.0]]), jnp.array([0, 1, 1])
    found = guidance.classifier(joint, log_prob, 1.0)(x, TIME, labels)
    for n, label in enumerate(labels):
      expected = exact.gaussian(means[label], 0.1)(x[n : n + 1], TIME, None)
      np.testing.assert_allclose(found.x0[n : n + 1], expected.x0, atol=1e-12)

  @parameterized.product(interval=[None, (0.0, 0.1), (0.0, 9.0)])
  def test_what_is_said_of_the_variance_stays(self, interval):
    """That of the conditional prediction, whatever changes x_0."""

    def denoiser(x, time, labels):
      level = labels[:, None].astype(x.dtype)
      return marginals.from_x0(x, x * 0 + level, time)._replace(share=x * 0 + level / 10)

    x, labels = jnp.ones((3, 2)), jnp.array([0, 1, 4])
    guided = guidance.classifier_free(denoiser, 3.0, 10, interval=interval)
    by_class = guidance.classifier(guided, lambda x, time, labels: jnp.sum(x, 1), 1.0)
    operator = inverse.matrix(np.array([[1.0, 0.0]]))
    measured = inverse.posterior(by_class, operator, jnp.zeros((3, 1)), 0.1, 'pigdm')
    for one in (guided, by_class, guidance.clip_x0(by_class), measured):
      share = one(x, TIME, labels).share
      np.testing.assert_allclose(share, np.array([[0.0], [0.1], [0.4]]) + np.zeros((3, 2)))


class NetworkTest(cases.X64TestCase):
  def test_learned_variance_comes_last(self):
    net = lambda x, t, cond: jnp.concatenate([0.5 * x, x * 0 + 9], -1)
    found = network(net, schedules.linear())(jnp.ones((2, 3, 3, 1)), TIME, None)
    self.assertEqual(found.eps.shape, (2, 3, 3, 1))
    np.testing.assert_allclose(found.eps, 0.5)
    np.testing.assert_allclose(found.share, np.full((2, 3, 3, 1), 5.0))  # (9 + 1) / 2
    plain = network(lambda x, t, cond: x, schedules.linear())(jnp.ones((2, 3, 3, 1)), TIME, None)
    self.assertIsNone(plain.share)

  def test_flow_time_and_edm_input(self):
    seen = {}

    def net(x, t, cond):
      seen.update(x=x, t=t)
      return x

    network(net, schedules.rectified_flow(), 'velocity')(
      jnp.ones((2, 1)), Time(0.25, 0.75, 0.25), None
    )
    np.testing.assert_allclose(seen['t'], [250, 250])
    network(net, schedules.edm(), 'x0')(jnp.ones((2, 1)), Time(2.0, 1.0, 2.0), None)
    np.testing.assert_allclose(seen['x'], 1 / np.sqrt(4.25))
    np.testing.assert_allclose(seen['t'], 250 * np.log(2))

  def test_unknown_prediction(self):
    with self.assertRaisesRegex(UserError, "unknown prediction 'noise'; valid: eps"):
      network(lambda *a: None, schedules.linear(), 'noise')


if __name__ == '__main__':
  absltest.main()
