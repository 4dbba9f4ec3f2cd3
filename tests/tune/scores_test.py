"""Energy distances: closed forms, and errors of paired gains."""

import math

import hypothesis
import jax
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import strategies

from gmm_diffusion.tune import scores

VECTORS = scores.features((1,))


def mean_distance(shift):
  """E|X - Y| of N(0, 1) and N(shift, 1)."""
  return 2 / math.sqrt(math.pi) * math.exp(-(shift**2) / 4) + shift * math.erf(shift / 2)


class EnergyTest(parameterized.TestCase):
  @parameterized.parameters(0.0, 0.5, 2.0)
  def test_two_gaussians(self, shift):
    random = np.random.RandomState(0)
    x, y = random.standard_normal((3000, 1)), random.standard_normal((3000, 1)) + shift
    found = scores.scorer(VECTORS, scores.reference(VECTORS, y))(x)
    within = mean_distance(0)
    self.assertAlmostEqual(found.value, 2 * (mean_distance(shift) - within) / within, delta=0.1)

  def test_the_means_of_what_each_adds_are_the_value(self):
    random = np.random.RandomState(1)
    x, y = random.standard_normal((30, 6)), random.standard_normal((20, 6))
    of = scores.features((6,))
    known = scores.reference(of, y)
    found = scores.scorer(of, known)(x)
    # own counts pairs of samples twice, as an influence does; others counts no pairs at all
    inside = 2 * (found.others.mean() - 1 - found.value)
    self.assertAlmostEqual(found.own.mean(), found.others.mean() - inside, places=4)

  @parameterized.parameters(1, 2)
  def test_trained_networks_count_most(self, count):
    random = np.random.RandomState(1)
    x, y = random.standard_normal((2, 20, 4, 4, 1)).astype(np.float32)
    learned = [lambda x, k=k: x.reshape(len(x), -1)[:, k : k + 3] for k in range(count)]
    of = scores.features((4, 4, 1), learned)
    known = scores.reference(of, y, count)
    each = [
      scores.energy([block], scores.Reference([theirs], [1 / within], [within]))[0]
      for block, theirs, within in zip(of(x), known.blocks, known.within)
    ]
    value = scores.energy(of(x), known)[0]
    apart = scores.block_scorer(of, known)(x)
    np.testing.assert_allclose(scores.total(apart).value, value, rtol=1e-5, atol=1e-6)
    self.assertLen(scores.in_blocks(apart), len(known.blocks))
    want = 0.1 * np.mean(each[:-count]) + 0.9 * np.mean(each[-count:])
    self.assertAlmostEqual(float(value), float(want), places=5)

  def aimed(self, start, y, learned):
    """(features, reference, the same to be better than `start`), and their groups of distances."""
    of = scores.features((4, 4, 1), learned)
    known = scores.reference(of, y, len(learned))
    apart = scores.block_scorer(of, known)

    def groups(x):
      found = apart(x)
      rest = scores.total(scores.Score(*(part[: -len(learned)] for part in found)))
      return [rest, *scores.in_blocks(found)[-len(learned) :]]

    return of, scores.towards(known, apart(start), len(learned)), groups

  def test_the_worst_distance_decides_against_a_sampler(self):
    random = np.random.RandomState(4)
    x, y = random.standard_normal((2, 30, 4, 4, 1)).astype(np.float32)
    top, bottom = lambda x: x[:, :2].reshape(-1, 8), lambda x: x[:, 2:].reshape(-1, 8)
    of, aim, groups = self.aimed(x + 1, y, [top, bottom])
    traded = np.concatenate([x[:, :2], x[:, 2:] + 1.3], 1)  # good for one network, bad for one
    for z, low, high in ((x + 1, 0.999, 1.001), (traded, 1.3, 1.6), (x + 0.8, 0.5, 0.95)):
      ratios = np.array([one.value for one in groups(z)]) / np.asarray(aim.goal)
      value = float(scores.scorer(of, aim)(z).value)
      self.assertBetween(value, low, high)
      self.assertBetween(value, np.mean(ratios) - 1e-5, np.max(ratios) + 1e-5)
      if z is traded:
        self.assertLess(np.mean(ratios), 1)

  def test_what_each_adds_to_the_worst_is_what_is_missing_without_it(self):
    random = np.random.RandomState(5)
    x, y = random.standard_normal((2, 40, 4, 4, 1)).astype(np.float32)
    of, aim, _ = self.aimed(1.5 * x + 1, y, [lambda x: x[:, 0, :, 0]])
    of_samples = scores.scorer(of, aim)
    whole = of_samples(x + 1)
    missing = [whole.value - of_samples(np.delete(x + 1, i, 0)).value for i in range(40)]
    influence = (whole.own - whole.own.mean()) / 39
    self.assertGreater(np.corrcoef(missing, influence)[0, 1], 0.99)
    self.assertBetween(np.std(missing) / np.std(influence), 0.9, 1.1)

  def test_a_distance_like_none_is_no_goal(self):
    random = np.random.RandomState(6)
    x, y = random.standard_normal((2, 50, 1))
    known = scores.reference(VECTORS, y)
    goal = scores.Score(np.array([-1e-3]), np.stack([x[:, 0]]), np.stack([y[:, 0]]))
    error = np.sqrt(np.var(x, ddof=1) / 50 + np.var(y, ddof=1) / 50)
    found = scores.towards(known, goal, 0).goal
    np.testing.assert_allclose(found, [2 * error], rtol=1e-5)

  def test_the_error_of_a_gain_is_that_of_repeated_draws(self):
    random, gains, errors = np.random.RandomState(2), [], []
    energy = jax.jit(lambda x, y: scores.energy([x], scores.Reference([y], [1.0], [1.0])))
    for _ in range(60):
      x, y = random.standard_normal((80, 2)), random.standard_normal((80, 2))
      first, second = (scores.Score(*map(np.asarray, energy(z, y))) for z in (x, 1.3 * x))
      gain, error = scores.gain(first, second)
      gains.append(gain)
      errors.append(error)
    self.assertGreater(np.mean(gains), 0)
    self.assertBetween(np.mean(errors) / np.std(gains, ddof=1), 0.75, 1.35)

  def test_nothing_gains_on_itself(self):
    x = np.random.RandomState(3).standard_normal((10, 1))
    found = scores.scorer(VECTORS, scores.reference(VECTORS, x[::-1] + 1))(x)
    self.assertEqual(scores.gain(found, found), (0, 0))
    self.assertFalse(scores.excludes_zero(0.0, 0.0))

  @hypothesis.settings(max_examples=3, deadline=None)
  @hypothesis.given(strategies.sampled_from([(4, 4, 1), (6, 5, 3), (3, 2, 1)]))
  def test_images_of_any_size_have_blocks(self, shape):
    x = np.random.RandomState(0).standard_normal((3, *shape)).astype(np.float32)
    blocks = scores.features(shape)(x)
    self.assertEqual(blocks[0].shape, (3, int(np.prod(shape))))
    self.assertTrue(all(block.ndim == 2 and len(block) == 3 for block in blocks))
    again = scores.features(shape)(x)
    np.testing.assert_array_equal(blocks[-1], again[-1])


if __name__ == '__main__':
  absltest.main()
