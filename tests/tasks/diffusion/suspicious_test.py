"""Samples that move more than training images do."""

import types
from unittest import mock

import numpy as np
from absl.testing import absltest

from gmm_diffusion import specs
from gmm_diffusion.data import sources
from gmm_diffusion.engine import build, drawing
from gmm_diffusion.engine.runs import Run
from gmm_diffusion.maths import schedules
from gmm_diffusion.metrics import hallucination
from gmm_diffusion.tasks.diffusion import suspicious

NET = specs.Net(channels=8, multipliers=(1.0,), blocks=1, attention=(), head_channels=8)


class SuspiciousTest(absltest.TestCase):
  def test_share_and_pictures(self):
    spec = specs.Spec(net=NET, evaluate=specs.Evaluate(count=300), sample=specs.Sample(shard=100))
    data = sources.load(spec.data)
    train, test = (np.linspace(0, last, 256).astype(int) for last in (1499, 296))
    brightness = data.train[train].mean((1, 2, 3))
    usual, seen = np.quantile(brightness, 0.95), []
    samples = np.zeros((300, 8, 8, 1), np.uint8)
    samples[10:40] = 255  # brighter than any digit

    def moves(bind, x, labels):
      del bind
      seen.append(labels)
      return x.mean((1, 2, 3))

    model = types.SimpleNamespace(unsteadiness=moves, drawer=lambda made, count: None)
    made = types.SimpleNamespace(
      sampler=types.SimpleNamespace(name='ddim'), bind=lambda weights: None
    )
    stored = types.SimpleNamespace(part=lambda ids: {'x': samples[ids.start : ids.stop]})
    with mock.patch.object(suspicious.sample_sets, 'write', return_value=stored):
      held_out, drawn = suspicious.find(model, [made], Run(spec, data, '', ''))
    self.assertAlmostEqual(drawn.share.value, 30 / 256)
    expected = (data.test[test].mean((1, 2, 3)) > usual).mean()
    self.assertAlmostEqual(held_out.share.value, expected)
    self.assertEqual((held_out.name, drawn.name), ('held-out data', 'ddim'))
    known = [{'sampler': 'ddim', 'seed': 0, 'settings': {}, 'weights': 'w', 'set': 's'}]
    (record,) = suspicious.record([held_out, drawn], known, {})
    self.assertEqual((record['sampler'], record['n'], record['set']), ('ddim', 256, 's'))
    self.assertEqual(record['value'], drawn.share.value)
    self.assertEqual((held_out.compared, drawn.compared), (256, 256))
    for labels, wanted in zip(
      seen, (data.train_labels[train], data.test_labels[test], np.arange(256) % 10), strict=True
    ):
      np.testing.assert_array_equal(labels, wanted)

  def test_model_is_asked_with_noise_and_labels(self):
    spec = specs.Spec(net=NET)
    data = sources.load(spec.data)
    weights = build.random_weights(build.template(spec, data), 0)
    model, bind = drawing.Model(spec, data, weights), build.denoiser(spec, data)
    x, labels = data.train[:5], data.train_labels[:5]
    found = model.unsteadiness(bind, x, labels)
    expected = hallucination.unsteadiness(
      bind(weights),
      x.astype(np.float32) / 127.5 - 1,
      hallucination.times(schedules.linear()),
      np.arange(5),
      drawing._JUDGE,
      cond=labels,
    )
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    other = model.unsteadiness(bind, x, (labels + 1) % 10)
    self.assertGreater(np.abs(other / found - 1).max(), 2e-3)

  def test_where_it_is_possible(self):
    spec = specs.Spec(net=NET)
    data = sources.load(spec.data)
    self.assertTrue(suspicious.possible(spec, data))
    self.assertFalse(suspicious.possible(spec, data._replace(train=data.train[:255])))
    for other in (
      specs.Spec(denoiser=specs.Denoiser(name='empirical')),
      specs.Spec(evaluate=specs.Evaluate(store=False)),
    ):
      self.assertFalse(suspicious.possible(other, data))


if __name__ == '__main__':
  absltest.main()
