"""Released weights from Python: load_weights, config.json of diffusers folders, the latents'
factor."""

import json
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from experiments.lib import released_layout
from gmm_diffusion.checkpoints import importers
from gmm_diffusion.checkpoints.importers import diffusers_config, load_weights
from gmm_diffusion.errors import UserError
from gmm_diffusion.nets.autoencoder import Autoencoder
from gmm_diffusion.nets.dit import DiT
from gmm_diffusion.nets.unet import Classifier, UNet
from helpers import torch_names

SMALL = dict(channels=32, multipliers=(1, 2), blocks=1, attention=(4,), head_channels=16)
DDPM = dict(
  scale_shift=False, resblock_updown=False, pad_end=True, eps=1e-6, freq_shift=1, sin_first=True
)
NETWORKS = {
  'guided_diffusion': (UNet(6, classes=3, **SMALL), (8, 8, 3)),
  'classifier': (Classifier(10, **SMALL), (8, 8, 3)),
  'diffusers': (UNet(3, **SMALL, **DDPM), (8, 8, 3)),
  'compvis': (UNet(3, **SMALL, context_dim=8, transformer_depth=(2,)), (8, 8, 3)),
  'compvis labels': (UNet(3, classes=5, **SMALL, context_dim=8), (8, 8, 3)),
  'dit': (DiT(8, 48, 2, 4, classes=11), (8, 8, 4)),
  'compvis autoencoder': (
    Autoencoder(4, 0, 32, (1, 2), 1, z_channels=6),
    (16, 16, 3),
  ),
  'diffusers autoencoder': (Autoencoder(4, 16, 32, (1, 2), 1, z_channels=3), (16, 16, 3)),
}
FORMAT = {name: name.split()[0].replace('classifier', 'guided_diffusion') for name in NETWORKS}


class LoadWeightsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = self.create_tempdir().full_path

  def write(self, name, file='a.safetensors', more=()):
    """A file of random weights of a network; returns its path and the variables by hand."""
    module, shape = NETWORKS[name]
    template = importers.abstract(module, shape)
    part = 'autoencoder' if isinstance(module, Autoencoder) else 'net'
    plan, _ = importers.recipe_of(FORMAT[name], part, module, template, [], shape[0])
    values = {
      key: torch_names.tensor(re.sub(r'blocks\.\d\.norm1\.emb', 'emb', key), size)
      for key, size in plan.expected().items()
    }
    values.update(plan.constants)
    built = {
      path: part.build(
        *(np.reshape(values[key], size) for key, size in zip(part.names, part.shapes))
      )
      for path, part in plan.parts.items()
    }
    path = os.path.join(self.folder, file)
    write = (
      released_layout.write_torch if file.endswith('.ckpt') else released_layout.write_safetensors
    )
    write(path, released_layout.made({**values, **dict(more)}))
    return path, built

  @parameterized.parameters(*NETWORKS)
  def test_formats(self, name):
    module, shape = NETWORKS[name]
    path, expected = self.write(name)
    found = load_weights(path, FORMAT[name], module, shape)
    self.assertEqual(list(found), ['params'])
    self.assertLen(jax.tree.leaves(found), len(expected))
    for keys, value in expected.items():
      leaf = found['params']
      for key in keys:
        leaf = leaf[key]
      self.assertEqual(leaf.dtype, np.float32)
      np.testing.assert_array_equal(leaf, value, err_msg=str(keys))

  def test_the_network_takes_them(self):
    net, shape = NETWORKS['compvis']
    found = load_weights(self.write('compvis', 'a.ckpt')[0], 'compvis', net, shape)
    x, context = jnp.ones((2, *shape)), jnp.ones((2, 3, 8))
    out = jax.jit(net.apply)(found, x, jnp.ones(2), context)
    self.assertEqual((out.shape, bool(jnp.isfinite(out).all())), ((2, 8, 8, 3), True))

  def test_refused(self):
    net, shape = NETWORKS['guided_diffusion']
    path, _ = self.write('guided_diffusion', more={'a\nb': np.zeros(1, np.float32)}.items())
    with self.assertRaisesRegex(UserError, r"1 not expected: 'a\\nb'; check the config"):
      load_weights(path, 'guided_diffusion', net, shape)
    with self.assertRaisesRegex(UserError, "unknown format of weights 'onnx'; valid: guided_diff"):
      load_weights(path, 'onnx', net, shape)
    with self.assertRaisesRegex(UserError, r'folder .* has none of diffusion_pytorch_model\.safe'):
      load_weights(self.folder, 'diffusers', net, shape)
    with self.assertRaisesRegex(UserError, 'cannot read .*none.pt: No such file'):
      load_weights(os.path.join(self.folder, 'none.pt'), 'diffusers', net, shape)

  def test_folder_with_its_config(self):
    net, shape = NETWORKS['diffusers']
    path, _ = self.write('diffusers', importers.WEIGHT_FILES[0])
    given = {'norm_eps': 1e-6, 'block_out_channels': [32, 64], 'sample_size': 8}
    for change, message in (
      ({}, None),
      ({'norm_eps': 1e-5}, r'norm_eps is 1e-05, here eps makes it 1e-06; set these options'),
      ({'block_out_channels': [32, 32]}, r'block_out_channels is \[32, 32\], here multipliers'),
      ({'block_out_channels': 3}, 'block_out_channels is 3, here'),
      ({'down_block_types': ['AttnDownBlock2D', 'DownBlock2D']}, 'here attention makes it'),
      ({'down_block_types': 3}, 'cannot read'),
      ({'norm_eps': 'x'}, 'cannot read'),
      ({'norm_eps': [[]] * 40_000}, 'cannot read'),
    ):
      config = os.path.join(self.folder, 'config.json')
      with open(config, 'w', encoding='utf-8') as file:
        json.dump({**given, **change}, file)
      if message is None:
        load_weights(self.folder, 'diffusers', net, shape)
        continue
      with self.assertRaisesRegex(UserError, message) as caught:
        load_weights(self.folder, 'diffusers', net, shape)
      self.assertNotIn('\n', str(caught.exception))
      load_weights(path, 'diffusers', net, shape)  # the file itself

  @parameterized.parameters((np.float32(0.25), 0.25), (np.float32([0.5]), 0.5))
  def test_latent_scale(self, value, expected):
    path, _ = self.write('compvis', more={'scale_factor': value}.items())
    self.assertEqual(importers.latent_scale(path), expected)

  def test_no_latent_scale(self):
    self.assertIsNone(importers.latent_scale(self.write('compvis')[0]))
    for value in (np.ones(2, np.float32), np.float32(np.nan), np.float32(0)):
      path, _ = self.write('compvis', more={'scale_factor': value}.items())
      with self.assertRaisesRegex(UserError, "'scale_factor' of .* must be one finite number"):
        importers.latent_scale(path)


