"""Grids that are searched for: the bound against integrals in closed form, and every path."""

import itertools

import numpy as np
from absl.testing import absltest, parameterized
from scipy import optimize

from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import grid_search


class BoundTest(parameterized.TestCase):
  def test_one_and_two_steps(self):
    # order 1 in both: each step holds the prediction at its beginning
    for path in ([-3.0, 2.0], [-3.0, 0.5, 2.0]):
      wanted = sum(np.exp(-s) * (np.exp(e) - np.exp(s)) for s, e in itertools.pairwise(path))
      self.assertAlmostEqual(grid_search.bound(np.array(path)), wanted, places=9)

  def test_the_middle_step_of_three_is_a_line(self):
    path = np.array([-2.0, -0.5, 0.3, 1.0])
    h, g = path[2] - path[1], path[1] - path[0]
    ramp = np.exp(path[1]) * ((h - 1) * np.exp(h) + 1) / g  # int e^l (l - l_1) / g
    flat = np.exp(path[2]) - np.exp(path[1])
    middle = np.hypot(np.exp(-path[1]) * (flat + ramp), np.exp(-path[0]) * ramp)
    ends = sum(np.exp(path[n + 1] - path[n]) - 1 for n in (0, 2))
    self.assertAlmostEqual(grid_search.bound(path), ends + middle, places=9)

  def test_no_grid_is_better(self):
    found = grid_search.bounded(-5.0, 4.5, 4)
    self.assertEqual((found[0], found[-1]), (-5.0, 4.5))
    inner = optimize.minimize(
      lambda inner: grid_search.bound(np.array([-5.0, *np.sort(inner), 4.5])),
      [-3.0, 0.0, 3.0], method='Nelder-Mead', options=dict(maxfev=800),
    )  # fmt: skip
    self.assertLess(grid_search.bound(found), inner.fun * (1 + 1e-4))
    np.testing.assert_allclose(found[1:-1], inner.x, atol=0.02)


class GitsTest(parameterized.TestCase):
  @parameterized.product(count=[2, 5, 7], coefficient=[0.3, 1.0, 3.0])
  def test_every_path(self, count, coefficient):
    def total(path):
      return sum(coefficient**k * costs[i, j] for k, (i, j) in enumerate(itertools.pairwise(path)))

    for steps, seed in itertools.product(range(1, count), range(5)):
      costs = np.random.RandomState(seed).rand(count, count)
      inner = itertools.combinations(range(1, count - 1), steps - 1)
      best = min(((0, *middle, count - 1) for middle in inner), key=total)
      np.testing.assert_array_equal(grid_search.gits(costs, steps, coefficient), best)

  def test_even_costs_of_squares_give_even_steps(self):
    i = np.arange(13.0)
    np.testing.assert_array_equal(grid_search.gits((i - i[:, None]) ** 2, 4, 1.0), [0, 3, 6, 9, 12])

  @parameterized.parameters(
    (np.zeros((3, 2)), 1, 'costs must be a square'),
    (np.full((3, 3), np.nan), 1, 'costs must be a square of finite numbers'),
    (np.zeros((3, 3)), 3, r'steps must be in 1\.\.2 for 3 times, got 3'),
  )
  def test_bad(self, costs, steps, message):
    with self.assertRaisesRegex(UserError, message):
      grid_search.gits(costs, steps)


if __name__ == '__main__':
  absltest.main()
