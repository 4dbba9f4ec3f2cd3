"""Probabilistic attention against dense sums, known special cases and golden runs; EM's
properties."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given, settings, strategies
from scipy import special

from gmm_diffusion.maths import em, mixtures
from helpers import cases

# most of the time here is compilation
jit = functools.partial(
  jax.jit,
  compiler_options={'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True},
)
GOLDEN = cases.golden('g1_apple_attention')
CASES = json.loads(GOLDEN['config'].item())['cases']


def public_layer(case, arrays, constructor, scalars):
  """One head of a golden case, composed from the steps of em.py [V, H].

  The public layer has no log-precision normaliser, which is taken out of the priors here; its
  magnitude priors follow the adapted keys and values, its key update ignores r^k, and its prior is
  the last iterate.
  """
  get = lambda name: arrays.get(name, scalars.get(name))
  q, keys, values = arrays['q'].T, arrays['zeta'].T, arrays['mu'].T
  H, C = q.shape
  alpha, beta = (jnp.broadcast_to(jnp.asarray(get(name)), (H,)) for name in ('alpha', 'beta'))
  positions = em.Positions(
    *(
      None if get(name) is None else jnp.transpose(get(name), (1, 2, 0))
      for name in ('q_pos_emb', 'zeta_pos_emb')
    )
  )
  bias = jnp.zeros((H, H), q.dtype)
  bias = bias + jnp.log(get('pi')) if 'pi' in arrays else bias
  bias = (
    jnp.where(get('nonzero_wts_mask'), bias, -jnp.inf) if 'nonzero_wts_mask' in arrays else bias
  )
  seen = em.Tokens(q, bias=bias)
  if 'v_init' in arrays:
    seen = seen._replace(values=get('v_init').T, held=jnp.ones(H, q.dtype))
  factors = 1 + (positions.query is not None) + (positions.key is not None)
  missing = 0.5 * factors * C * jnp.log(alpha)
  missing = missing + (0.5 * values.shape[1] * jnp.log(beta) if 'v_init' in arrays else 0)

  def with_priors(keys, values):
    units = em.Memory(keys, values, alpha, beta, -missing)
    extra = jnp.zeros((H, H), q.dtype)
    if constructor.get('magnitude_priors') and 'pi' not in arrays:
      log_priors, pair = em.magnitudes(units, positions)
      units = units._replace(log_priors=log_priors - missing + 0.5 * beta * jnp.sum(values**2, 1))
      extra = extra if pair is None else pair
    return units, em.pairs(units, seen._replace(bias=bias + extra), positions)

  theta = lambda name: get(name).T if name in arrays else 0.0
  for _ in range(constructor.get('key_adaptation_iters', 0)):
    units, logits = with_priors(keys, values)
    keys = em.adapt_keys(units, logits, seen, em.Positions(), keys, theta('zeta_prior_precision'))
  for _ in range(constructor.get('value_belief_propagation_iters', 0)):
    units, logits = with_priors(keys, values)
    fixed = em.Tokens(q, get('v_fixed')[:-1].T, get('v_fixed')[-1])
    values = em.propagate_values(units, logits, fixed, values, theta('mu_prior_precision'))
  units, logits = with_priors(keys, values)
  return mixtures.pair_posterior(logits, units.values).mean.T


@functools.cache
def golden_errors(x64):
  """Largest difference of each case over its largest value (1 to 3), all in one compilation."""
  dtype = jnp.float64 if x64 else jnp.float32
  names = [name for name in CASES if name != 'e_vpos_quirk']  # public value positions are scrambled

  def split(case):
    arrays = {name: GOLDEN[f'{case}/{name}'] for name in CASES[case]['tensors']}
    arrays = {name: x if x.dtype == bool else x.astype(dtype) for name, x in arrays.items()}
    return [
      {name: x for name, x in arrays.items() if (x.shape[0] == 2) == per_head}
      for per_head in (True, False)
    ]

  @jit
  def run(problems):
    def one(case, heads, shared):
      scalars = {name: jnp.asarray(value, dtype) for name, value in CASES[case]['scalars'].items()}
      return jax.vmap(
        jax.vmap(lambda a: public_layer(case, {**a, **shared}, CASES[case]['constructor'], scalars))
      )(heads)

    return {case: one(case, *problem) for case, problem in problems.items()}

  out = run({case: split(case) for case in names})
  return {
    case: float(
      np.abs(np.asarray(out[case]) - GOLDEN[f'{case}/out']).max()
      / np.abs(GOLDEN[f'{case}/out']).max()
    )
    for case in names
  }


class GoldenTest(absltest.TestCase):
  def test_public_layer(self):
    for x64, limit in ((True, 1e-12), (False, 1e-6)):
      with jax.enable_x64(x64):
        errors = golden_errors(x64)
      self.assertLen(errors, 29)
      for case, error in errors.items():
        with self.subTest(case):
          self.assertLess(error, limit)


SHAPES = (
  (5, 4, 3, 2, ''),
  (7, 7, 2, 3, 'absolute'),
  (6, 5, 4, 2, 'relative'),
)  # I, J, C, V, positions
STEPS = 3


def problem(seed, shape=SHAPES[0], masked=0.2, held=0.4, spread=1.0, dtype=np.float64):
  """Random (memory, tokens, positions, trust)."""
  (I, J, C, V, kind), random = shape, np.random.RandomState(seed)
  normal = lambda *size: jnp.asarray(spread * random.randn(*size), dtype)
  positive = lambda *size: jnp.asarray(np.exp(random.randn(*size)), dtype)
  memory = em.Memory(
    normal(J, C),
    normal(J, V),
    positive(J),
    positive(J),
    jnp.asarray(np.log(random.dirichlet(np.ones(J))), dtype),
  )
  bias = jnp.where(
    jnp.asarray(random.rand(I, J) < masked), -jnp.inf, jnp.asarray(random.randn(I, J), dtype)
  )
  tokens = em.Tokens(normal(I, C), normal(I, V), jnp.asarray(random.rand(I) < held, dtype), bias)
  positions = {
    '': em.Positions(),
    'absolute': em.Positions(normal(J, C), normal(I, C)),
    'relative': em.Positions(normal(I, J, C), normal(J, I, C)),
  }[kind]
  trust = em.Trust(positive(J, 1) * (random.rand() < 0.7), positive(J, 1) * (random.rand() < 0.7))
  return memory, tokens, positions, trust


def steps(
  memory, tokens, positions=em.Positions(), trust=em.Trust(), key_steps=2, value_steps=2, block=3
):
  return em.infer(memory, tokens, positions, trust, key_steps, value_steps, block=block)


infer = jit(steps, static_argnames=('key_steps', 'value_steps', 'block'))


@jit
def with_slope(memory, tokens, trust):
  def loss(memory):
    out = steps(memory, tokens, trust=trust)
    return jnp.sum(out.values.astype(jnp.float32)), out

  slope, out = jax.grad(loss, has_aux=True)(memory)
  return out, slope


@jit
def objectives(first, tokens, positions, trust):
  """The objective before and after each of STEPS rounds of both updates."""

  def step(now, _):
    keys = em.adapt_keys(
      now, em.pairs(now, tokens, positions), tokens, positions, first.keys, trust.keys, 3
    )
    half = now._replace(keys=keys)
    values = em.propagate_values(
      half, em.pairs(half, tokens, positions), tokens, first.values, trust.values, 3
    )
    new = half._replace(values=values)
    return new, jnp.stack(
      [em.log_posterior(m, tokens, first, positions, trust, 3) for m in (now, half, new)]
    )

  return jax.lax.scan(step, first, length=STEPS)[1].reshape(-1)


class SpecialCasesTest(cases.X64TestCase):
  @parameterized.parameters('', 'absolute', 'relative')
  def test_is_dot_product_attention(self, kind):
    I, J, C = 6, 5, 4
    memory, tokens, _, _ = problem(0, (I, J, C, 2, ''))
    q, keys, values = np.asarray(tokens.queries), np.asarray(memory.keys), np.asarray(memory.values)
    _, _, positions, _ = problem(1, (I, J, C, 2, kind))
    logits = q @ keys.T
    if kind:
      r_q, r_k = map(np.asarray, positions)
      subscripts = (
        ('ic,jc->ij', 'jc,ic->ij') if kind == 'absolute' else ('ic,ijc->ij', 'jc,jic->ij')
      )
      logits = logits + np.einsum(subscripts[0], q, r_q) + np.einsum(subscripts[1], keys, r_k)
    expected = special.softmax(logits / np.sqrt(C), 1) @ values
    units = em.memory(memory.keys, memory.values)
    log_priors, bias = em.magnitudes(units, positions)
    found = infer(
      units._replace(log_priors=log_priors),
      em.Tokens(tokens.queries, bias=bias),
      positions,
      key_steps=0,
      value_steps=0,
    )
    np.testing.assert_allclose(found.values, expected, atol=1e-13)

  @parameterized.parameters(1, 3)
  def test_one_unit_takes_the_mean(self, steps):
    # the prior stays where it was, so more steps change nothing; the last slot is empty
    q, v = np.array([[1.0], [2.0], [6.0], [99.0]]), np.array([[5.0], [np.nan], [7.0], [np.nan]])
    units = em.memory(jnp.array([[10.0]]), jnp.array([[20.0]]), alpha=2.0, beta=0.5)
    tokens = em.Tokens(
      jnp.asarray(q),
      jnp.asarray(v),
      jnp.array([1.0, 0.0, 1.0, 0.0]),
      present=jnp.array([1.0, 1.0, 1.0, 0.0]),
    )
    found = infer(units, tokens, trust=em.Trust(3.0, 4.0), key_steps=steps, value_steps=steps)
    np.testing.assert_allclose(found.memory.keys, [[(3 * 10 + 2 * 9) / (3 + 2 * 3)]], rtol=1e-14)
    np.testing.assert_allclose(
      found.memory.values, [[(4 * 20 + 0.5 * 12) / (4 + 0.5 * 2)]], rtol=1e-14
    )
    np.testing.assert_allclose(found.values, [[5], [86 / 5], [7], [86 / 5]], rtol=1e-14)

  def test_steps_can_be_switched_off(self):
    memory, tokens, positions, trust = problem(5)
    keys = em.infer(
      memory, tokens, positions, trust, 1, 1, on=(jnp.asarray(True), jnp.asarray(False))
    ).memory
    np.testing.assert_array_equal(keys.values, memory.values)
    self.assertTrue((keys.keys != memory.keys).any())

  def test_value_map_of_units_without_precision(self):
    keys, values = np.zeros((3, 2)), np.array([[1.0], [2.0], [np.nan]])
    off = np.array([np.log(0.5), np.log(0.5), -np.inf])
    found = lambda beta, bias: em.value_map(
      units := em.memory(
        jnp.asarray(keys), jnp.asarray(values), 1.0, 0.0, jnp.asarray(off)
      )._replace(beta=jnp.asarray(beta)),
      em.pairs(units, em.Tokens(jnp.zeros((1, 2)), bias=bias)),
    )
    np.testing.assert_allclose(
      found([0.0, 0.0, 1.0], None), [[1.5]]
    )  # the third is off, whatever it holds
    np.testing.assert_allclose(found([0.0, 4.0, 1.0], None), [[2.0]])
    np.testing.assert_allclose(
      found([0.0, 4.0, 1.0], jnp.asarray([[0.0, -np.inf, 0.0]])), [[1.0]]
    )  # sees the first alone

  def test_value_map_weighs_by_precision(self):
    units = em.Memory(
      jnp.zeros((2, 1)),
      jnp.array([[1.0], [4.0]]),
      jnp.ones(2),
      jnp.array([1.0, 3.0]),
      jnp.log(jnp.array([0.5, 0.5])),
    )
    np.testing.assert_allclose(
      infer(units, em.Tokens(jnp.zeros((1, 1))), key_steps=0, value_steps=0).values,
      [[(1 + 3 * 4) / 4]],
    )

  @parameterized.parameters(*SHAPES)
  def test_m_step_maximises_what_is_expected(self, *shape):
    memory, tokens, positions, trust = problem(2, shape)
    before = em.pairs(memory, tokens, positions)

    def expected(keys, values):
      after = memory._replace(keys=keys, values=values)
      prior = jnp.sum(trust.keys * (keys - memory.keys) ** 2) + jnp.sum(
        trust.values * (values - memory.values) ** 2
      )
      return em.expected(before, em.pairs(after, tokens, positions)) - prior / 2

    @jit
    def slopes(memory):
      of_log_likelihood = jax.grad(lambda m: jnp.sum(em.e_step(em.pairs(m, tokens, positions))))(
        memory
      )
      keys = em.adapt_keys(memory, before, tokens, positions, memory.keys, trust.keys)
      values = em.propagate_values(memory, before, tokens, memory.values, trust.values)
      return (
        of_log_likelihood,
        jax.grad(expected, (0, 1))(memory.keys, memory.values),
        jax.grad(expected, (0, 1))(keys, values),
      )

    of_log_likelihood, at_start, at_end = slopes(memory)
    np.testing.assert_allclose(at_start[0], of_log_likelihood.keys, atol=1e-11)  # Fisher's identity
    np.testing.assert_allclose(at_start[1], of_log_likelihood.values, atol=1e-11)
    for slope in at_end:
      np.testing.assert_allclose(slope, 0, atol=1e-11)


class GradientTest(cases.X64TestCase):
  @parameterized.parameters(*SHAPES[1:])
  def test_against_finite_differences_and_one_block(self, *shape):
    memory, tokens, positions, trust = problem(3, shape)
    tokens = tokens._replace(bias=jnp.where(jnp.isfinite(tokens.bias), tokens.bias, -3.0))
    weights = np.random.RandomState(0).randn(shape[0], shape[3])

    def loss(args, block):
      memory, tokens, positions, trust = args
      return jnp.sum(weights * steps(memory, tokens, positions, trust, 1, 1, block=block).values)

    args = (memory, tokens, positions, trust)
    slope, whole = (jit(jax.grad(functools.partial(loss, block=block)))(args) for block in (3, 100))
    value = jit(functools.partial(loss, block=100))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), slope, whole)
    random = np.random.RandomState(1)
    for _ in range(3):
      way = jax.tree.map(lambda x: jnp.asarray(random.randn(*x.shape)), args)
      way = (way[0], way[1]._replace(held=0 * tokens.held), *way[2:])  # held is 0 or 1
      move = lambda step: value(jax.tree.map(lambda x, d: x + step * d, args, way))
      difference = (move(1e-6) - move(-1e-6)) / 2e-6
      found = sum(jnp.sum(a * b) for a, b in zip(jax.tree.leaves(slope), jax.tree.leaves(way)))
      np.testing.assert_allclose(found, difference, rtol=1e-6, atol=1e-8)

  def test_memory_is_linear(self):
    def temporary(n):
      x = jnp.zeros((n, 8), jnp.float32)
      units = em.memory(x, x)
      loss = lambda m, q: jnp.sum(em.infer(m, em.Tokens(q), key_steps=1, block=256).values)
      return jax.jit(jax.grad(loss)).lower(units, x).compile().memory_analysis().temp_size_in_bytes

    # the weights alone would take 268 MB
    self.assertLess(temporary(8192), 8192 * 8 * 4 * 40 + 16 * 256**2 * 4)


class PropertiesTest(cases.X64TestCase):
  @settings(max_examples=60)
  @given(
    strategies.integers(0, 2**31),
    strategies.sampled_from(SHAPES),
    strategies.sampled_from((0.0, 0.3, 1.0)),
    strategies.sampled_from((0.0, 0.5, 1.0)),
    strategies.sampled_from((0.1, 1.0, 10.0)),
  )
  def test_objective_never_falls(self, seed, shape, masked, held, spread):
    values = np.asarray(objectives(*problem(seed, shape, masked, held, spread)))
    self.assertTrue(np.isfinite(values).all())
    self.assertGreater(np.diff(values).min(), -1e-10 * max(1, np.abs(values).max()))

  @settings(max_examples=20)
  @given(strategies.integers(0, 2**31))
  def test_order_does_not_matter(self, seed):
    memory, tokens, positions, trust = problem(seed)
    random = np.random.RandomState(seed)
    i, j = random.permutation(len(tokens.queries)), random.permutation(len(memory.keys))
    other = em.Tokens(tokens.queries[i], tokens.values[i], tokens.held[i], tokens.bias[i][:, j])
    found = infer(
      jax.tree.map(lambda x: x[j], memory), other, positions, jax.tree.map(lambda x: x[j], trust)
    )
    expected = infer(memory, tokens, positions, trust)
    np.testing.assert_allclose(found.values, expected.values[i], atol=1e-9)
    np.testing.assert_allclose(found.memory.keys, expected.memory.keys[j], atol=1e-9)

  @settings(max_examples=20)
  @given(strategies.integers(0, 2**31), strategies.floats(-1e6, 1e6))
  def test_what_is_masked_has_no_influence(self, seed, other):
    memory, tokens, positions, trust = problem(seed, masked=0.0)
    for closed in (
      dict(memory=memory._replace(log_priors=memory.log_priors.at[1].set(-jnp.inf)), tokens=tokens),
      dict(memory=memory, tokens=tokens._replace(bias=tokens.bias.at[:, 1].set(-jnp.inf))),
    ):
      expected = infer(closed['memory'], closed['tokens'], positions, trust)
      changed = closed['memory']._replace(
        keys=memory.keys.at[1].set(other), values=memory.values.at[1].set(other)
      )
      np.testing.assert_array_equal(
        infer(changed, closed['tokens'], positions, trust).values, expected.values
      )
    # a slot that is not annotated has no value
    unheld = tokens._replace(values=jnp.where(tokens.held[:, None] > 0, tokens.values, jnp.nan))
    np.testing.assert_array_equal(
      infer(memory, unheld, positions, trust).values, infer(memory, tokens, positions, trust).values
    )

  @settings(max_examples=20)
  @given(strategies.integers(0, 2**31), strategies.sampled_from(SHAPES))
  def test_held_values_come_out_as_they_went_in(self, seed, shape):
    memory, tokens, positions, trust = problem(seed, shape, masked=0.5)
    held = np.asarray(tokens.held) > 0
    found = np.asarray(infer(memory, tokens, positions, trust).values)
    np.testing.assert_array_equal(found[held], np.asarray(tokens.values)[held])
    self.assertTrue(np.isfinite(found).all())

  @parameterized.product(
    dtype=(jnp.float32, jnp.float16, jnp.bfloat16),
    masked=(0.0, 1.0),
    held=(0.0, 1.0),
    spread=(1.0, 2e4),
  )
  def test_extremes_are_finite(self, dtype, masked, held, spread):
    memory, tokens, _, _ = problem(4, masked=masked, held=held, spread=spread)
    memory, tokens = jax.tree.map(lambda x: x.astype(dtype), (memory, tokens))
    memory = memory._replace(keys=memory.keys.at[0].set(6e4))  # a key that no token uses
    found, slope = with_slope(memory, tokens, em.Trust(0.0, 0.0))
    self.assertEqual(found.values.dtype, dtype)
    for leaf in jax.tree.leaves((found.values, found.memory._replace(log_priors=None))):
      self.assertTrue(np.isfinite(np.asarray(leaf, np.float64)).all())
    for leaf in jax.tree.leaves(slope):
      self.assertFalse(np.isnan(np.asarray(leaf, np.float64)).any())

  def test_unused_key_stays(self):
    units = em.memory(
      jnp.array([[0.0], [1e4]]), jnp.array([[1.0], [2.0]]), alpha=1.0, log_priors=jnp.zeros(2)
    )
    found = infer(units, em.Tokens(jnp.array([[0.5], [1.5]])), trust=em.Trust(0.0, 0.0))
    np.testing.assert_allclose(found.memory.keys, [[1.0], [1e4]])


if __name__ == '__main__':
  absltest.main()
