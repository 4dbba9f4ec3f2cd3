"""The networks against golden outputs of the public ones, with weights regenerated from tensor
names and imported."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from gmm_diffusion.denoisers import guidance
from gmm_diffusion.denoisers.network import network
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import schedules
from gmm_diffusion.nets.autoencoder import Autoencoder
from gmm_diffusion.nets.dit import Block, DiT
from gmm_diffusion.nets.unet import Classifier, UNet
from gmm_diffusion.types import Time
from helpers import cases, torch_names

# Compiling takes longer than running here, so it is told not to optimise.
quick_jit = functools.partial(
  jax.jit,
  compiler_options={
    'xla_backend_optimization_level': '0',
    'xla_llvm_disable_expensive_passes': 'True',
  },
)


def cast(tree, dtype):
  return jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)


def nhwc(x):
  return jnp.asarray(x, float).transpose(0, 2, 3, 1)


class GoldenTest(cases.X64TestCase):
  def check(self, config, dtype, name, found, expected):
    """Within 1e-9 in float64; in float32 three times the reference's own rounding, and four units
    in the last place of the largest number, since a few numbers (three log-probabilities) say
    little of how large rounding gets."""
    if jnp.issubdtype(found.dtype, jnp.integer):
      return np.testing.assert_array_equal(found, expected, err_msg=name)
    if found.ndim == 4:
      found = found.transpose(0, 3, 1, 2)
    last_place = np.finfo(np.float32).eps * np.abs(expected).max()
    tolerance = (
      1e-9
      if dtype == 'float64'
      else max(3 * config['float32_vs_float64_max_abs_and_rel'][name][0], 4 * last_place)
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance, err_msg=name)

  def compare(self, config, module, weights, inputs, expected, apply=None, jit=quick_jit):
    """apply(module, weights, *inputs) -> {name: output} in both precisions; outputs without a
    golden value are left out."""
    for dtype in ('float64', 'float32'):
      net = module(dtype)
      inputs = tuple(
        x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x for x in inputs
      )
      run = jit(
        functools.partial(
          apply or (lambda net, weights, *inputs: {'out': net.apply(weights, *inputs)}), net
        )
      )
      outputs = run(cast(weights, dtype), *inputs)
      self.assertNotEmpty(set(outputs) & set(expected))
      for name in set(outputs) & set(expected):
        self.check(config, dtype, name, outputs[name], expected[name])

  @parameterized.parameters('like64', 'like128', 'like256')
  def test_adm_unet(self, name):
    arrays, config, manifest = torch_names.golden('g2_gd_unet_' + name)
    kwargs = config['kwargs']
    net = functools.partial(
      UNet,
      kwargs['out_channels'],
      kwargs['model_channels'],
      tuple(kwargs['channel_mult']),
      kwargs['num_res_blocks'],
      tuple(kwargs['image_size'] // a for a in kwargs['attention_resolutions']),
      max(kwargs['num_head_channels'], 0),
      kwargs['num_heads'],
      kwargs['num_classes'],
      0,
      kwargs['use_scale_shift_norm'],
      kwargs['resblock_updown'],
      False,
      not kwargs['use_new_attention_order'],
      1e-5,
      0,
      False,
      0.0,
    )
    inputs = nhwc(arrays['in:x']), jnp.asarray(arrays['in:t'], float), jnp.asarray(arrays['in:y'])
    weights = torch_names.load(
      'guided_diffusion', 'net', net(), inputs, torch_names.tensors(arrays, manifest)
    )
    self.compare(config, net, weights, inputs, {'out': arrays['out:out']})

  def test_adm_classifier(self):
    arrays, config, manifest = torch_names.golden('g2_gd_classifier')
    net = lambda dtype=jnp.float32: Classifier(10, 32, (1, 1, 2), 2, (8, 4), 16, dtype=dtype)
    inputs = nhwc(arrays['in:x']), jnp.asarray(arrays['in:t'], float), jnp.asarray(arrays['in:y'])
    weights = torch_names.load(
      'guided_diffusion', 'classifier', net(), inputs[:2], torch_names.tensors(arrays, manifest)
    )

    def apply(net, weights, x, t, y):
      def log_prob(x):
        logits = net.apply(weights, x, t)
        found = guidance.log_prob_of(logits, y)
        return found.sum(), (logits, found)

      gradient, (logits, found) = jax.grad(log_prob, has_aux=True)(x)
      return {'logits': logits, 'log_prob_y': found, 'grad': gradient}

    self.compare(
      config,
      net,
      weights,
      inputs,
      {name: arrays['out:' + name] for name in ('logits', 'log_prob_y', 'grad')},
      apply,
      jax.jit,
    )

  @parameterized.parameters(
    'g3_ldm_unet_uncond',
    'g3_ldm_unet_context',
    'g4_diffusers_unet2d_ldm',
    'g4_diffusers_unet2d_ddpm_cifar',
    'g4_diffusers_unet2d_ddpm_celebahq',
    'g4_diffusers_unet2dcond_sd21',
  )
  def test_other_unets(self, name):
    arrays, config, manifest = torch_names.golden(name)
    plain = dict(scale_shift=False, resblock_updown=False)
    ddpm = dict(plain, pad_end=True, eps=1e-6, freq_shift=1, sin_first=True, head_channels=0)
    size, options = {
      'g3_ldm_unet_uncond': ((3, 32, (1, 2, 3), 2, (4, 8), 16), plain),
      'g3_ldm_unet_context': ((3, 32, (1, 2, 3), 2, (4, 8), 0), dict(plain, context_dim=24)),
      'g4_diffusers_unet2d_ldm': ((3, 32, (1, 2, 3), 2, (4, 8), 32), plain),
      'g4_diffusers_unet2d_ddpm_cifar': ((3, 32, (1, 2, 2, 2), 2, (8,)), ddpm),
      'g4_diffusers_unet2d_ddpm_celebahq': ((3, 32, (1, 1, 2, 2), 1, (4,)), ddpm),
      'g4_diffusers_unet2dcond_sd21': (
        (4, 32, (1, 2, 2), 1, (16, 8), 16),
        dict(plain, context_dim=24),
      ),
    }[name]
    net = lambda dtype=jnp.float32: UNet(*size, dtype=dtype, **options)
    context = (jnp.asarray(arrays['in:context'], float),) if 'in:context' in arrays else ()
    inputs = (nhwc(arrays['in:x']), jnp.asarray(arrays['in:t'], float)) + context
    form, prefix = (
      ('compvis', 'model.diffusion_model.') if name.startswith('g3') else ('diffusers', '')
    )
    weights = torch_names.load(
      form, 'net', net(), inputs, torch_names.tensors(arrays, manifest, prefix)
    )
    self.compare(config, net, weights, inputs, {'out': arrays['out:out']})

  @parameterized.parameters('g3_ldm_kl', 'g4_diffusers_kl', 'g3_ldm_vq', 'g4_diffusers_vq')
  def test_autoencoder(self, name):
    arrays, config, manifest = torch_names.golden(name)
    vq, compvis = name.endswith('vq'), name.startswith('g3')
    attention = (16,) if name == 'g3_ldm_kl' else ()
    net = lambda dtype=jnp.float32: Autoencoder(
      3 if vq else 4, 64 if vq else 0, 32, (1, 2, 2), 1, attention, dtype=dtype
    )
    form, prefix = ('compvis', 'first_stage_model.') if compvis else ('diffusers', '')
    inputs = nhwc(arrays['in:x']), nhwc(arrays['in:latent'])
    weights = torch_names.load(
      form, 'autoencoder', net(), inputs[:1], torch_names.tensors(arrays, manifest, prefix)
    )

    def apply(net, weights, x, latent):
      call = lambda method, z: net.apply(weights, z, method=method)
      z = call('encode', x)
      if not vq:
        return {
          'moments': call('moments', x),
          'mode': z,
          'decoded_mode': call('decode', z),
          'decoded_latent': call('decode', latent),
        }
      return {
        'prequant' if compvis else 'latents': z,
        'indices': call('indices', z),
        'latent_indices': call('indices', latent),
        'decoded': call('decode', z),
        'decoded_not_quantized': call('decode_raw', z),
        'decoded_latent': call('decode', latent),
      }

    self.compare(
      config,
      net,
      weights,
      inputs,
      {key[4:]: arrays[key] for key in arrays if key.startswith('out:')},
      apply,
    )

  @parameterized.parameters(
    (
      'g3_ldm_unet_context',
      {
        r'(input_blocks\.[45]|output_blocks\.[345])\.1': 2,
        r'(input_blocks\.[78]|output_blocks\.[012]|middle_block)\.1': 3,
      },
    ),
    (
      'g4_diffusers_unet2dcond_sd21',
      {r'(down|up)_blocks\.1\.attentions\.\d': 2, r'mid_block\.attentions\.0': 3},
    ),
  )
  def test_deeper_transformers(self, name, depths):
    """Further blocks whose outputs are zero change nothing; the file has them where they belong."""
    arrays, config, manifest = torch_names.golden(name)
    compvis = name.startswith('g3')
    form, prefix = ('compvis', 'model.diffusion_model.') if compvis else ('diffusers', '')
    size = (3, 32, (1, 2, 3), 2, (4, 8), 0) if compvis else (4, 32, (1, 2, 2), 1, (16, 8), 16)
    options = dict(scale_shift=False, resblock_updown=False, context_dim=24)
    net = lambda dtype=jnp.float32: UNet(*size, transformer_depth=(1, 2, 3), dtype=dtype, **options)
    inputs = nhwc(arrays['in:x']), jnp.asarray(arrays['in:t'], float)
    inputs += (jnp.asarray(arrays['in:context'], float),)
    values = torch_names.tensors(arrays, manifest, prefix)
    with self.assertRaisesRegex(UserError, r'\d+ missing: .*transformer_blocks\.1\.'):
      torch_names.load(form, 'net', net(), inputs, values)
    for key, value in list(values.items()):
      for place, depth in depths.items():
        if re.search(place + r'\.transformer_blocks\.0\.', key):
          zero = re.search(r'\.(to_out\.0|ff\.net\.2)\.', key)
          for block in range(1, depth):
            other = key.replace('transformer_blocks.0', f'transformer_blocks.{block}')
            values[other] = 0 * value if zero else value[::-1]
    weights = torch_names.load(form, 'net', net(), inputs, values)
    if not compvis:  # one of them suffices for the computation
      out = quick_jit(net('float64').apply)(cast(weights, 'float64'), *inputs)
      self.check(config, 'float64', 'out', out, arrays['out:out'])

  @parameterized.parameters('g3_ldm_kl', 'g4_diffusers_vq')
  def test_latents_of_another_width(self, name):
    """Latents in more channels than the coders use: turned there and back, nothing changes."""
    arrays, config, manifest = torch_names.golden(name)
    vq = name.endswith('vq')
    inner, wide = (3, 5) if vq else (4, 6)
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((wide, inner)))[0]
    net = lambda dtype=jnp.float32: Autoencoder(
      wide, 64 * vq, 32, (1, 2, 2), 1, () if vq else (16,), dtype=dtype, z_channels=inner
    )
    form, prefix = ('diffusers', '') if vq else ('compvis', 'first_stage_model.')
    values = torch_names.tensors(arrays, manifest, prefix)
    both = turn if vq else np.kron(np.eye(2), turn)  # mean and log-variance
    values[prefix + 'quant_conv.weight'] = np.einsum(
      'ij,jkhw->ikhw', both, values[prefix + 'quant_conv.weight']
    )
    values[prefix + 'quant_conv.bias'] = both @ values[prefix + 'quant_conv.bias']
    values[prefix + 'post_quant_conv.weight'] = np.einsum(
      'kihw,ji->kjhw', values[prefix + 'post_quant_conv.weight'], turn
    )
    if vq:
      values['quantize.embedding.weight'] = values['quantize.embedding.weight'] @ turn.T
    x = nhwc(arrays['in:x'])
    weights = torch_names.load(form, 'autoencoder', net(), (x,), values)

    def apply(net, weights, x):
      z = net.apply(weights, x, method='encode')
      return {
        'latents' if vq else 'mode': z @ turn,
        'decoded' if vq else 'decoded_mode': net.apply(weights, z, method='decode'),
      }

    found = quick_jit(functools.partial(apply, net('float64')))(cast(weights, 'float64'), x)
    for key, value in found.items():  # the turned weights are rounded to float32 on their way
      np.testing.assert_allclose(
        value.transpose(0, 3, 1, 2), arrays['out:' + key], rtol=0, atol=1e-5, err_msg=key
      )

  def test_dit(self):
    arrays, config, manifest = torch_names.golden('g5_dit')
    net = lambda dtype=jnp.float32: DiT(8, 48, 3, 4, classes=11, dtype=dtype)
    inputs = nhwc(arrays['in:x']), jnp.asarray(arrays['in:t'], float), jnp.asarray(arrays['in:y'])
    weights = torch_names.load(
      'dit', 'net', net(), inputs, torch_names.tensors(arrays, manifest), side=8
    )
    self.compare(config, net, weights, inputs, {'out': arrays['out:out']})

  def test_dit_guidance(self):
    arrays, config, manifest = torch_names.golden('g5_dit')
    net = lambda dtype=jnp.float32: DiT(8, 48, 3, 4, classes=11, dtype=dtype)
    # the original takes the batch twice and ignores the second half
    x, t, y = (
      nhwc(arrays['in:x_cfg'])[:2],
      jnp.asarray(arrays['in:t_cfg'][0], float),
      jnp.asarray(arrays['in:y_cfg'])[:2],
    )
    weights = torch_names.load(
      'dit', 'net', net(), (x, t[None], y), torch_names.tensors(arrays, manifest), side=8
    )

    def apply(net, weights, x, t, y):
      model = network(lambda *inputs: net.apply(weights, *inputs), schedules.linear())
      guided = guidance.classifier_free(model, float(arrays['in:cfg_scale']), 10, channels=3)
      return {'out_cfg': guided(x, Time(t, t / t * 0.8, t / t * 0.6), y).eps}

    self.compare(config, net, weights, (x, t, y), {'out_cfg': arrays['out:out_cfg'][:2, :4]}, apply)

  def test_diffusers_dit(self):
    arrays, config, manifest = torch_names.golden('g5_diffusers_dit')
    net = lambda dtype=jnp.float32: DiT(
      8, 48, 3, 4, classes=11, freq_shift=1, eps=1e-5, dtype=dtype
    )
    inputs = nhwc(arrays['in:x']), jnp.asarray(arrays['in:t'], float), jnp.asarray(arrays['in:y'])
    values = torch_names.tensors({}, [row for row in manifest if row[2] == 'param'])
    with self.assertRaisesRegex(UserError, 'the 3 copies of a tensor of shape .* differ'):
      torch_names.load('diffusers', 'net', net(), inputs, values)

    def copied(block):
      """All embedders as that block's, as in a released file."""
      return {
        name: values[re.sub(r'blocks\.\d+\.norm1\.emb\.', f'blocks.{block}.norm1.emb.', name)]
        for name in values
      }

    # This golden file drew the copies apart, so each block must be given what its own copy makes.
    weights = [
      torch_names.load('diffusers', 'net', net(), inputs, copied(block)) for block in range(3)
    ]

    def apply(net, weights, *inputs):
      seen, embeddings = {}, {}

      def exchange(call, args, kwargs, context):
        if isinstance(context.module, Block) and context.method_name == '__call__':
          name = context.module.name
          seen[name] = args[1]
          args = args[0], embeddings.get(name, args[1])
        return call(*args, **kwargs)

      with nn.intercept_methods(exchange):
        for block in range(3):
          net.apply(weights[block], *inputs)
          embeddings[f'blocks.{block}'] = seen[f'blocks.{block}']
        return {'out': net.apply(weights[0], *inputs)}

    self.compare(config, net, weights, inputs, {'out': arrays['out:out']}, apply)


if __name__ == '__main__':
  absltest.main()
