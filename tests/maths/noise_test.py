"""Noise depends on (seed, id, step) and on nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from scipy import stats

from gmm_diffusion.maths import noise
from helpers import cases


class NoiseTest(cases.X64TestCase):
  def test_independent_of_the_other_samples(self):
    every = noise.at_step(noise.sample_keys(3, np.arange(20)), 5, (4,))
    some = noise.at_step(noise.sample_keys(3, np.array([17, 2])), 5, (4,))
    np.testing.assert_array_equal(some.normal, every.normal[np.array([17, 2])])
    np.testing.assert_array_equal(some.uniform, every.uniform[np.array([17, 2])])

  def test_differs_between_seeds_ids_and_steps(self):
    draw = lambda seed, i, step: float(
      noise.at_step(noise.sample_keys(seed, np.array([i])), step, ()).normal[0]
    )
    values = [draw(seed, i, step) for seed in (0, 1) for i in (0, 1, 2**31) for step in (0, 1)]
    values += [float(noise.initial(noise.sample_keys(0, np.array([0])), ())[0])]
    self.assertLen(set(values), len(values))

  def test_distributions(self):
    # Kolmogorov-Smirnov; false alarm 1e-4 for each of three tests, fixed seed
    keys = noise.sample_keys(0, np.arange(50000))
    draws = noise.at_step(keys, 0, ())
    self.assertGreater(stats.kstest(np.asarray(draws.normal), 'norm').pvalue, 1e-4)
    self.assertGreater(stats.kstest(np.asarray(draws.uniform), 'uniform').pvalue, 1e-4)
    self.assertGreater(stats.kstest(np.asarray(noise.initial(keys, ())), 'norm').pvalue, 1e-4)

  def test_categorical(self):
    # chi-squared; false alarm 1e-4
    priors = jnp.array([0.5, 0.2, 0.25, 0.05])
    index = noise.categorical(jax.random.uniform(jax.random.key(0), (40000,)), priors)
    counts = np.bincount(index, minlength=4)
    self.assertGreater(stats.chisquare(counts, 40000 * np.asarray(priors)).pvalue, 1e-4)
    np.testing.assert_array_equal(noise.categorical(jnp.array([0.0, 1.0]), priors), [0, 3])


if __name__ == '__main__':
  absltest.main()
