"""The error against the noise level on the page."""

from unittest import mock

import numpy as np
from absl.testing import absltest

from gmm_diffusion import specs
from gmm_diffusion.data import base, sources
from gmm_diffusion.denoisers import exact
from gmm_diffusion.engine import build, drawing
from gmm_diffusion.metrics.estimates import of_mean
from gmm_diffusion.tasks.diffusion import levels

NET = specs.Net(channels=8, multipliers=(1.0,), blocks=1, attention=(), head_channels=8)


class LevelsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(mock.patch.multiple(levels, COUNT=40, RATIOS=np.array([0.1, 1.0, 10.0])))
    self.spec = specs.Spec(net=NET)
    self.data = sources.load(self.spec.data)

  def test_of_a_network_that_says_nothing(self):
    weights = build.random_weights(build.template(self.spec, self.data), 0)
    zero = {'net': build.jax.tree.map(np.zeros_like, weights['net'])}  # it predicts no noise
    found = levels.find(drawing.Model(self.spec, self.data, zero))
    self.assertLen(found, 3)
    for level in found:
      for value in level.errors:
        self.assertAlmostEqual(value.value, 1, delta=4 * np.sqrt(2 / (40 * 64)))

  def test_of_one_that_knows_training_images_by_heart(self):
    weights = build.random_weights(build.template(self.spec, self.data), 0)
    model = drawing.Model(self.spec, self.data, weights)
    known = exact.empirical(base.to_model(self.data.train))
    of_one = lambda x, time: build.jax.tree.map(lambda y: y[0], known(x[None], time, None))
    heart = lambda x, time, cond: build.jax.vmap(of_one)(x, time)
    with mock.patch.object(build, 'denoiser', lambda spec, data: lambda arrays: heart):
      found = levels.find(model)
    near, middle, far = (level.errors for level in found)
    self.assertLess(near[0].value, 1e-3)
    self.assertGreater(near[1].value, 1)
    self.assertLess(far[1].value / far[0].value, 1.2)
    self.assertRegex(
      levels.worst(found), r'is up to .* times that on training images, at b / a = 0.099'
    )
    title, parts = levels.section(found)
    self.assertEqual(title, 'Error against the noise level')
    self.assertIn('held-out images', ''.join(parts))
    records = levels.record(found, model, {})
    self.assertLen({(one['metric'], one['set']) for one in records}, 6)

  def test_no_difference_is_said_so(self):
    same = of_mean([0.1, 0.2, 0.3])
    self.assertStartsWith(
      levels.worst([levels.Level(1.0, (same, same))]), 'Held-out images are denoised as well'
    )

  def test_where_it_is_possible(self):
    self.assertTrue(levels.possible(self.spec, self.data))
    self.assertFalse(levels.possible(self.spec, self.data._replace(test=self.data.test[:39])))
    known = specs.Spec(denoiser=specs.Denoiser(name='empirical'))
    self.assertFalse(levels.possible(known, self.data))


if __name__ == '__main__':
  absltest.main()
