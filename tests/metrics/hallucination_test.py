"""How unsteady predictions are: its closed form, and samples that are known to be made up."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy import stats

from gmm_diffusion import samplers
from gmm_diffusion.denoisers import exact
from gmm_diffusion.maths import schedules
from gmm_diffusion.metrics import hallucination

MODES, WIDTH = np.array([-1.0, 0.0, 1.0]), 0.05


class UnsteadinessTest(parameterized.TestCase):
  @parameterized.parameters(schedules.linear(), schedules.edm(), schedules.rectified_flow())
  def test_times_cover_the_window(self, schedule):
    at = hallucination.times(schedule, (0.02, 0.2), 5)
    np.testing.assert_allclose(at.b / at.a, np.geomspace(0.02, 0.2, 5), rtol=5e-3)

  def test_times_stay_in_the_schedule(self):
    at = hallucination.times(schedules.edm(sigma_min=0.05), (0.01, 0.1))
    self.assertAlmostEqual((at.b / at.a).min(), 0.05)

  def test_of_a_gaussian(self):
    mean, variance, count = 0.3, 0.01, 40000
    at = hallucination.times(schedules.edm(), (0.02, 0.3))
    for x in (0.3, 0.6):
      found = hallucination.unsteadiness(
        exact.gaussian(np.array([mean]), variance),
        jnp.full((count, 1), x),
        at,
        np.arange(count),
      )
      # x0 = m + c_j (x - m + s_j eps_j) with c_j = v / (v + s_j^2)
      c, s = variance / (variance + at.b**2), at.b
      expected = np.var(c) * (x - mean) ** 2 + (1 - 1 / len(c)) * np.mean((c * s) ** 2)
      np.testing.assert_allclose(found.mean(), expected, rtol=0.02)

  def test_training_items_of_an_exact_denoiser_are_steady(self):
    x = jnp.array([[-1.0, 0.5], [0.2, 0.9]])
    at = hallucination.times(schedules.linear())
    found = hallucination.unsteadiness(exact.empirical(x), x, at, np.arange(2))
    np.testing.assert_allclose(found, 0, atol=1e-10)

  @parameterized.parameters(('ddim', 50, 0.95), ('unipc', 8, 0.9))
  def test_finds_samples_between_modes(self, sampler, steps, least):
    blurred = exact.mixture(jnp.asarray(MODES, jnp.float32)[:, None], WIDTH**2, soften=0.3)
    schedule, ids = schedules.linear(), np.arange(4000)
    x = samplers.draw(blurred, schedule, (1,), ids, sampler=sampler, steps=steps)
    found = hallucination.unsteadiness(blurred, x, hallucination.times(schedule), ids)
    far = np.abs(np.asarray(x) - MODES).min(1) > 5 * WIDTH
    area = stats.mannwhitneyu(found[far], found[~far]).statistic / (far.sum() * (~far).sum())
    self.assertGreater(far.sum(), 100)
    self.assertGreater(area, least)

  def test_items_have_noise_of_their_own(self):
    denoiser, at = exact.gaussian(np.array([0.0]), 0.01), hallucination.times(schedules.edm())
    x = jnp.full((6, 1), 0.2)
    whole = hallucination.unsteadiness(denoiser, x, at, np.arange(6))
    part = hallucination.unsteadiness(denoiser, x[:2], at, np.arange(4, 6))
    np.testing.assert_allclose(whole[4:], part, rtol=1e-5)
    self.assertGreater(np.ptp(whole), 0)


if __name__ == '__main__':
  absltest.main()
