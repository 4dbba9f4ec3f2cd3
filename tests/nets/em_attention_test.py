"""The layers against flax's dot-product attention, and what annotations do."""

import json
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from configs import digits
from gmm_diffusion import tasks
from gmm_diffusion.errors import UserError
from gmm_diffusion.nets import em_attention

X = np.random.RandomState(0).randn(2, 3, 5, 8).astype(np.float32)  # two leading axes
Y = np.random.RandomState(1).randn(2, 3, 7, 8).astype(np.float32)


class AttentionTest(parameterized.TestCase):
  def test_takes_the_place_of_flax_attention(self, heads=2):
    theirs, ours = (
      nn.MultiHeadDotProductAttention(heads, qkv_features=12),
      em_attention.ProbabilisticAttention(heads, qkv_features=12),
    )
    mask = np.random.RandomState(2).rand(2, 3, 1, 5, 7) < 0.7
    params = theirs.init(jax.random.key(0), X, Y)
    self.assertEqual(
      jax.tree.map(jnp.shape, params), jax.tree.map(jnp.shape, ours.init(jax.random.key(0), X, Y))
    )
    for options in ({}, {'mask': mask}):
      np.testing.assert_allclose(
        ours.apply(params, X, Y, **options), theirs.apply(params, X, Y, **options), atol=2e-6
      )

  def test_annotations(self):
    layer = em_attention.ProbabilisticAttention(
      2, beta=1.0, key_steps=1, value_steps=1, learned=True
    )
    values = np.random.RandomState(3).randn(*X.shape).astype(np.float32)
    held = np.zeros(X.shape[:-1], np.float32)
    params = layer.init(jax.random.key(0), X)
    self.assertEqual(
      set(params['params']['precisions']),
      {'log_alpha', 'log_beta', 'log_trust_keys', 'log_trust_values'},
    )
    run = jax.jit(
      lambda values, held: layer.apply(
        params, X, annotations=em_attention.Annotations(values, held)
      )
    )
    plain = run(values, held)
    np.testing.assert_array_equal(plain, run(np.nan * values, held))  # nothing is held
    held[0, 1, 2] = 1
    found = run(values, held)
    expected = values[0, 1, 2] @ np.asarray(params['params']['value']['kernel']).reshape(8, 8)
    expected = expected @ np.asarray(params['params']['out']['kernel']).reshape(8, 8)
    np.testing.assert_allclose(found[0, 1, 2], expected, atol=1e-5)  # its own output is held
    self.assertGreater(float(jnp.abs(found - plain)[0, 1, 3].max()), 1e-3)  # and others hear of it
    np.testing.assert_array_equal(found[1], plain[1])

  def test_axial_rows_and_columns(self):
    layer = em_attention.AxialProbabilisticAttention(2, dict(key_steps=1))
    params = layer.init(jax.random.key(0), X)
    self.assertEqual(params['params']['rows']['relative_query'].shape, (2, 9, 4))
    self.assertEqual(params['params']['columns']['relative_key'].shape, (2, 5, 4))
    run = jax.jit(lambda x: layer.apply(params, x))
    other = X.copy()
    other[:, 0, 0] += 1
    self.assertGreater(
      float(jnp.abs(run(other) - run(X))[:, 2, 4].min()), 0
    )  # two hops reach everywhere
    np.testing.assert_allclose(run(X)[:1], run(X[:1].repeat(2, 0))[:1], atol=1e-6)

  def test_bad_arguments(self):
    with self.assertRaisesRegex(UserError, 'qkv_features 8 must be a multiple of num_heads 3'):
      em_attention.ProbabilisticAttention(3).init(jax.random.key(0), X)
    with self.assertRaisesRegex(UserError, 'as many queries as keys, got 5 and 7'):
      em_attention.ProbabilisticAttention(2, relative=True).init(jax.random.key(0), X, Y)

  def test_diffusion_trains(self):
    config = digits.get_config('runlocal')
    config.update(
      net=dict(channels=8, multipliers=(1,), head_channels=8, attention_kind='em'),
      train=dict(steps=30, batch=16, warmup=10, learning_rate=3e-3, log_every=10),
    )
    workdir = self.create_tempdir().full_path
    tasks.run('train', workdir, config, 'test')
    with open(os.path.join(workdir, 'training.json'), encoding='utf-8') as file:
      losses = [row['loss'] for row in json.load(file)]
    self.assertLess(losses[-1], 0.8 * losses[0])


if __name__ == '__main__':
  absltest.main()
