"""Files are whole or absent; records replace their own kind."""

import errno
import os
import subprocess
import sys

import numpy as np
from absl.testing import absltest

from gmm_diffusion import files
from gmm_diffusion.errors import UserError
from gmm_diffusion.reports import images, records
from helpers import cases


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
      raise OSError(errno.ENOSPC, 'No space left on device')

    with self.assertRaisesRegex(
      UserError, 'cannot write .*a.txt: No space left on device; free space'
    ):
      files.write(path, fail)
    self.assertEqual(os.listdir(self.folder), ['a.txt'])
    with open(path, encoding='utf-8') as file:
      self.assertEqual(file.read(), 'old')

  def test_two_at_once(self):
    path = os.path.join(self.folder, 'a.txt')

    def save(name):
      with open(name, 'w', encoding='utf-8') as file:
        file.write('first')
      files.write_text(path, 'second')  # by another process, at this moment
      with open(path, encoding='utf-8') as file:
        self.assertEqual(file.read(), 'second')

    files.write(path, save)
    with open(path, encoding='utf-8') as file:
      self.assertEqual(file.read(), 'first')
    self.assertEqual(os.listdir(self.folder), ['a.txt'])

  def test_what_killed_processes_left_goes(self):
    old, new = (os.path.join(self.folder, f'.partial-{name}-a.txt') for name in ('old', 'new'))
    for path in (old, new):
      with open(path, 'wb'):
        pass
    os.utime(old, (0, 0))
    files.write_text(os.path.join(self.folder, 'b.txt'), '')
    self.assertEqual(sorted(os.listdir(self.folder)), ['.partial-new-a.txt', 'b.txt'])

  def test_what_the_system_refuses_is_one_line(self):
    file = os.path.join(self.folder, 'file')
    files.write_text(file, '')
    with self.assertRaisesRegex(UserError, 'cannot write .*file/a.txt: .*; free space or remove'):
      files.write_text(os.path.join(file, 'a.txt'), '')
    os.makedirs(os.path.join(self.folder, 'a.lock'))
    with self.assertRaisesRegex(UserError, 'cannot write .*a.lock: Is a directory'):
      with files.locked(os.path.join(self.folder, 'a')):
        pass
    with self.assertRaisesRegex(UserError, 'cannot write .*a.lock: Is a directory'):
      with files.claimed(os.path.join(self.folder, 'a')):
        pass
    with self.assertRaisesRegex(UserError, "cannot write to --workdir '.*file'"):
      files.make_workdir(file)

  def test_a_lock_is_held_by_one_and_ends_with_its_process(self):
    path = os.path.join(self.folder, 'a')
    script = (
      'import sys, time; from gmm_diffusion import files\n'
      'with files.locked(sys.argv[1]): print("held", flush=True); time.sleep(60)'
    )
    holder = subprocess.Popen(
      [sys.executable, '-c', script, path], cwd=cases.ROOT, stdout=subprocess.PIPE
    )
    holder.stdout.readline()
    with files.claimed(path) as mine:
      self.assertFalse(mine)
    holder.kill()
    holder.communicate()
    with files.locked(path):
      with files.claimed(path) as mine:
        self.assertFalse(mine)
    with files.claimed(path) as mine:
      self.assertTrue(mine)

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
