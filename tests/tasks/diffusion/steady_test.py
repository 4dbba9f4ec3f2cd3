"""--mode=sample with sample.drop."""

import glob
import json
import os
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from gmm_diffusion.engine import drawing
from gmm_diffusion.tasks.diffusion import steady
from helpers import cases, cli


def brightness(model, bind, x, labels, first=0):
  del model, bind, labels
  return x.mean((1, 2, 3)) + 1e-6 * (first + np.arange(len(x)))


class DropTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.start = cli.trained(cls.enterClassContext(cases.folder()))

  @parameterized.parameters((6, 0.25, 8), (10, 0.9, 100), (10, 0.8, 50), (7, 0.3, 10), (5, 0.3, 8))
  def test_as_many_are_drawn_as_are_needed(self, count, share, drawn):
    self.assertEqual(steady.needed(count, share), drawn)

  def test_what_is_there_is_not_measured_again(self):
    again = '--config.sample.count=3', '--config.sample.drop=0.25', '--config.sample.png=True'
    found = []
    for _ in range(2):
      code, _, error = self.sample(*again)
      self.assertFalse(code, error)
      (path,) = glob.glob(os.path.join(self.start, 'samples', '*-n4-steady3.npz'))
      found.append(os.stat(path).st_mtime_ns)
      with mock.patch.object(drawing.Model, 'unsteadiness', side_effect=AssertionError):
        self.assertFalse(self.sample(*again)[0])
    self.assertEqual(found[0], found[1])
    os.remove(path)
    self.assertFalse(self.sample(*again)[0])
    self.assertTrue(os.path.exists(path))

  def sample(self, *overrides):
    return cli.here(
      'digits.py:runlocal', 'sample', self.start, *cli.CNN, '--config.sampler.name=ddim',
      '--config.sampler.steps=2', *overrides,
    )  # fmt: skip

  def test_leaves_out_those_that_move_most(self):
    with mock.patch.object(drawing.Model, 'unsteadiness', brightness):
      code, out, error = self.sample(
        '--config.sample.count=6', '--config.sample.drop=0.25', '--config.sample.shard=5',
        '--config.sample.png=True',
      )  # fmt: skip
    self.assertFalse(code, error)
    self.assertIn('8 samples', out)
    (path,) = glob.glob(os.path.join(self.start, 'samples', '*-n8-steady6.npz'))
    with np.load(path) as kept, np.load(path.replace('-steady6', '')) as whole:
      x, ids = whole['arr_0'], kept['arr_2']
      expected = np.sort(np.argsort(brightness(None, None, x, None))[:6])
      np.testing.assert_array_equal(ids, expected)
      np.testing.assert_array_equal(kept['arr_0'], x[ids])
      np.testing.assert_array_equal(kept['arr_1'], whole['arr_1'][ids])
    with open(path.replace('.npz', '.json')) as file:
      record = json.load(file)
    self.assertEqual((record['n'], record['drawn']), (6, 8))
    self.assertCountEqual([*record['left_out'], *ids.tolist()], range(8))
    self.assertGreater(*x[record['left_out']].mean((1, 2, 3)))
    self.assertTrue(os.path.exists(path.replace('.npz', '.png')))
    images = glob.glob(os.path.join(self.start, 'samples', '*-n8-steady6-images', '*.png'))
    self.assertCountEqual([int(os.path.basename(name)[:8]) for name in images], ids)

  def test_a_measure_does_not_depend_on_the_size_of_the_parts(self):
    found = []
    for shard in (3, 8):
      code, _, error = self.sample(
        '--config.sample.count=5', '--config.sample.drop=0.375', f'--config.sample.shard={shard}'
      )
      self.assertFalse(code, error)
      (path,) = glob.glob(os.path.join(self.start, 'samples', '*-n8-steady5.json'))
      with open(path) as file:
        found.append(json.load(file)['left_out'])
    self.assertEqual(found[0], found[1])

  @parameterized.parameters(
    (('--config.sample.gif=True',), 'does not work with a sample.gif'),
    (('--config.inverse.operator=mask',), 'does not work with images restored'),
    (('--config.data.name=toy', '--config.denoiser.name=mixture'), 'does not work with vectors'),
    (('--config.sample.drop=0.95',), r'sample.drop must be in \[0, 0.9\], got 0.95'),
  )
  def test_bad_input(self, overrides, message):
    code, _, error = cli.here(
      'digits.py:runlocal', 'sample', self.start, '--config.sample.drop=0.5', *overrides
    )
    self.assertTrue(code)
    self.assertRegex(error, message)


if __name__ == '__main__':
  absltest.main()
