"""Work in ranges: kills, damage, several processes; by ranges that take no time to make and by the
real command."""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
from absl.testing import absltest, parameterized

from gmm_diffusion import files
from gmm_diffusion.engine import shards
from gmm_diffusion.errors import UserError
from helpers import cases, cli

COUNT, SIZE = 205, 10

# Fills a folder and gathers it; every range that is made leaves a line in made.txt.
WORK = f"""
import os, sys, time
import numpy as np
from gmm_diffusion.engine import shards
from gmm_diffusion import files
folder, seconds = sys.argv[1], float(sys.argv[2])

def make(ids, advance):
  time.sleep(seconds)
  with open(os.path.join(folder, 'made.txt'), 'a') as file:
    file.write(f'{{ids.start}}\\n')
  advance(len(ids))
  return {{'x': np.asarray(ids, np.float32)[:, None] ** 2}}

print('ready', flush=True)
shards.fill(folder, 'mark', {COUNT}, {SIZE}, make, 'work')
rows = (part['x'] for part in shards.read(folder, 'mark', {COUNT}, {SIZE}))
files.write_npz(folder + '.npz', {{'arr_0': (({COUNT}, 1), np.float32, rows)}})
"""


def start(folder, seconds):
  """A process at the moment when it begins to fill."""
  process = subprocess.Popen(
    [sys.executable, '-c', WORK, folder, str(seconds)],
    cwd=cases.ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    env=dict(os.environ, JAX_PLATFORMS='cpu'),
  )
  process.stdout.readline()
  return process


def made(folder):
  with open(os.path.join(folder, 'made.txt'), encoding='utf-8') as file:
    return [int(line) for line in file]


def content(path):
  with open(path, 'rb') as file:
    return file.read()


class ShardsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = os.path.join(self.create_tempdir().full_path, 'out')

  def make(self, ids, advance):
    self.calls.append(ids)
    advance(len(ids))
    return {'x': np.arange(ids.start, ids.stop)}

  def fill(self, mark='mark', count=25):
    self.calls = []
    shards.fill(self.folder, mark, count, 10, self.make, 'work')
    return self.calls

  def read(self, mark='mark', count=25):
    return np.concatenate([part['x'] for part in shards.read(self.folder, mark, count, 10)])

  def test_ranges_in_order(self):
    self.assertEqual(self.fill(), [range(0, 10), range(10, 20), range(20, 25)])
    np.testing.assert_array_equal(self.read(), np.arange(25))

  def test_what_is_there_is_not_made_again(self):
    self.fill()
    self.assertEqual(self.fill(), [])
    self.assertEqual(
      self.fill(count=40), [range(20, 30), range(30, 40)]
    )  # the last range was shorter
    np.testing.assert_array_equal(self.read(count=40), np.arange(40))

  @parameterized.parameters(0, 1, 100, -1)
  def test_a_truncated_file_is_made_again(self, size):
    self.fill()
    path = shards.path_of(self.folder, range(10, 20))
    kept = content(path)
    with open(path, 'wb') as file:
      file.write(kept[:size])
    self.assertEqual(self.fill(), [range(10, 20)])
    np.testing.assert_array_equal(self.read(), np.arange(25))

  def test_a_changed_bit_is_found(self):
    self.fill()
    path = shards.path_of(self.folder, range(0, 10))
    damaged = bytearray(content(path))
    damaged[damaged.index(np.arange(10).tobytes()) + 3] ^= 1
    with open(path, 'wb') as file:
      file.write(damaged)
    self.assertEqual(self.fill(), [range(0, 10)])

  def test_other_settings_are_made_again(self):
    self.fill()
    self.assertLen(self.fill('other'), 3)
    with self.assertRaisesRegex(
      UserError, '00000000-00000009.npz was changed by another run; run again'
    ):
      self.read('mark')

  def test_ten_kills_change_nothing(self):
    random.seed(0)
    straight = start(self.folder + '_straight', 0)
    for _ in range(10):
      process = start(self.folder, 0.02)
      time.sleep(random.uniform(0, 0.1))
      process.send_signal(signal.SIGKILL)
      process.communicate()
    self.assertBetween(
      len(set(made(self.folder))), 3, COUNT // SIZE - 1
    )  # it worked, and there is something left
    process = start(self.folder, 0)
    _, error = process.communicate()
    self.assertEqual((process.returncode, straight.wait()), (0, 0), error)
    straight.communicate()
    self.assertEqual(content(self.folder + '.npz'), content(self.folder + '_straight.npz'))
    with np.load(self.folder + '.npz') as file:
      np.testing.assert_array_equal(file['arr_0'], np.arange(COUNT, dtype=np.float32)[:, None] ** 2)

  def test_processes_share_the_work(self):
    processes = [start(self.folder, 0.02) for _ in range(3)]
    for process in processes:
      _, error = process.communicate()
      self.assertEqual(process.returncode, 0, error)
    self.assertEqual(sorted(made(self.folder)), list(range(0, COUNT, SIZE)))  # none twice
    self.assertTrue(files.is_whole(self.folder + '.npz'))


class CommandTest(absltest.TestCase):
  def test_kill_and_go_on(self):
    root = self.create_tempdir().full_path
    overrides = (
      '--config.denoiser.name=empirical',
      '--config.sampler.steps=20',
      '--config.sample.count=1000',
      '--config.sample.shard=100',
      '--config.sample.batch=50',
    )
    straight, broken = os.path.join(root, 'straight'), os.path.join(root, 'broken')
    code, _, error = cli.here('digits.py', 'sample', straight, *overrides)
    self.assertEqual(code, 0, error[-3000:])
    process = subprocess.Popen(
      [
        sys.executable,
        '-m',
        'gmm_diffusion.main',
        *cli.words('digits.py', 'sample', broken, *overrides),
      ],
      cwd=cases.ROOT,
      env=dict(os.environ, JAX_PLATFORMS='cpu'),
      stderr=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
    )
    name = os.path.basename(cases.sample_set(straight, 'ddim_gmm'))
    folder = os.path.join(broken, 'samples', name.removesuffix('-n1000.npz'))
    first = shards.path_of(folder, range(300, 400))
    while not os.path.exists(first):
      self.assertIsNone(process.poll(), 'the run ended before it could be killed')
      time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    self.assertFalse(os.path.exists(os.path.join(broken, 'samples', name)))
    age = os.path.getmtime(first)
    code, _, error = cli.here('digits.py', 'sample', broken, *overrides)
    self.assertEqual(code, 0, error[-3000:])
    self.assertEqual(os.path.getmtime(first), age)
    self.assertEqual(*(content(os.path.join(path, 'samples', name)) for path in (straight, broken)))
    with np.load(os.path.join(broken, 'samples', name)) as file:
      self.assertEqual((file['arr_0'].shape, file['arr_0'].dtype), ((1000, 8, 8, 1), np.uint8))
      self.assertEqual(file.files, ['arr_0'])  # an exact denoiser takes no classes


if __name__ == '__main__':
  absltest.main()
