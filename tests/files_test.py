"""Files are whole or absent; records replace their own kind."""

import contextlib
import errno
import io
import os
import subprocess
import sys

import numpy as np
from absl.testing import absltest, parameterized

from gmm_diffusion import files
from gmm_diffusion.errors import UserError
from gmm_diffusion.reports import images, records
from helpers import cases


class FilesTest(parameterized.TestCase):
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
    with self.assertRaisesRegex(UserError, r'cannot write .*a.json: rows\[1\].x is nan; check'):
      files.write_json(path, {'rows': [{'x': 1.0}, {'x': np.float32('nan')}]})  # not JSON
    self.assertEqual(files.read_json(path, None), {'x': 0.5, 'n': 3, 't': [1, 2]})
    files.write_text(path, '{"x": ')
    with self.assertRaisesRegex(
      UserError, 'cannot read .*a.json: .*; remove the file to start it anew'
    ):
      files.read_json(path, None)

  @parameterized.parameters('[]', '3', 'null', '{"x": [1]}', '[' * 100000, '\ud800', '1' * 5000)
  def test_json_of_another_kind(self, text):
    path = os.path.join(self.folder, 'a.json')
    with open(path, 'w', encoding='utf-8', errors='surrogatepass') as file:
      file.write(text)
    with self.assertRaisesRegex(UserError, 'a.json.*; remove the file to start it anew') as caught:
      files.read_json(path, {}, lambda value: isinstance(value.get('x', ''), str))
    self.assertNotIn('\n', str(caught.exception))

  def test_a_folder_instead_of_json(self):
    with self.assertRaisesRegex(UserError, 'cannot read .*; remove the file to start it anew'):
      files.read_json(self.folder, {})

  @parameterized.parameters('3', '{}', '[3]', '[{"kind": "metric"}]', '[{"kind":[],"sampler":""}]')
  def test_records_that_are_none(self, text):
    path = os.path.join(self.folder, 'results.json')
    files.write_text(path, text)
    with self.assertRaisesRegex(UserError, 'results.json does not hold what this program writes'):
      records.add(self.folder, [{'kind': 'samples', 'sampler': 'a'}])
    with open(path, encoding='utf-8') as file:
      self.assertEqual(file.read(), text)

  def test_records_of_what_is_not_finite(self):
    record = {'kind': 'metric', 'sampler': 'a', 'value': np.nan, 'interval': [0.5, np.inf]}
    records.add(self.folder, [record])
    (found,) = files.read_json(os.path.join(self.folder, 'results.json'), None)
    self.assertEqual((found['value'], found['interval']), (None, [0.5, None]))
    self.assertEqual(found['undefined'], {'value': 'nan', 'interval[1]': 'inf'})

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
      [('a', 'y', 2), ('a', 'x', 3), ('b', 'x', 4)],
    )


class KeptTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder, self.made = self.create_tempdir().full_path, 0

  def get(self, mark, kind='npz', **more):
    def make():
      self.made += 1
      value = [self.made, 2.5]
      return {'x': np.float32(value) if kind == 'npz' else tuple(value)}

    found = files.kept(os.path.join(self.folder, 'cache', f'a.{kind}'), mark, make, **more)
    self.assertEqual(list(found), ['x'])
    self.assertIsInstance(found['x'], np.ndarray if kind == 'npz' else list)
    return found['x'][0]

  @parameterized.parameters(('npz', 'one', 'two'), ('json', {'x': (1, 2)}, {'x': (1, 3)}))
  def test_made_once_for_each_mark(self, kind, one, two):
    self.assertEqual([self.get(mark, kind) for mark in (one, one, two, two, one)], [1, 1, 2, 2, 3])
    self.assertEqual(os.listdir(os.path.join(self.folder, 'cache')), [f'a.{kind}'])

  def test_not_enough(self):
    self.get('mark')
    self.assertEqual(self.get('mark', enough=lambda found: 'x' in found), 1)
    self.assertEqual(self.get('mark', enough=lambda found: 'y' in found), 2)

  @parameterized.product(kind=('npz', 'json'), damage=('cut', 'flip', 'empty', 'text', 'list'))
  def test_a_damaged_file_is_made_again(self, kind, damage):
    self.get('mark', kind)
    path = os.path.join(self.folder, 'cache', f'a.{kind}')
    with open(path, 'rb') as file:
      content = file.read()
    middle = content.index(np.float32([1, 2.5]).tobytes() if kind == 'npz' else b'"x"')
    changed = {
      'cut': content[:middle],
      'flip': content[:middle] + bytes([content[middle] ^ 9]) + content[middle + 1 :],
      'empty': b'',
      'text': b'text',
      'list': b'[1]',
    }[damage]
    with open(path, 'wb') as file:
      file.write(changed)
    self.assertEqual([self.get('mark', kind), self.get('mark', kind)], [2, 2])

  def test_no_byte_that_changes_is_a_traceback(self):
    path = os.path.join(self.folder, 'a.npz')
    files.save(path, 'mark', {'x': np.arange(3)})
    self.assertTrue(files.is_whole(path))
    with open(path, 'rb') as file:
      content = file.read()
    found = set()
    for i in range(len(content)):
      with open(path, 'wb') as file:
        file.write(content[:i] + bytes([content[i] ^ 16]) + content[i + 1 :])
      with contextlib.redirect_stdout(io.StringIO()):
        loaded = files.load(path, 'mark')
      if loaded is not None and 'x' in loaded:
        np.testing.assert_array_equal(loaded['x'], np.arange(3))
      found.add((files.is_whole(path), loaded is not None))
    self.assertContainsSubset({(False, False), (True, True)}, found)

  def test_a_failure_leaves_nothing(self):
    path = os.path.join(self.folder, 'a.npz')
    with self.assertRaises(ZeroDivisionError):
      files.kept(path, 'mark', lambda: 1 // 0)
    self.assertIsNone(files.load(path, 'mark'))
    self.assertFalse(os.path.exists(path))

  def test_processes_make_it_once(self):
    script = (
      'import os, sys, time; from gmm_diffusion import files\n'
      'def make():\n'
      '  open(f"{sys.argv[1]}-{os.getpid()}", "w").close()\n'
      '  time.sleep(0.5)\n'
      '  return {"x": 3}\n'
      'print("ready", flush=True); sys.stdin.readline()\n'
      'assert files.kept(sys.argv[1] + ".npz", "mark", make)["x"] == 3'
    )
    processes = [
      subprocess.Popen(
        [sys.executable, '-c', script, os.path.join(self.folder, 'made')],
        cwd=cases.ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
      )
      for _ in range(3)
    ]
    for process in processes:
      process.stdout.readline()
    for process in processes:
      process.stdin.write(b'\n')
      process.stdin.flush()
    for process in processes:
      process.communicate()
      self.assertEqual(process.returncode, 0)
    self.assertLen(os.listdir(self.folder), 2)  # the file, and one that made it

  def test_fingerprint(self):
    x = np.arange(6, dtype=np.float32)
    prints = [
      files.fingerprint(*values)
      for values in ((x,), (x.reshape(2, 3),), (x.astype(int),), (x, 'a'), (x, 'a', 'b'), ('a', x))
    ]
    self.assertLen(set(prints), len(prints))
    self.assertEqual(files.fingerprint(x[::2]), files.fingerprint(x[::2].copy()))


class ImagesTest(absltest.TestCase):
  def test_grid_keeps_every_pixel(self):
    x = np.random.RandomState(0).randint(256, size=(5, 8, 8, 3)).astype(np.uint8)
    sheet = np.asarray(images.grid(x, columns=3))
    self.assertEqual(sheet.shape, (2 * 34, 3 * 34, 3))
    np.testing.assert_array_equal(sheet[34 + 1 : 67 : 4, 34 + 1 : 67 : 4], x[4])
    np.testing.assert_array_equal(sheet[34:, 68:], 128)  # an empty cell


if __name__ == '__main__':
  absltest.main()
