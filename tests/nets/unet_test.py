"""The U-Net against golden outputs of the public one, with weights regenerated from tensor names."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import torch_names
from absl.testing import absltest, parameterized

from gmm_diffusion.nets import UNet


def build(kwargs, dtype):
  return UNet(
      out_channels=kwargs['out_channels'], channels=kwargs['model_channels'], multipliers=tuple(kwargs['channel_mult']),
      blocks=kwargs['num_res_blocks'], attention=tuple(kwargs['image_size'] // a for a in kwargs['attention_resolutions']),
      head_channels=max(kwargs['num_head_channels'], 0), heads=kwargs['num_heads'], classes=kwargs['num_classes'],
      legacy_attention=not kwargs['use_new_attention_order'], resblock_updown=kwargs['resblock_updown'],
      scale_shift=kwargs['use_scale_shift_norm'], dtype=dtype)


class GoldenTest(cases.X64TestCase):

  @parameterized.product(name=['like64', 'like128', 'like256'], dtype=['float64', 'float32'])
  def test_output(self, name, dtype):
    arrays, config, manifest = torch_names.golden('g2_gd_unet_' + name)
    net, params = build(config['kwargs'], dtype), torch_names.flax_params(manifest, dtype)
    x = jnp.asarray(arrays['in:x'], dtype).transpose(0, 2, 3, 1)
    t, labels = jnp.asarray(arrays['in:t'], dtype), jnp.asarray(arrays['in:y'])
    shapes = jax.tree.map(lambda leaf: leaf.shape, jax.eval_shape(net.init, jax.random.key(0), x, t, labels))
    self.assertEqual(shapes, jax.tree.map(lambda leaf: leaf.shape, params))
    found = jax.jit(net.apply)(params, x, t, labels).transpose(0, 3, 1, 2)
    tolerance = 1e-9 if dtype == 'float64' else 3 * config['float32_vs_float64_max_abs_and_rel']['out'][0]
    np.testing.assert_allclose(found, arrays['out:out'], rtol=0, atol=tolerance)


class UNetTest(parameterized.TestCase):

  @parameterized.parameters((True, False), (False, True))
  def test_forms(self, resblock_updown, scale_shift):
    net = UNet(1, channels=8, multipliers=(1, 2), blocks=1, attention=(4,), head_channels=0, heads=2, resblock_updown=resblock_updown,
               scale_shift=scale_shift)
    x = jnp.ones((2, 8, 8, 1))
    params = jax.jit(net.init)(jax.random.key(0), x, jnp.ones(2))
    np.testing.assert_array_equal(jax.jit(net.apply)(params, x, jnp.ones(2)), jnp.zeros((2, 8, 8, 1)))  # zero-initialised output

  def test_bfloat16_is_close(self):
    nets = {dtype: UNet(2, channels=16, multipliers=(1,), blocks=1, attention=(8,), head_channels=16, classes=3, dtype=dtype)
            for dtype in (jnp.float32, jnp.bfloat16)}
    x, t, labels = jax.random.normal(jax.random.key(0), (4, 8, 8, 1)), jnp.array([0.0, 10, 500, 999]), jnp.array([0, 1, 2, 0])
    params = jax.jit(nets[jnp.float32].init)(jax.random.key(0), x, t, labels)
    params = jax.tree.map(lambda p: p + 0.05 * jax.random.normal(jax.random.key(p.size), p.shape), params)
    full, half = (jax.jit(nets[dtype].apply)(params, x, t, labels) for dtype in nets)
    self.assertEqual(half.dtype, jnp.float32)
    self.assertLess(float(jnp.linalg.norm(full - half) / jnp.linalg.norm(full)), 0.02)

  def test_dropout_only_in_training(self):
    net = UNet(1, channels=8, multipliers=(1,), blocks=1, attention=(), head_channels=8, dropout=0.5)
    x, t = jax.random.normal(jax.random.key(0), (2, 4, 4, 1)), jnp.ones(2)
    params = jax.tree.map(lambda p: p + 0.1, jax.jit(net.init)(jax.random.key(0), x, t))
    train = jax.jit(lambda key: net.apply(params, x, t, train=True, rngs={'dropout': key}))
    draw = lambda seed: train(jax.random.key(seed))
    self.assertGreater(float(jnp.abs(draw(0) - draw(1)).max()), 1e-3)
    apply = jax.jit(net.apply)
    np.testing.assert_array_equal(apply(params, x, t), apply(params, x, t))


if __name__ == '__main__':
  absltest.main()
