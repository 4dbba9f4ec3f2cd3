"""--mode=tune by the real command, killed at several moments: what was done is not done again, and
the result is that of a run that nobody stopped."""

import glob
import os
import random
import signal
import subprocess
import sys
import time
from unittest import mock

import numpy as np
from absl.testing import absltest

from gmm_diffusion import files
from gmm_diffusion.tasks.diffusion import tune
from helpers import cases, cli

SETTINGS = (
  '--config.tune.calls=(2,)',
  '--config.tune.tier=3',
  '--config.tune.samples=32',
  '--config.tune.steps=12',
  '--config.tune.batch=16',
  '--config.tune.seeds=2',
  '--config.evaluate.count=50',
)
# a part of the names of files, and how many of them there are when the run is killed
MOMENTS = {
  'in the race': ('*.npz', 20),
  'in the search': ('*-goal.npz', 40),
  'in the closed forms': ('*-teacher-*.npz', 1),
  'in the gradient': ('gradient-*-1.npz', 1),
}


def asked(workdir):
  """Runs the command to its end in this process: its network calls, of one sample each."""
  made = []

  def subject_of(*given):
    made.append(subject(*given))
    return made[-1]

  subject = tune.subject_of
  with mock.patch.object(tune, 'subject_of', subject_of):
    code, _, error = cli.here('toy.py:runlocal', 'tune', workdir, *SETTINGS)
  assert code == 0, error[-3000:]
  return made[0].calls


def done(workdir):
  """{name: (time of the last change, arrays)} of what is kept."""
  out, folder = {}, os.path.join(workdir, 'tuned', 'work')
  for path in glob.glob(os.path.join(folder, '**', '*.npz'), recursive=True):
    with np.load(path) as file:  # a half-written file would raise
      arrays = {name: file[name] for name in file.files}
    out[os.path.relpath(path, folder)] = os.stat(path).st_mtime_ns, arrays
  return out


def left(workdir, pattern):
  """Files with such names, hidden ones included."""
  every = os.path.join(workdir, '**', pattern)
  return glob.glob(every, recursive=True, include_hidden=True)


class KilledTest(absltest.TestCase):
  def kill(self, workdir, pattern, count):
    """Starts the command and kills it when there are so many files of this pattern."""
    words = cli.words('toy.py:runlocal', 'tune', workdir, *SETTINGS)
    process = subprocess.Popen(
      [sys.executable, '-m', 'gmm_diffusion.main', *words],
      cwd=cases.ROOT,
      env=dict(os.environ, JAX_PLATFORMS='cpu'),
      stderr=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
    )
    every, deadline = os.path.join(workdir, 'tuned', 'work', '2', pattern), time.time() + 300
    while len(glob.glob(every)) < count:
      self.assertIsNone(process.poll(), 'the run ended before it could be killed')
      self.assertLess(time.time(), deadline)
      time.sleep(0.002)
    time.sleep(random.uniform(0, 0.005))  # not always where a file has just been written
    process.send_signal(signal.SIGKILL)
    process.wait()

  def test_killed_again_and_again(self):
    random.seed(0)
    root = self.create_tempdir().full_path
    straight, broken = (os.path.join(root, name) for name in ('straight', 'broken'))
    calls, before = asked(straight), {}
    for moment, (pattern, count) in MOMENTS.items():
      self.kill(broken, pattern, count)
      now = done(broken)
      self.assertGreater(len(now), len(before))
      for name, (stamp, _) in before.items():
        self.assertEqual(now[name][0], stamp, f'{name} was made again')
      lost = [path for path in left(broken, '*.lock') if not os.path.exists(path[:-5])]
      self.assertLessEqual(len(lost), 1)
      for path in left(broken, '.partial-*'):
        os.utime(path, (0, 0))  # as if the next run came a day later
      before = now
      if moment != 'in the race':  # the best so far
        found = files.read_json(tune.path_of(broken, 2), {})
        self.assertIsNone(found['report'])
        self.assertLen(found['table']['t'], 2)
    saved = sum(int(arrays['cost'][1]) for _, arrays in before.values())
    self.assertEqual(asked(broken), calls - saved)

    one, other = done(straight), done(broken)
    self.assertEqual(one.keys(), other.keys())
    for name, (stamp, arrays) in other.items():
      self.assertEqual(before.get(name, (stamp,))[0], stamp, f'{name} was made again')
      for key in arrays.keys() - {'cost'}:
        np.testing.assert_array_equal(arrays[key], one[name][1][key], f'{name} {key}')
    results = [files.read_json(tune.path_of(workdir, 2), {}) for workdir in (straight, broken)]
    for found in results:
      del found['seconds'], found['command'], found['config']  # which names the workdir
    self.assertEqual(*results)
    self.assertEqual(left(broken, '.partial-*'), [])


if __name__ == '__main__':
  absltest.main()
