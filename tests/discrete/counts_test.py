"""What revealing several tokens at once loses, against enumeration, and the counts that lose
least."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given
from hypothesis import strategies as st

from gmm_diffusion.discrete import counts, predictors, reveal
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import noise
from helpers import cases

V, L = 3, 4
ITEMS = np.array([[0, 0, 1, 2], [2, 2, 1, 0], [0, 1, 1, 1], [2, 0, 0, 2]])
ALL = np.array(list(itertools.product(range(V), repeat=L)))


def enumerated(log_prob, predictor, p):
  """c(n, m) over all tokens and all orders."""
  out = np.full((L + 1, L + 1), np.inf)
  for n, m in itertools.combinations(range(L + 1), 2):
    each = []
    for order in itertools.permutations(range(L)):
      first, group = list(order[:n]), list(order[n:m])
      start, end = np.full_like(ALL, V), np.full_like(ALL, V)
      start[:, first] = ALL[:, first]
      end[:, first + group] = ALL[:, first + group]
      mu = np.asarray(predictor(jnp.asarray(start)))
      apart = np.take_along_axis(mu, ALL[..., None], -1)[..., 0][:, group].sum(1)
      each.append(np.sum(p * (log_prob(end) - log_prob(start) - apart)))
    out[n, m] = np.mean(each)
  return out


class LostTest(cases.X64TestCase):
  def test_is_the_total_correlation(self):
    found = predictors.exact(ITEMS, V, 0.1)
    of_all, predictor = jax.jit(found.log_prob), jax.jit(found.predictor)
    log_prob = lambda x: np.asarray(of_all(jnp.asarray(x)))
    p = np.exp(log_prob(ALL))
    expected = enumerated(log_prob, lambda x: predictor(x, None), p)
    draws = np.random.RandomState(0).choice(len(ALL), 20_000, p=p / p.sum())
    keys = noise.sample_keys(0, np.arange(len(draws), dtype=np.uint32))
    known = jax.jit(lambda x, keys: counts.known(found.predictor, x, keys, V))
    table = counts.lost(known(jnp.asarray(ALL[draws]), keys))
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(np.isfinite(table), finite)
    np.testing.assert_allclose(table[finite], expected[finite], atol=0.03)
    self.assertGreater(expected[0, L], 0.5)
    np.testing.assert_allclose([table[n, n + 1] for n in range(L)], 0, atol=1e-12)  # exactly

  def test_tied_bits(self):
    """Two bits that are always equal: drawn together they lose one bit of knowledge."""
    found = predictors.exact(np.array([[0, 0], [1, 1]]), 2, 1e-9)
    keys = noise.sample_keys(0, np.arange(5, dtype=np.uint32))
    x = jnp.asarray([[0, 0], [1, 1], [0, 0], [1, 1], [0, 0]])
    table = counts.lost(counts.known(found.predictor, x, keys, 2))
    np.testing.assert_allclose(table[0, 1:], [0, np.log(2)], atol=1e-7)


class BestTest(parameterized.TestCase):
  @given(st.integers(1, 7), st.data())
  def test_no_other_counts_lose_less(self, tokens, data):
    seed = data.draw(st.integers(0, 1000))
    steps = data.draw(st.integers(1, tokens))
    cost = np.random.RandomState(seed).rand(tokens + 1, tokens + 1)
    cost[np.tril_indices(tokens + 1)] = np.inf
    found = counts.best(cost, steps)
    self.assertEqual((len(found), found.sum()), (steps, tokens))
    every = [
      np.diff([0, *cut, tokens]) for cut in itertools.combinations(range(1, tokens), steps - 1)
    ]
    self.assertAlmostEqual(
      counts.total(cost, found), min(counts.total(cost, np.array(one)) for one in every)
    )

  @given(st.integers(1, 100), st.data())
  def test_counts_by_name(self, tokens, data):
    steps = data.draw(st.integers(1, tokens))
    for make in (counts.uniform, counts.cosine):
      found = make(tokens, steps)
      self.assertEqual((len(found), found.sum()), (steps, tokens))
      self.assertGreaterEqual(found.min(), 1)
    self.assertLessEqual(np.ptp(counts.uniform(tokens, steps)), 1)

  def test_few_first(self):
    found = counts.cosine(64, 4)
    np.testing.assert_array_equal(found, [5, 14, 21, 24])

  @parameterized.parameters(0, 5)
  def test_bad_steps(self, steps):
    cost = np.ones((5, 5))
    for call in (counts.uniform, counts.cosine):
      with self.assertRaisesRegex(
        UserError, f'4 tokens can be revealed in 1 to 4 steps, got {steps}'
      ):
        call(4, steps)
    with self.assertRaisesRegex(UserError, f'in 1 to 4 steps, got {steps}'):
      counts.best(cost, steps)


class RevealTest(parameterized.TestCase):
  def test_reveals_as_many_as_it_is_told(self):
    asked = []

    def predictor(x, cond):
      asked.append(np.sum(np.asarray(x) == 2, -1))
      return jnp.log(jnp.full((*x.shape, 2), 0.5))

    each = np.array([1, 5, 3, 8])
    grid = reveal.grid(4, each)
    keys = noise.sample_keys(0, np.arange(3, dtype=np.uint32))
    kernel, draw = reveal.kernel(2), reveal.draws(keys, 17)
    state = kernel.init(jnp.full((3, 17), 2))
    left = [17]
    for n in range(4):
      row = type(grid)(*(level[n] for level in grid))
      state, _ = kernel.step(state, row, (), (), lambda x, time: predictor(x, None), draw)
      left.append(np.sum(np.asarray(state.x) == 2, -1))
    np.testing.assert_array_equal(
      -np.diff(np.stack([np.full(3, 17), *left[1:]]), axis=0)[:, 0], each
    )
    np.testing.assert_array_equal(left[-1], 0)

  def test_uniform_counts_are_steps(self):
    found = predictors.exact(ITEMS, V, 0.1).predictor
    one = reveal.sample(found, V, L, np.arange(9), 0, 2).x
    other = reveal.sample(found, V, L, np.arange(9), 0, counts=np.array([2, 2])).x
    np.testing.assert_array_equal(one, other)

  @parameterized.parameters(
    (dict(order='ancestral', counts=np.array([2, 2])), "belong to order 'first_hitting'"),
    (dict(counts=np.array([2, 1])), 'have the sum 4, got .* and 3'),
    (dict(counts=np.array([4, 0])), 'one of at least 1 for each'),
  )
  def test_bad_counts(self, options, words):
    found = predictors.exact(ITEMS, V, 0.1).predictor
    with self.assertRaisesRegex(UserError, words):
      reveal.sample(found, V, L, np.arange(2), **options)


if __name__ == '__main__':
  absltest.main()
