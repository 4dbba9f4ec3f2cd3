"""What holds for any U-Net; its outputs are checked in golden_test.py."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from gmm_diffusion.engine import build
from gmm_diffusion.errors import UserError
from gmm_diffusion.nets import DiT, UNet


class UNetTest(parameterized.TestCase):
  @parameterized.parameters((True, False), (False, True))
  def test_forms(self, resblock_updown, scale_shift):
    net = UNet(
      1,
      channels=8,
      multipliers=(1, 2),
      blocks=1,
      attention=(4,),
      head_channels=0,
      heads=2,
      resblock_updown=resblock_updown,
      scale_shift=scale_shift,
    )
    x = jnp.ones((2, 8, 8, 1))
    params = jax.jit(net.init)(jax.random.key(0), x, jnp.ones(2))
    np.testing.assert_array_equal(
      jax.jit(net.apply)(params, x, jnp.ones(2)), jnp.zeros((2, 8, 8, 1))
    )  # zero-initialised output

  @parameterized.parameters(
    (UNet, dict(blocks=1, attention=(), classes=5)),
    (UNet, dict(blocks=1, attention=(), classes=5, context_dim=4)),
    (DiT, dict(blocks=1, heads=2, classes=5)),
  )
  def test_refuses_to_do_without_its_labels(self, kind, options):
    net, x = kind(1, channels=8, **options), jnp.ones((2, 8, 8, 1))
    with self.assertRaisesRegex(UserError, r'of 5 labels was asked without any: .* of 0\.\.4 as'):
      jax.eval_shape(net.init, jax.random.key(0), x, jnp.ones(2), None)

  def test_dropout_only_in_training(self):
    net = UNet(
      1, channels=8, multipliers=(1,), blocks=1, attention=(), head_channels=8, dropout=0.5
    )
    x, t = jax.random.normal(jax.random.key(0), (2, 4, 4, 1)), jnp.ones(2)
    params = jax.tree.map(lambda p: p + 0.1, jax.jit(net.init)(jax.random.key(0), x, t))
    train = jax.jit(lambda key: net.apply(params, x, t, train=True, rngs={'dropout': key}))
    draw = lambda seed: train(jax.random.key(seed))
    self.assertGreater(float(jnp.abs(draw(0) - draw(1)).max()), 1e-3)
    apply = jax.jit(net.apply)
    np.testing.assert_array_equal(apply(params, x, t), apply(params, x, t))

  def test_depths_of_levels(self):
    net = UNet(
      1, channels=8, head_channels=8, context_dim=4, attention=(8, 4), transformer_depth=(1, 2)
    )
    with self.assertRaisesRegex(UserError, r'transformer_depth \(1, 2\) must be one number, or'):
      jax.eval_shape(
        net.init, jax.random.key(0), jnp.ones((1, 8, 8, 1)), jnp.ones(1), jnp.ones((1, 1, 4))
      )


class RematTest(parameterized.TestCase):
  @parameterized.parameters(
    lambda **how: UNet(2, 8, (1,), 1, (8,), head_channels=8, classes=2, **how),
    lambda **how: UNet(2, 8, (1,), 1, (), head_channels=8, classes=2, context_dim=8, **how),
    lambda **how: DiT(2, 16, 3, 2, classes=2, **how),
  )
  def test_the_same_gradient_with_less_kept_for_it(self, make):
    x, t, cond = jnp.ones((8, 8, 8, 2)), jnp.full((8,), 5.0), jnp.ones((8,), jnp.int32)
    shapes = jax.eval_shape(lambda: make().init(jax.random.key(0), x, t, cond))
    params = build.random_weights(shapes, 0)

    def loss(module):
      return lambda params: jnp.mean(module.apply(params, x, t, cond, True) ** 2)

    def kept(module):
      back = jax.eval_shape(lambda params: jax.vjp(loss(module), params)[1], params)
      own = sum(leaf.size for leaf in jax.tree.leaves(params))
      return sum(leaf.size for leaf in jax.tree.leaves(back)) - own

    plain, again = (jax.jit(jax.grad(loss(make(remat=remat))))(params) for remat in (False, True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), plain, again)
    self.assertLess(kept(make(remat=True)), 0.5 * kept(make()))


if __name__ == '__main__':
  absltest.main()
