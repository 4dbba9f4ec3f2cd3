"""Posterior sampling by anchors: it fits what is measured, and needs no measurement to be a
sampler."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from gmm_diffusion.discrete import posterior, predictors
from gmm_diffusion.errors import UserError

V, L = 5, 6
ITEMS = np.array([[0, 0, 1, 4, 4, 4], [4, 4, 3, 0, 0, 0], [2, 2, 2, 2, 2, 2]])


def halves(x):
  """Means of three tokens each."""
  return x.reshape(len(x), 2, 3).mean(-1)


class AnchoredTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.predictor = predictors.exact(ITEMS, V, 0.02).predictor

  def draw(self, y, **options):
    ids = np.arange(len(y))
    settings = {'steps': 3, **options}
    return posterior.anchored(self.predictor, V, L, halves, jnp.asarray(y), ids, **settings)

  def test_fits_the_measurement(self):
    values = posterior.values(ITEMS, V)
    self.assertEqual((values.min(), values.max()), (-1, 1))
    y = np.repeat(halves(values), 64, 0).astype(np.float32)
    fits = lambda x: np.abs(halves(posterior.values(np.asarray(x), V)) - y).mean()
    found = self.draw(y)
    self.assertEqual((found.shape, found.dtype, int(found.max()) < V), ((192, L), np.int32, True))
    self.assertLess(fits(found), 0.5 * fits(self.draw(y, inner=0)))
    right = np.mean(np.all(np.asarray(found) == np.repeat(ITEMS, 64, 0), 1))
    self.assertGreater(right, 0.75)

  def test_a_sample_does_not_depend_on_the_others(self):
    y = halves(posterior.values(ITEMS, V)).astype(np.float32)
    few = posterior.anchored(
      self.predictor, V, L, halves, jnp.asarray(y[1:2]), np.arange(1, 2), steps=3
    )
    np.testing.assert_array_equal(few[0], self.draw(y)[1])

  def test_bad_measurement(self):
    with self.assertRaisesRegex(UserError, r'must have the shape \[2, 2\], got \[2, 3\]'):
      self.draw(np.zeros((2, 3), np.float32))


if __name__ == '__main__':
  absltest.main()
