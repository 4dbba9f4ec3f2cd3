"""Several hosts that train together, as processes of this machine."""

import glob
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import unittest

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl.testing import absltest

from gmm_diffusion import specs
from gmm_diffusion.checkpoints.store import Store
from gmm_diffusion.data import sources
from helpers import cases, cli

SMALL = (
  *cli.CNN, '--config.train.log_every=1', '--config.train.checkpoint_every=20',
  '--config.train.accumulate=2', '--config.data.name=npz',
  '--config.data.stream=True',
)  # fmt: skip


@unittest.skipUnless(importlib.util.find_spec('grain'), 'needs the extra stream')
class HostsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.root = self.create_tempdir().full_path
    self.workdir = os.path.join(self.root, 'run')
    digits, path = sources.load(specs.Data('digits')), os.path.join(self.root, 'digits.npz')
    np.savez(path, x_train=digits.train, y_train=digits.train_labels)
    self.settings = *SMALL, f'--config.data.path={path}'

  def start(self, count, steps=100_000):
    """The same command on so many hosts."""
    with socket.socket() as free:
      free.bind(('localhost', 0))
      port = free.getsockname()[1]
    return [
      subprocess.Popen(
        [sys.executable, '-m', 'gmm_diffusion.main']
        + [*cli.words('digits.py', 'train', self.workdir, *self.settings)]
        + [f'--config.train.steps={steps}'],
        cwd=cases.ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={
          **os.environ,
          'JAX_PLATFORMS': 'cpu',
          'JAX_COORDINATOR_ADDRESS': f'localhost:{port}',
          'JAX_NUM_PROCESSES': str(count),
          'JAX_PROCESS_ID': str(i),
        },
      )
      for i in range(count)
    ]

  def wait_for(self, step, processes):
    """Until there is a checkpoint of the step or of a later one."""
    deadline = time.time() + 300
    is_done = lambda name: name.isdigit() and int(name) >= step
    while not any(
      is_done(os.path.basename(path)) for path in glob.glob(f'{self.workdir}/checkpoints/*')
    ):
      self.assertEqual([process.poll() for process in processes], [None] * len(processes))
      self.assertLess(time.time(), deadline)
      time.sleep(0.05)

  def last_lines(self, processes):
    """What the processes say at their end, within a minute: the program's own last line, after
    which the connections of JAX may still say that the other host is gone."""
    out = []
    for process in processes:
      _, error = process.communicate(timeout=60)
      lines = error.strip().splitlines()
      own = [line for line in lines if line.startswith('error: ')]
      out.append((process.returncode, (own or lines)[-1]))
    return out

  def test_stopped_killed_and_gone_on_with(self):
    (alone,) = self.start(1)
    self.wait_for(20, [alone])
    alone.kill()
    alone.communicate()
    step = Store(self.workdir).latest()
    for number in (signal.SIGTERM, signal.SIGINT):  # to one of them; all save the same step
      first = self.start(2)
      self.wait_for(step + 20, first)
      first[1].send_signal(number)
      ends = self.last_lines(first)
      step = Store(self.workdir).latest()
      for code, line in ends:
        self.assertEqual(code, 75)
        self.assertRegex(
          line, f'^error: stopped by {number.name} after step {step} of 100000, which is saved'
        )

    early = self.start(2)
    for process in early:
      self.assertIn('joined by JAX_COORDINATOR_ADDRESS', process.stdout.readline())
      process.send_signal(signal.SIGTERM)
    for code, line in self.last_lines(early):  # nothing was trained yet
      self.assertEqual((code, line[:27]), (75, 'error: stopped by SIGTERM; '))
    self.assertEqual(Store(self.workdir).latest(), step)

    second = self.start(2)
    self.wait_for(step + 20, second)
    second[1].kill()
    ((code, line),) = self.last_lines(second[:1])
    self.assertEqual(code, 1)
    self.assertRegex(line, '^error: the hosts cannot go on together .* from the last checkpoint')

    step = Store(self.workdir).latest()
    first = self.start(2)  # and now the host that leads the others
    self.wait_for(step + 20, first)
    first[0].kill()
    ((code, line),) = self.last_lines(first[1:])
    self.assertEqual(code, 1)
    self.assertRegex(line, '^error: the hosts cannot go on together .* from the last checkpoint')

    last = Store(self.workdir).latest() + 20
    third = self.start(4, last)
    self.assertEqual([code for code, _ in self.last_lines(third)], [0] * 4)
    alone = os.path.join(self.root, 'alone')
    code, _, error = cli.here(
      'digits.py', 'train', alone, *self.settings, f'--config.train.steps={last}'
    )
    self.assertEqual(code, 0, error)
    found = [
      ocp.StandardCheckpointer().restore(os.path.join(Store(path).path, str(last), 'train'))
      for path in (self.workdir, alone)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), *found)


if __name__ == '__main__':
  absltest.main()
