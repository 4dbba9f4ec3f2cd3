"""Masked diffusion, against the enumeration of all that can be drawn."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy import stats

from gmm_diffusion.discrete import predictors, process, reveal
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import noise
from helpers import cases

V, L = 3, 4
ITEMS = np.array([[0, 0, 1, 2], [2, 2, 1, 0], [0, 1, 1, 1], [2, 0, 0, 2]])
ALL = np.array(list(itertools.product(range(V), repeat=L)))


def probabilities(epsilon=0.1, width=0.0):
  """Of all tokens in ALL, term by term."""
  theta = predictors.table(V, epsilon, width)
  return np.mean([np.prod([theta[k, ALL[:, l]] for l, k in enumerate(y)], 0) for y in ITEMS], 0)


def drawn(steps, order='first_hitting', count=20_000, known=None, epsilon=0.1):
  """How often each of ALL is drawn."""
  of = predictors.exact(ITEMS, V, epsilon).predictor
  draw = jax.jit(lambda ids: reveal.sample(of, V, L, ids, 0, steps, order, known).x)
  x = np.asarray(draw(np.arange(count, dtype=np.uint32)))
  return np.bincount(x @ V ** np.arange(L)[::-1], minlength=len(ALL)), x


def bounded_gumbel(p, most):
  """The law of argmax_n log p_n - log(-log u_n) for u_n uniform in (0, most), of rising p: p_n
  sum_{i <= n} beta_i [2409.02908, eq. 12]."""
  # with s = e^-x, value j can be at most at s = -log(most) / p_j; between two of these ends as many
  # values compete as there are from i on
  ends = np.append(np.inf, -np.log(most) / p)
  rest = np.cumsum(p[::-1])[::-1]
  from_end = lambda s: np.exp(-s * rest)
  size = most ** np.arange(len(p), 0, -1)
  return p * np.cumsum((from_end(ends[1:]) - from_end(ends[:-1])) / size / rest)


class ExactTest(cases.X64TestCase):
  @parameterized.parameters((0.1, 0.0), (0.02, 0.7))
  def test_predictor_and_probability(self, epsilon, width):
    p, found = probabilities(epsilon, width), predictors.exact(ITEMS, V, epsilon, width)
    self.assertAlmostEqual(p.sum(), 1)
    np.testing.assert_allclose(found.log_prob(jnp.asarray(ALL)), np.log(p), rtol=1e-9)
    x = np.array([1, V, 2, V])
    fits = (ALL[:, 0] == 1) & (ALL[:, 2] == 2)
    np.testing.assert_allclose(
      found.log_prob(jnp.asarray(x[None])), np.log(p[fits].sum()), rtol=1e-9
    )
    mu = np.exp(found.predictor(jnp.asarray(x[None]))[0])
    for l in (1, 3):
      expected = [p[fits & (ALL[:, l] == v)].sum() / p[fits].sum() for v in range(V)]
      np.testing.assert_allclose(mu[l], expected, rtol=1e-9)

  def test_bound_is_the_probability_for_every_item(self):
    found = predictors.exact(ITEMS, V, 0.1)
    total = np.zeros(len(ALL))
    for n in range(1, L + 1):
      sets = list(itertools.combinations(range(L), n))
      for places in sets:
        hidden = np.isin(np.arange(L), places)
        log_mu = np.asarray(found.predictor(process.masked(jnp.asarray(ALL), hidden[None], V)))
        own = np.take_along_axis(log_mu, ALL[..., None], -1)[..., 0]
        total += L * -own[:, hidden].mean(1) / (L * len(sets))
    np.testing.assert_allclose(total, -np.log(probabilities()), rtol=1e-9)

  def test_bound_by_draws(self):
    found = predictors.exact(ITEMS, V, 0.1)
    x = np.repeat(ALL[5:6], 4000, 0)
    keys = noise.sample_keys(0, np.arange(4000))
    nats = np.asarray(process.bound(found.predictor, jnp.asarray(x), keys, V, draws=4))
    error = nats.std() / np.sqrt(4000)
    self.assertAlmostEqual(nats.mean(), -np.log(probabilities()[5]), delta=4 * error)
    self.assertLess(error, 0.05)
    np.testing.assert_allclose(process.bits_per_token(L * np.log(2), L), 1)

  @parameterized.parameters((1, 0.1, 0.0), (3, 0.0, 0.0), (3, 1.5, 0.0), (3, 0.1, -1.0))
  def test_refuses_what_leaves_nothing_possible(self, levels, epsilon, width):
    with self.assertRaisesRegex(UserError, 'epsilon in'):
      predictors.table(levels, epsilon, width)

  def test_refuses_tokens_out_of_range(self):
    with self.assertRaisesRegex(UserError, r'tokens must be in 0..1, got 0..2'):
      predictors.exact(ITEMS, 2)


class RevealTest(parameterized.TestCase):
  def test_one_at_a_time_is_exact_and_more_are_not(self):
    # false alarm 1 %, seed fixed
    expected = 20_000 * probabilities()
    value = lambda steps: stats.chisquare(drawn(steps)[0], expected).pvalue
    self.assertGreater(value(0), 0.01)
    for steps in (2, 1):
      self.assertLess(value(steps), 1e-6)

  @parameterized.parameters(1, 2, 5)
  def test_two_tied_bits_break_as_often_as_they_must(self, steps):
    of = predictors.exact(np.array([[0, 0], [1, 1]]), 2, 1e-6).predictor
    draw = jax.jit(lambda ids: reveal.sample(of, 2, 2, ids, 0, steps, 'ancestral').x)
    x = np.asarray(draw(np.arange(20_000, dtype=np.uint32)))
    p = 1 / (2 * steps)  # both in one step, and then by chance
    broken = np.mean(x[:, 0] != x[:, 1])
    self.assertAlmostEqual(broken, p, delta=4 * np.sqrt(p * (1 - p) / 20_000))

  @parameterized.parameters(
    (5, 'ancestral', 1), (5, 'ancestral', 4), (9, 'ancestral', 6), (6, 'first_hitting', 2),
    (6, 'first_hitting', 3), (6, 'first_hitting', 6),
  )  # fmt: skip
  def test_tied_bits_break_as_often_as_they_must(self, tokens, order, steps):
    # The k bits that come first do not know of each other, and the others follow them: they are all
    # equal with probability 2^(1 - k). All equal bits are half ones: this is the total variation.
    of = predictors.exact(np.repeat([[0], [1]], tokens, 1), 2, 1e-6).predictor
    draw = jax.jit(lambda ids: reveal.sample(of, 2, tokens, ids, 0, steps, order).x)
    x = np.asarray(draw(np.arange(20_000, dtype=np.uint32)))
    k = np.arange(1, tokens + 1)
    if order == 'ancestral':  # the first step that reveals any is one of `steps`
      later = np.arange(steps) / steps  # the share of the time behind a step
      P = [np.sum(math.comb(tokens, n) * later ** (tokens - n) / steps**n) for n in k]
    else:
      P = k == tokens // steps
    np.testing.assert_allclose(np.sum(P), 1)
    p = np.sum(P * (1 - 2.0 ** (1 - k)))
    ones = x.sum(1)
    broken = np.mean((ones > 0) & (ones < tokens))
    self.assertAlmostEqual(broken, p, delta=4 * np.sqrt(p * (1 - p) / 20_000))
    self.assertAlmostEqual(np.mean(ones == tokens), (1 - p) / 2, delta=4 * 0.5 / np.sqrt(20_000))

  def test_asks_in_every_step_and_reveals_in_fewer(self):
    # of N steps, B samples of L tokens need N (1 - (1 - 1/N)^(B L)): in the others nothing is
    # revealed. A sampler that keeps its answers asks so often, ours in every step.
    N, B, groups = 6, 2, 2000
    seen = []

    def of(x, cond):
      jax.debug.callback(lambda x: seen.append(np.asarray(x) == V), x, ordered=True)
      return jnp.zeros((*x.shape, V))

    found = reveal.sample(of, V, L, np.arange(B * groups, dtype=np.uint32), 0, N, 'ancestral')
    jax.effects_barrier()
    self.assertEqual((len(seen), found.nfe), (N, N))
    left = np.stack([*seen, np.asarray(found.x) == V])
    self.assertFalse(left[-1].any())
    revealed = (left[:-1] & ~left[1:]).reshape(N, groups, B * L).any(-1).sum(0)
    expected = N * (1 - (1 - 1 / N) ** (B * L))
    self.assertAlmostEqual(revealed.mean(), expected, delta=4 * revealed.std() / np.sqrt(groups))

  def test_ancestral_in_many_steps_is_first_hitting(self):
    _, one = drawn(0, count=100)
    _, other = drawn(10_000, 'ancestral', count=100)
    # two of 4 tokens fall into one of 10,000 steps once in 1,700 samples
    np.testing.assert_array_equal(one, other)

  def test_inpainting_is_exact(self):
    known = np.array([V, 1, V, 2])
    p = probabilities()
    fits = (ALL[:, 1] == 1) & (ALL[:, 3] == 2)
    counts, x = drawn(0, known=known)
    of = predictors.exact(ITEMS, V, 0.1).predictor
    again = jax.jit(lambda known: reveal.sample(of, V, L, np.arange(9), known=known).x)(known)
    np.testing.assert_array_equal(again, x[:9])
    np.testing.assert_array_equal(x[:, [1, 3]], np.broadcast_to([1, 2], (20_000, 2)))
    value = stats.chisquare(counts[fits], 20_000 * p[fits] / p[fits].sum()).pvalue
    self.assertGreater(value, 0.01)

  def test_samples_do_not_depend_on_each_other(self):
    of = predictors.exact(ITEMS, V).predictor
    whole = reveal.sample(of, V, L, np.arange(6), steps=2)
    part = reveal.sample(of, V, L, np.arange(4, 6), steps=2)
    np.testing.assert_array_equal(whole.x[4:], part.x)
    self.assertEqual(whole.nfe, 2)

  def test_rare_values_are_drawn_as_often_as_they_must(self):
    # 1,000 values of 1e-7 each: a Gumbel maximum in float32 draws a third of them
    rare = jnp.full(1001, 1e-7).at[0].set(1 - 1e-4)
    w = jax.random.uniform(jax.random.key(0), (500_000,))
    found = jax.jit(lambda w: jax.lax.map(lambda part: reveal.inverse(
      jnp.broadcast_to(rare, (2000, 1001)), part), w.reshape(-1, 2000)))(w)  # fmt: skip
    self.assertAlmostEqual(np.mean(np.asarray(found) > 0), 1e-4, delta=4 * np.sqrt(1e-4 / 5e5))

  def test_rare_values_have_their_share_of_all_uniform_numbers(self):
    # the same 1,000 values, by counting the numbers w = n / 2^23 that a float32 draw can be
    p = np.append(np.full(1000, 1e-7), 1 - 1e-4)
    gumbel = bounded_gumbel(p, 1 - 2.0**-23)
    self.assertAlmostEqual(gumbel.sum(), 1, places=9)
    self.assertAlmostEqual(gumbel[:-1].sum(), 3.0e-5, delta=1e-6)  # what a Gumbel maximum has
    w = 1 - np.arange(1, 2001)[::-1] / 2.0**23  # rare values come last
    rare = jnp.asarray(p[::-1], jnp.float32)
    found = np.asarray(reveal.inverse(jnp.broadcast_to(rare, (2000, 1001)), jnp.float32(w)))
    self.assertEqual(found[0], 0)
    share = np.bincount(found, minlength=1001)[1:] / 2.0**23
    self.assertAlmostEqual(share.sum(), 1e-4, delta=1e-6)  # sums near 1 are rounded to 2^-24
    self.assertLess(np.abs(share - 1e-7).max(), 2.0**-23)

  def test_network_sees_one_hot_images_and_the_share_of_masks(self):
    seen = {}

    def apply(hot, t, cond):
      seen.update(hot=hot, t=t)
      return jnp.concatenate([hot[..., :V]], -1) * 5

    of = predictors.network(apply, (2, 2, 1), V)
    x = jnp.asarray([[0, 1, V, V], [2, 2, 2, V]])
    log_mu = of(x)
    self.assertEqual((seen['hot'].shape, log_mu.shape), ((2, 2, 2, V + 1), (2, 4, V)))
    np.testing.assert_allclose(seen['t'], [500, 250])
    np.testing.assert_allclose(np.exp(log_mu).sum(-1), 1, rtol=1e-6)
    np.testing.assert_array_equal(log_mu[0, :2].argmax(-1), [0, 1])

  def test_refuses(self):
    of = predictors.exact(ITEMS, V).predictor
    for options, words in (
      ({'order': 'leftmost'}, 'unknown order'),
      ({'steps': -1}, 'at least 1 step'),
      ({'known': np.zeros(3)}, 'must be 4 for each sample'),
      ({'known': np.full(4, 7)}, 'in 0..3'),
      ({'known': np.array([0, 1, 2, 0])}, 'nothing to draw: none of them is the mask, 3'),
      ({'known': ITEMS[:2]}, 'nothing to draw'),
    ):
      with self.assertRaisesRegex(UserError, words):
        reveal.sample(of, V, L, np.arange(2), **options)


if __name__ == '__main__':
  absltest.main()
