"""The block of linear attention, alone and in the U-Net."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from gmm_diffusion import specs
from gmm_diffusion.data import sources
from gmm_diffusion.engine import build
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import mixtures
from gmm_diffusion.nets import soft_attention
from gmm_diffusion.nets.blocks import GroupNorm


def drawn(block, x):
  """Variables with every parameter drawn."""
  return build.random_weights(jax.eval_shape(block.init, jax.random.key(0), x), 0)


class BlockTest(parameterized.TestCase):
  def test_windows(self):
    x = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    expected = [[2.5, 4.5, 10.5, 12.5]]
    np.testing.assert_allclose(soft_attention.windows(jnp.asarray(x), 2)[..., 0], expected)

  @parameterized.parameters('none', 'landmarks', 'rows')
  def test_moves_with_the_image(self, normalise):
    self.enter_context(
      jax.enable_x64(True)
    )  # the inverse makes roundings some hundred times larger
    block = soft_attention.SoftAttentionBlock(2, 2, normalise, dtype=jnp.float64)
    x = jnp.asarray(np.random.RandomState(0).randn(2, 6, 6, 8))
    variables = drawn(block, x)
    moved = block.apply(variables, jnp.roll(x, (2, 4), (1, 2)))
    expected = jnp.roll(block.apply(variables, x), (2, 4), (1, 2))
    np.testing.assert_allclose(moved, expected, atol=1e-11)

  def test_is_posterior_means_where_each_token_is_a_landmark(self):
    block = soft_attention.SoftAttentionBlock(1, 1, 'rows')
    x = 4 * jnp.asarray(np.random.RandomState(0).randn(1, 3, 3, 8), jnp.float32)
    variables = drawn(block, x)
    params = variables['params']
    h = GroupNorm(jnp.float32, 1e-5).apply({'params': params['norm']}, x).reshape(9, 8)
    dense = lambda name, y: y @ params[name]['kernel'] + params[name]['bias'][None]
    q, v = jnp.split(dense('qv', h), 2, -1)
    units = mixtures.units(q, jnp.full(9, 8**-0.5))
    mean = mixtures.posterior(q, units, v, 4).mean
    expected = x + dense('proj_out', mean).reshape(x.shape)
    found = block.apply(variables, x)
    # the ridge of 0.01 is the difference
    np.testing.assert_allclose(found, expected, atol=0.02 * float(jnp.abs(expected - x).max()))

  def test_refuses_windows_that_do_not_fit(self):
    for ratio in (0, 3):
      block = soft_attention.SoftAttentionBlock(1, ratio)
      with self.assertRaisesRegex(UserError, f'net.attention_ratio {ratio} does not divide'):
        block.init(jax.random.key(0), jnp.zeros((1, 4, 4, 8)))

  def test_the_middle_takes_any_side(self):
    net = specs.Net(
      channels=8, multipliers=(1.0, 1.0), blocks=1, attention=(6,), head_channels=8,
      attention_kind='soft',
    )  # fmt: skip
    module = build.net(
      specs.Spec(net=net),
      sources.load(specs.Data())._replace(train=np.zeros((1, 6, 6, 1), np.uint8)),
    )
    x = jnp.zeros((1, 6, 6, 1))  # 3 x 3 in the middle, which windows of 2 do not divide
    jax.eval_shape(module.init, jax.random.key(0), x, jnp.zeros(1), jnp.zeros(1, jnp.int32))

  def test_in_the_unet(self):
    net = specs.Net(
      channels=8, multipliers=(1.0, 2.0), blocks=1, attention=(8, 4), head_channels=8,
      attention_kind='soft', attention_ratio=4, attention_normalise='landmarks',
    )  # fmt: skip
    spec = specs.Spec(net=net)
    data = sources.load(spec.data)
    module = build.net(spec, data)
    self.assertEqual((module.attention_ratio, module.attention_normalise), (4, 'landmarks'))
    variables = build.random_weights(build.template(spec, data), 0)['net']
    x = jnp.asarray(np.random.RandomState(0).randn(2, 8, 8, 1), jnp.float32)
    apply = jax.jit(module.apply)
    out = apply(variables, x, jnp.array([3.0, 500.0]), jnp.array([1, 2]))
    self.assertTrue(np.isfinite(out).all())
    other = apply(variables, x.at[0].add(1.0), jnp.array([30.0, 500.0]), jnp.array([3, 2]))
    self.assertGreater(np.abs(out[0] - other[0]).max(), 1e-3)
    np.testing.assert_allclose(out[1], other[1], atol=1e-5)


if __name__ == '__main__':
  absltest.main()
