"""Files are whole or absent; records replace their own kind."""

import os

import numpy as np
from absl.testing import absltest

from gmm_diffusion import files
from gmm_diffusion.errors import UserError
from gmm_diffusion.reports import images, records


class FilesTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = self.create_tempdir().full_path

  def test_a_write_that_fails_leaves_what_was_there(self):
    path = os.path.join(self.folder, 'a.txt')
    files.write_text(path, 'old')

    def fail(name):
      with open(name, 'w', encoding='utf-8') as file:
        file.write('half')
      raise OSError('disk full')

    with self.assertRaisesRegex(OSError, 'disk full'):
      files.write(path, fail)
    self.assertEqual(os.listdir(self.folder), ['a.txt'])
    with open(path, encoding='utf-8') as file:
      self.assertEqual(file.read(), 'old')

  def test_json(self):
    path = os.path.join(self.folder, 'a.json')
    self.assertEqual(files.read_json(path, 5), 5)
    files.write_json(path, {'x': np.float64(0.5), 'n': np.int64(3), 't': (1, 2)})
    self.assertEqual(files.read_json(path, None), {'x': 0.5, 'n': 3, 't': [1, 2]})
    with self.assertRaises(ValueError):
      files.write_json(path, {'x': float('nan')})  # not JSON
    files.write_text(path, '{"x": ')
    with self.assertRaisesRegex(
      UserError, 'cannot read .*a.json: .*; remove the file to start it anew'
    ):
      files.read_json(path, None)

  def test_records_replace_their_own_kind(self):
    record = lambda sampler, metric, value: {
      'kind': 'metric',
      'sampler': sampler,
      'metric': metric,
      'value': value,
    }
    records.add(self.folder, [record('a', 'x', 1), record('a', 'y', 2)])
    records.add(self.folder, [record('a', 'x', 3), record('b', 'x', 4)])
    found = files.read_json(os.path.join(self.folder, 'results.json'), None)
    self.assertEqual(
      [(r['sampler'], r['metric'], r['value']) for r in found],
      [('a', 'x', 3), ('a', 'y', 2), ('b', 'x', 4)],
    )


class ImagesTest(absltest.TestCase):
  def test_grid_keeps_every_pixel(self):
    x = np.random.RandomState(0).randint(256, size=(5, 8, 8, 3)).astype(np.uint8)
    sheet = np.asarray(images.grid(x, columns=3))
    self.assertEqual(sheet.shape, (2 * 34, 3 * 34, 3))
    np.testing.assert_array_equal(sheet[34 + 1 : 67 : 4, 34 + 1 : 67 : 4], x[4])
    np.testing.assert_array_equal(sheet[34:, 68:], 128)  # an empty cell


if __name__ == '__main__':
  absltest.main()
