"""The plain CNN: what a pixel sees, equal budgets, and what each final layer does."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from gmm_diffusion.errors import UserError
from gmm_diffusion.nets import cnn

X, T = (
  np.random.RandomState(0).randn(2, 12, 12, 1).astype(np.float32),
  np.array([3.0, 500.0], np.float32),
)


def network(**options):
  """A small network with parameters that are all nonzero."""
  module = cnn.CNN(out_channels=1, channels=8, **options)
  variables = module.init(jax.random.key(0), X, T)
  return module, jax.tree.map(
    lambda p: p + 0.1 * np.random.RandomState(p.size).randn(*p.shape).astype(np.float32), variables
  )


def seen(module, variables):
  """Which input pixels change output pixel (6, 6)."""
  gradient = jax.jit(jax.grad(lambda x: jnp.sum(module.apply(variables, x, T)[:, 6, 6])))(X)
  return np.any(np.asarray(gradient) != 0, (0, 3))


class CNNTest(parameterized.TestCase):
  @parameterized.parameters((0, 'none'), (1, 'none'), (2, 'none'), (1, 'identity'))
  def test_receptive_field(self, blocks, final):
    r = cnn.receptive_field(blocks) // 2
    self.assertEqual(r, blocks + 2)
    expected = np.zeros((12, 12), bool)
    expected[6 - r : 6 + r + 1, 6 - r : 6 + r + 1] = True
    np.testing.assert_array_equal(seen(*network(blocks=blocks, final=final)), expected)

  def test_softmax_sees_everything(self):
    self.assertTrue(np.all(seen(*network(blocks=0, final='softmax'))))

  def test_budgets_are_equal(self):
    shapes = lambda final: jax.eval_shape(
      cnn.CNN(out_channels=1, channels=8, blocks=1, final=final).init, jax.random.key(0), X, T
    )
    count = lambda final: sum(p.size for p in jax.tree.leaves(shapes(final)))
    self.assertLen({count(final) for final in cnn.FINALS}, 1)

  @parameterized.parameters(('none', True), ('softmax', True), ('top1', True), ('none', False))
  def test_equivariance(self, final, circular):
    module, variables = network(blocks=1, final=final, padding='circular' if circular else 'zero')
    out = lambda x: np.asarray(module.apply(variables, x, T))
    error = np.abs(out(np.roll(X, (3, 5), (1, 2))) - np.roll(out(X), (3, 5), (1, 2))).max()
    (self.assertLess if circular else self.assertGreater)(error, 1e-4 if circular else 1e-2)

  def test_hard_attention_is_one_hot_with_the_gradient_of_softmax(self):
    logits, weights = jnp.array([[0.1, 2.0, -1.0]]), jnp.array([[3.0, -5.0, 7.0]])
    np.testing.assert_allclose(cnn.hard(jax.nn.softmax(logits), True), [[0, 1, 0]], atol=1e-7)
    soft = jax.grad(lambda x: jnp.sum(weights * jax.nn.softmax(x)))(logits)
    np.testing.assert_allclose(
      jax.grad(lambda x: jnp.sum(weights * cnn.hard(jax.nn.softmax(x), True)))(logits),
      soft,
      atol=1e-6,
    )

  def test_after_training_the_gradient_of_hard_attention_is_its_own(self):
    module, variables = network(blocks=0, final='top1')
    f = lambda x: module.apply(variables, x, T)[0, 0, 0, 0]
    slope = jax.grad(f)(jnp.asarray(X, jnp.float32))
    for pixel in ((0, 1, 1), (0, 4, 2), (0, 5, 6)):
      step = np.zeros_like(X)
      step[pixel] = 1e-3
      np.testing.assert_allclose(
        (f(X + step) - f(X - step)) / 2e-3, jnp.sum(slope[pixel]), atol=2e-3
      )

  def test_gumbel(self):
    module, variables = network(blocks=0, final='gumbel', temperature=(5.0, 1e-3))
    top1, _ = network(blocks=0, final='top1')
    # without noise it is top1, and with it a sample that hardens as the temperature falls
    np.testing.assert_array_equal(module.apply(variables, X, T), top1.apply(variables, X, T))

    def mixed(progress):
      final = cnn.Final('gumbel', (5.0, 1e-3), jnp.float32)
      tokens = np.eye(4, dtype=np.float32).reshape(1, 2, 2, 4)
      eye = {'kernel': np.eye(4, dtype=np.float32)}
      parameters = {
        'params': {
          'query': {**eye, 'bias': np.zeros(4)},
          'key': eye,
          'value': {**eye, 'bias': np.zeros(4)},
          'out': {**eye, 'bias': np.zeros(4)},
        }
      }
      return np.asarray(
        final.apply(parameters, tokens, True, progress, rngs={'dropout': jax.random.key(1)})
        - tokens
      ).reshape(4, 4)

    np.testing.assert_allclose(mixed(1.0).max(1), 1, atol=1e-4)
    self.assertLess(mixed(0.0).max(), 0.9)
    np.testing.assert_allclose(mixed(0.3).sum(1), 1, atol=1e-5)

  def test_bad_names(self):
    with self.assertRaisesRegex(
      UserError, "unknown net.final 'hard'; valid: none, softmax, top1, gumbel, identity"
    ):
      network(final='hard')
    with self.assertRaisesRegex(UserError, "unknown net.padding 'mirror'; valid: zero, circular"):
      network(padding='mirror')


if __name__ == '__main__':
  absltest.main()
