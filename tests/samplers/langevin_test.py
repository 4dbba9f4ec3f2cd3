"""Denoising MCMC: a golden run of the descent, chains whose law is known, and the published one."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from gmm_diffusion.denoisers import exact
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import noise
from gmm_diffusion.samplers import langevin
from helpers import cases

MEANS, SHARES, WIDTH = np.array([[-1.0], [1.0]]), np.array([0.8, 0.2]), 0.05


def share_of_the_minor_mode(**options):
  """With its standard error over chains, and the levels: 1-D mixture, 64 chains."""
  sigmas, priors = np.geomspace(0.01, 3, 60), np.log(SHARES)
  denoiser = langevin.of_each(exact.mixture(jnp.asarray(MEANS), WIDTH**2, jnp.asarray(priors)))
  log_prob = langevin.level_log_prob(jnp.asarray(MEANS), WIDTH**2, sigmas, jnp.asarray(priors))
  ids = np.arange(64)
  start = 3 * noise.initial(noise.sample_keys(1, ids), (1,), jnp.float64)
  found = jax.jit(
    lambda start: langevin.chains(denoiser, log_prob, sigmas, start, ids, 200, **options)
  )(start)
  kept = np.asarray(found.x)[50:, :, 0] > 0  # the start is another mixture
  of_chains = kept.mean(0)
  return of_chains.mean(), of_chains.std(ddof=1) / 8, np.asarray(found.sigma)[50:]


class DescentTest(cases.X64TestCase):
  @parameterized.parameters(4, 6, 10)
  def test_golden(self, steps):
    known = cases.golden('g10_dmcmc')
    calls = []

    def denoiser(x, time, cond):
      calls.append(time)
      return exact.gaussian(known['m'], known['v'])(x, time, cond)

    with jax.disable_jit():
      found = langevin.descend(
        denoiser, jnp.asarray(known['x']), jnp.asarray(known['sigma']), steps
      )
    np.testing.assert_allclose(found, known[f'N{steps}/final'], rtol=0, atol=1e-12)
    self.assertLen(calls, int(known[f'N{steps}/nfe']))
    np.testing.assert_allclose(
      np.array([time.b for time in calls]), known[f'N{steps}/calls_sigma'], rtol=1e-12
    )

  def test_too_few_steps(self):
    with self.assertRaisesRegex(UserError, 'steps must be at least 3, got 2'):
      langevin.descend(exact.gaussian(jnp.zeros(1), 1.0), jnp.zeros((1, 1)), jnp.ones(1), 2)


class ChainTest(cases.X64TestCase):
  @parameterized.parameters(0.5, 2.0)
  def test_variance_of_an_unadjusted_chain(self, c):
    """(v + sigma^2) / (1 - c / 4) at one level, from which the gain of the denoiser leads to clean
    data. 5 standard errors are a false alarm in two million."""
    v, sigma, C, M, skip = 0.3, 0.7, 400, 40, 20
    ids = np.arange(C)
    denoiser = exact.gaussian(jnp.zeros(1), v)
    found = langevin.chains(
      denoiser, lambda y: jnp.zeros((len(y), 1)), np.array([sigma]),
      noise.initial(noise.sample_keys(1, ids), (1,), jnp.float64), ids, M, skip, 20, c, v,
    )  # fmt: skip
    one = v / (v + sigma**2)  # from the lowest level one Euler step ends at clean data
    squares = np.mean(np.asarray(found.x)[5:, :, 0] ** 2, 0)  # of chains, which are independent
    expected = float(one) ** 2 * (v + sigma**2) / (1 - c / 4)
    error = squares.std(ddof=1) / np.sqrt(C)
    self.assertLess(abs(squares.mean() - expected), 5 * error)
    self.assertLess(error, 0.02 * expected)

  def test_samples_the_mixture(self):
    """The move is not adjusted, so the shares are near and not equal; the levels are uniform."""
    share, error, sigma = share_of_the_minor_mode(step=0.5, variance=WIDTH**2)
    self.assertLess(abs(share - 0.2), 0.03 + 5 * error)
    self.assertLess(error, 0.02)
    below = np.mean(sigma < np.sqrt(0.01 * 3))  # the middle of the levels
    self.assertAlmostEqual(below, 0.5, delta=0.06)

  def test_the_published_chain_does_not(self):
    share, error, _ = share_of_the_minor_mode(
      step=0.5, variance=None, level='likeliest', choice='smallest'
    )
    self.assertGreater(share - 5 * error, 0.35)

  def test_a_chain_does_not_depend_on_others(self):
    denoiser = exact.gaussian(jnp.zeros(1), 0.3)
    of = lambda ids: langevin.chains(
      denoiser, lambda y: jnp.zeros((len(y), 2)), np.array([0.1, 1.0]),
      jnp.ones((len(ids), 1)), np.asarray(ids), 3, 2, 4, variance=0.3,
    )  # fmt: skip
    np.testing.assert_allclose(of([3, 5]).x[:, 1], of([5]).x[:, 0], atol=1e-12)
    self.assertEqual(of([5]).nfe, 2 + 5)

  @parameterized.parameters(
    ({'level': 'best'}, "unknown level 'best'; valid: drawn, likeliest"),
    ({'choice': 'first'}, "unknown choice 'first'; valid: last, smallest"),
    ({'step': 4.0}, r'step must be in \(0, 4\), where the chain is stable, got 4'),
    ({'step': 0.0}, r'step must be in \(0, 4\)'),
  )
  def test_bad_input(self, options, message):
    with self.assertRaisesRegex(UserError, message):
      langevin.chains(
        exact.gaussian(jnp.zeros(1), 1.0), lambda y: y, np.ones(1), jnp.ones((1, 1)), [0], 1,
        **options,
      )  # fmt: skip


if __name__ == '__main__':
  absltest.main()