class DiffusersConfigTest(parameterized.TestCase):
  """Settings that diffusers itself built golden networks with agree with the networks here."""

  @parameterized.parameters(
    (
      'g4_diffusers_unet2d_ldm',
      UNet(3, 32, (1, 2, 3), 2, (4, 8), 32, scale_shift=False, resblock_updown=False),
    ),
    ('g4_diffusers_unet2d_ddpm_cifar', UNet(3, 32, (1, 2, 2, 2), 2, (8,), 0, **DDPM)),
    ('g4_diffusers_unet2d_ddpm_celebahq', UNet(3, 32, (1, 1, 2, 2), 1, (4,), 0, **DDPM)),
    (
      'g4_diffusers_unet2dcond_sd21',
      UNet(
        4, 32, (1, 2, 2), 1, (16, 8), 16, context_dim=24, scale_shift=False, resblock_updown=False
      ),
    ),
    ('g4_diffusers_kl', Autoencoder(4, 0, 32, (1, 2, 2), 1)),
    ('g4_diffusers_vq', Autoencoder(3, 64, 32, (1, 2, 2), 1)),
    ('g5_diffusers_dit', DiT(8, 48, 3, 4, classes=11, freq_shift=1, eps=1e-5)),
  )
  def test_golden(self, name, module):
    arrays, config, _ = torch_names.golden(name)
    given = config['kwargs']
    side = arrays['in:x'].shape[-1]
    self.assertEqual(diffusers_config._differences(given, module, side), [])
    compared = [
      key
      for key in diffusers_config.DESCRIBE[type(module)](module, side, given)
      if given.get(key) is not None
    ]
    self.assertGreaterEqual(len(compared), 3)
    for key in compared:  # each is compared
      value = given[key]
      other = (
        [*value, 'x']
        if isinstance(value, list)
        else f'{value}x'
        if isinstance(value, str)
        else (not value)
        if isinstance(value, bool)
        else value + 1
      )
      self.assertLen(diffusers_config._differences({**given, key: other}, module, side), 1, key)


if __name__ == '__main__':
  absltest.main()
