"""The geometry of a model on its page."""

from unittest import mock

import numpy as np
from absl.testing import absltest

from gmm_diffusion import specs
from gmm_diffusion.data import sources
from gmm_diffusion.denoisers import geometry
from gmm_diffusion.engine import build, drawing
from gmm_diffusion.maths import grids, schedules
from gmm_diffusion.reports import records
from gmm_diffusion.tasks.diffusion import jacobian

NET = specs.Net(channels=8, multipliers=(1.0,), blocks=1, attention=(), head_channels=8)


class JacobianTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(mock.patch.object(jacobian, 'COUNT', 4))

  def test_times(self):
    linear, flow = (
      grids.nearest(schedules.SCHEDULES[name](), jacobian.RATIOS)
      for name in ('linear', 'rectified_flow')
    )
    self.assertTrue(np.all(linear % 1 == 0))
    self.assertLess(flow.max(), 1)
    for times, name in ((linear, 'linear'), (flow, 'rectified_flow')):
      at = schedules.SCHEDULES[name]().at(times)
      np.testing.assert_allclose(at.b / at.a, jacobian.RATIOS, rtol=0.1)

  def test_what_is_measured(self):
    spec = specs.Spec(net=NET)
    data = sources.load(spec.data)
    weights = build.random_weights(build.template(spec, data), 0)
    model = drawing.Model(spec, data, weights)
    levels = jacobian.find(model)
    self.assertLen(levels, 6)
    for level in levels:
      self.assertBetween(level.asymmetry.value, 0, 1)
      self.assertGreater(level.asymmetry.value, 1e-4)  # random weights are no gradient
      self.assertGreater(level.largest.value, 0)
    title, parts = jacobian.section(levels)
    self.assertEqual(title, 'Geometry of the model')
    self.assertIn(f'{levels[2].ratio:.3g}', ''.join(parts))
    workdir = self.create_tempdir().full_path
    for _ in range(2):  # the second time, what the first wrote is read
      records.add(workdir, jacobian.record(levels, model, {}))
    found = records.files.read_json(f'{workdir}/results.json', [])
    self.assertLen(found, 18)

  def test_clipping_is_left_out(self):
    # weights of zero: x_0 = x / a, far beyond [-1, 1], and K = I / a
    spec = specs.Spec(net=NET)
    data = sources.load(spec.data)
    weights = build.random_weights(build.template(spec, data), 0)
    zero = {'net': geometry.jax.tree.map(np.zeros_like, weights['net'])}
    levels = jacobian.find(drawing.Model(spec, data, zero))
    for level in levels:
      a = 1 / np.sqrt(1 + level.ratio**2)
      np.testing.assert_allclose(level.largest.value, 1 / a, rtol=1e-4)
      self.assertLess(level.asymmetry.value, 1e-10)

  def test_where_it_is_possible(self):
    spec = specs.Spec(net=NET)
    data = sources.load(spec.data)
    self.assertTrue(jacobian.possible(spec, data))
    few = data._replace(train=data.train[:3], test=data.test[:3])
    self.assertFalse(jacobian.possible(spec, few))
    exact = specs.Spec(denoiser=specs.Denoiser(name='empirical'))
    self.assertFalse(jacobian.possible(exact, data))


if __name__ == '__main__':
  absltest.main()
