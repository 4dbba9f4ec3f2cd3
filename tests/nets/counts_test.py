"""Full-size networks have the numbers of parameters and tensors of the released ones; nothing is
allocated."""

import importlib
import math

import jax
import jax.numpy as jnp
from absl.testing import absltest, parameterized

from gmm_diffusion import specs
from gmm_diffusion.checkpoints import importers
from gmm_diffusion.data import sources
from gmm_diffusion.engine import build
from gmm_diffusion.nets.unet import Classifier, UNet

FACES = (
  ('celebahq256', 'ldm'),
  ('celebahq256', 'ldm_diffusers'),
  ('ffhq256', 'ldm'),
  ('lsun_bedroom256', 'ldm'),
)


def parts(config, variant):
  module = importlib.import_module('configs.' + config)
  spec = specs.from_config(module.get_config(variant))
  data = sources.load(spec.data)
  return spec, data, build.parts(spec, data)


def size(tree):
  leaves = jax.tree.leaves(tree)
  return sum(math.prod(leaf.shape) for leaf in leaves), len(leaves)


def in_file(spec, data, part, module, template, form, prefix=''):
  """Numbers of the tensors that the importer expects of the file."""
  recipe, _ = importers.recipe_of(
    form, part, module, template, [], build.sample_shape(spec, data)[0]
  )
  shapes = [shape for name, shape in recipe.expected().items() if name.startswith(prefix)]
  return sum(map(math.prod, shapes)), len(shapes)


class CountsTest(parameterized.TestCase):
  @parameterized.parameters(
    ('imagenet256', 'adm', 553838086, 567),
    ('imagenet256', 'uncond', 552814086, 566),
    ('lsun_bedroom256', 'adm', 552814086, 566),
    ('imagenet128', 'adm', 421529606, 493),
    ('imagenet64', 'adm', 295904454, 541),
    ('cifar10', 'ddpm', 35746307, None),
    ('celebahq256', 'ddpm', 113673219, None),
    ('lsun_bedroom256', 'ddpm', 113673219, None),
    ('lsun_church256', 'ddpm', 113673219, None),
    *((*face, 274056163, None) for face in FACES),
  )
  def test_network(self, config, variant, parameters, tensors):
    spec, data, found = parts(config, variant)
    module, template, weights = found['net']
    self.assertEqual(size(template)[0], parameters)
    if tensors:
      self.assertEqual(size(template)[1], tensors)
    self.assertEqual(in_file(spec, data, 'net', module, template, weights.format)[0], parameters)

  def test_latent_diffusion_on_imagenet(self):
    spec, data, found = parts('imagenet256', 'ldm')
    module, template, _ = found['net']
    # the published number is the U-Net's; the class embedding of 1001 x 512 is another part of the
    # file
    self.assertEqual(
      in_file(spec, data, 'net', module, template, 'compvis', 'model.')[0], 400920579
    )
    self.assertEqual(size(template)[0], 400920579 + 1001 * 512)

  @parameterized.parameters(*FACES)
  def test_vq_f4(self, config, variant):
    spec, data, found = parts(config, variant)
    module, template, weights = found['autoencoder']
    self.assertEqual(size(template)[0], 55322782)
    self.assertEqual(
      in_file(spec, data, 'autoencoder', module, template, weights.format)[0], 55322782
    )

  @parameterized.parameters(('imagenet256', 'dit'), ('lsun_church256', 'ldm'))
  def test_kl_f8(self, config, variant):
    self.assertEqual(size(parts(config, variant)[2]['autoencoder'][1])[0], 83653863)

  def test_dit(self):
    spec, data, found = parts('imagenet256', 'dit')
    module, template, _ = found['net']
    self.assertEqual(in_file(spec, data, 'net', module, template, 'dit')[0], 675129632)
    self.assertEqual(in_file(spec, data, 'net', module, template, 'diffusers')[0], 749826464)

  @parameterized.parameters(
    ('imagenet64', 65438568), ('imagenet128', 42568040), ('imagenet256', 54096360)
  )
  def test_classifier(self, config, parameters):
    self.assertEqual(size(parts(config, 'adm_guided')[2]['classifier'][1])[0], parameters)

  def test_adm_512(self):
    multipliers, x, t = (0.5, 1, 1, 2, 2, 4, 4), jnp.zeros((1, 512, 512, 3)), jnp.zeros(1)
    net = UNet(6, 256, multipliers, 2, (32, 16, 8), 64, classes=1000)
    self.assertEqual(
      size(jax.eval_shape(net.init, jax.random.key(0), x, t, jnp.zeros(1, int))), (558997638, 645)
    )
    judge = Classifier(1000, 128, multipliers, 2, (32, 16, 8), 64)
    self.assertEqual(size(jax.eval_shape(judge.init, jax.random.key(0), x, t))[0], 54448360)

  def test_stable_diffusion(self):
    net = UNet(
      4,
      320,
      (1, 2, 4, 4),
      2,
      (64, 32, 16),
      64,
      context_dim=1024,
      scale_shift=False,
      resblock_updown=False,
    )
    inputs = jnp.zeros((1, 64, 64, 4)), jnp.zeros(1), jnp.zeros((1, 77, 1024))
    self.assertEqual(size(jax.eval_shape(net.init, jax.random.key(0), *inputs))[0], 865910724)


if __name__ == '__main__':
  absltest.main()
