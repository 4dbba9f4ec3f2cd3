"""Copies of training images are found, mirror images among them."""

import types

from absl.testing import absltest, parameterized

from gmm_diffusion import specs
from gmm_diffusion.data import sources
from gmm_diffusion.engine.runs import Run
from gmm_diffusion.metrics import features
from gmm_diffusion.tasks.diffusion import copies


class CopiesTest(parameterized.TestCase):
  def find(self, x, **options):
    spec = specs.Spec(
      data=specs.Data(**options),
      evaluate=specs.Evaluate(count=len(x), reference_count=100),
      sample=specs.Sample(shard=16),
    )
    data = sources.load(spec.data)
    model = types.SimpleNamespace(drawer=lambda made, count: None)
    made = types.SimpleNamespace(sampler=types.SimpleNamespace(name='ddim'))
    stored = types.SimpleNamespace(part=lambda ids: {'x': x[ids.start : ids.stop]})
    self.assertTrue(copies.possible(spec, data))
    with absltest.mock.patch.object(copies.sample_sets, 'write', return_value=stored):
      (found,) = copies.find(
        model, [made], features.load('identity', data, ''), Run(spec, data, '', '')
      )
    return found

  def test_training_images_and_new_images(self):
    data = sources.load(specs.Data())
    found = self.find(data.train[10:60])
    self.assertEqual((found.name, found.compared, found.nearer.value), ('ddim', 50, 1))
    self.assertLess(self.find(data.train[60:110]).nearer.value, 0.95)  # 100 are compared with
    new = self.find(data.test[::2]).nearer
    self.assertBetween(0.5, new.low, new.high)
    far = self.find(255 - data.train[:40]).nearer
    self.assertEqual(far.value, 0)

  def test_mirror_images_of_what_is_flipped(self):
    x = sources.load(specs.Data()).train[10:60, :, ::-1]
    self.assertEqual(self.find(x, flip=True).nearer.value, 1)
    self.assertLess(self.find(x).nearer.value, 0.5)

  def test_page_and_records(self):
    found = [self.find(sources.load(specs.Data()).train[:40])]
    title, (how, table, strips) = copies.section(found)
    self.assertEqual(title, 'Copies of training images')
    self.assertIn('1 for copies', how)
    self.assertIn('data:image/png', strips)
    known = {
      'sampler': 'ddim',
      'seed': 3,
      'settings': {},
      'weights': 'w',
      'set': 's',
      'features': 'f',
    }
    (record,) = copies.record(found, [known], {'command': 'c'})
    self.assertEqual((record['kind'], record['value'], record['n']), ('copies', 1, 40))
    self.assertEqual((record['seed'], record['features'], record['command']), (3, 'f', 'c'))

  def test_what_is_needed(self):
    data = sources.load(specs.Data())
    self.assertFalse(copies.possible(specs.Spec(), data._replace(test=data.test[:15])))
    self.assertFalse(copies.possible(specs.Spec(evaluate=specs.Evaluate(store=False)), data))


if __name__ == '__main__':
  absltest.main()
