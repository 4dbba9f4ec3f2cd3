"""A training that gets SIGKILL, or one of SIGKILL, SIGTERM and SIGINT, at random times, beside one
that gets none: its weights and its curve have to be the same, byte for byte. Images are streamed,
and gradients are accumulated. Of several hosts, which are processes of this machine, one gets the
signal, and the others have to end by themselves, with one line.

  python -m experiments.benchmarks.kills --kills=30 --steps=20000
  python -m experiments.benchmarks.kills --kills=10 --steps=2000 --hosts=2
  python -m experiments.benchmarks.kills --kills=3 --steps=600 --hosts=4 --signals KILL TERM INT
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments.lib import common
from gmm_diffusion.checkpoints.store import Store
from gmm_diffusion.data import sources
from gmm_diffusion.errors import UserError
from gmm_diffusion.specs import Data

EVERY = 5  # steps of a row of the curve


def command(workdir: str, path: str, steps: int) -> list[str]:
  """The training of a small network on the digits of an .npz."""
  return [
    sys.executable, '-m', 'gmm_diffusion.main', '--config=configs/digits.py', '--mode=train',
    f'--workdir={workdir}', '--config.data.name=npz', f'--config.data.path={path}',
    '--config.data.stream=True', '--config.net.name=cnn', '--config.net.channels=8',
    '--config.net.blocks=1', f'--config.train.steps={steps}', '--config.train.batch=16',
    '--config.train.accumulate=2', '--config.train.checkpoint_every=25',
    f'--config.train.log_every={EVERY}',
  ]  # fmt: skip


def start(words: list[str], hosts: int) -> list[tuple[subprocess.Popen, Any]]:
  """The command on so many hosts, each with the file of what it says as an error."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  joined = lambda i: {
    'JAX_COORDINATOR_ADDRESS': f'localhost:{port}',
    'JAX_NUM_PROCESSES': str(hosts),
    'JAX_PROCESS_ID': str(i),
  }
  out = []
  for i in range(hosts):
    environment, said = {**os.environ, **(joined(i) if hosts > 1 else {})}, tempfile.TemporaryFile()
    quiet = dict(stdout=subprocess.DEVNULL, stderr=said)
    out.append((subprocess.Popen(words, env=environment, **quiet), said))
  return out


def last_line(said: Any) -> str:
  """Of a file of errors; '' where there is none."""
  said.seek(0)
  return (said.read().decode().strip().splitlines() or [''])[-1]


def ended(processes: list[tuple[subprocess.Popen, Any]], patience: float | None = None) -> None:
  """Waits for all; raises UserError where one of them failed."""
  for process, _ in processes:
    if process.wait(patience):
      raise UserError(f'the training ended with {process.returncode}')


def seconds_to_end(process: subprocess.Popen) -> float:
  """Waits for a process. One that waits for others to come does so for five minutes."""
  begun = time.time()
  process.wait(400)
  return time.time() - begun


def curve(workdir: str) -> list[tuple[int, float]]:
  """(step, loss) of each row."""
  try:
    with open(os.path.join(workdir, 'metrics.jsonl'), encoding='utf-8') as file:
      rows = [json.loads(line) for line in file if line.endswith('\n')]
  except FileNotFoundError:
    return []
  return [(row['step'], row['loss']) for row in rows]


def windows(rows: list[tuple[int, float]], every: int) -> list[float]:
  """Means over so many steps each: a stop by a signal that saves ends a row before its time."""
  losses = np.zeros(rows[-1][0] // every)
  for before, (step, loss) in zip([0, *(step for step, _ in rows)], rows, strict=False):
    losses[(step - 1) // every] += loss * (step - before) / every
  return losses.tolist()


def weights(workdir: str) -> list[np.ndarray]:
  """The weights, their average and the optimiser of the last checkpoint."""
  with Store(workdir) as store:
    folder = os.path.join(store.path, str(store.latest()))
  parts = [
    ocp.PyTreeCheckpointer().restore(os.path.join(folder, part)) for part in ('net', 'train')
  ]
  return [np.asarray(leaf) for leaf in jax.tree.leaves(parts)]


def main():
  parser = common.parser(__doc__, 'runs/kills')
  parser.add_argument('--kills', type=int, default=30)
  parser.add_argument('--steps', type=int, default=20000)
  parser.add_argument('--hosts', type=int, default=1)
  parser.add_argument('--signals', nargs='+', default=['KILL'], choices=('KILL', 'TERM', 'INT'))
  parser.add_argument('--seed', type=int, default=0, help='of the times')
  args = parser.parse_args()
  shutil.rmtree(args.workdir, ignore_errors=True)
  os.makedirs(args.workdir)
  path, data = os.path.join(args.workdir, 'digits.npz'), sources.load(Data('digits'))
  np.savez(path, x_train=data.train, y_train=data.train_labels)
  whole, killed = (os.path.join(args.workdir, name) for name in ('whole', 'killed'))
  begun = time.time()
  ended(start(command(whole, path, args.steps), args.hosts))
  with open(os.path.join(whole, 'metrics.jsonl'), encoding='utf-8') as file:
    first = json.loads(file.readline())['time'] - begun
  random, reached, longest, lines = np.random.RandomState(args.seed), [], [], []
  # one host gets it at any time, and in half of the cases before the first step; several do when
  # they have joined, since until then they wait for each other
  earliest = first / 2 if args.hosts > 1 else 0
  while True:
    processes = start(command(killed, path, args.steps), args.hosts)
    try:
      late = random.uniform(earliest, 2 * first) if len(reached) < args.kills else None
      ended(processes, late)
    except subprocess.TimeoutExpired:
      what = args.signals[random.randint(len(args.signals))]
      one = processes[random.randint(args.hosts)]
      one[0].send_signal(signal.Signals[f'SIG{what}'])
      longest.append(max(seconds_to_end(process) for process, _ in processes))
      last = [last_line(said) for process, said in processes if what != 'KILL' or process != one[0]]
      lines.append([what, sorted(set(last))])
      reached.append(max([0, *(step for step, _ in curve(killed))]))
      print(f'{what} {len(reached)} of {args.kills} after step {reached[-1]}', flush=True)
      continue
    break
  if len(reached) < args.kills:
    raise UserError(f'it was done after {len(reached)} kills; set more --steps than {args.steps}')
  same_curve = curve(whole) == curve(killed)
  if args.signals != ['KILL']:
    same_curve = np.allclose(windows(curve(whole), EVERY), windows(curve(killed), EVERY), rtol=1e-6)
  ours, theirs = weights(whole), weights(killed)
  same_weights = len(ours) == len(theirs) and all(map(np.array_equal, ours, theirs))
  one_line = all(line.startswith('error: ') for _, said in lines for line in said)
  print(
    f'{args.kills} kills: curve equal {same_curve}, weights equal {same_weights}, all others end '
    f'with one line {one_line}'
  )
  common.save(args.workdir, 'kills', {
    'kills': args.kills, 'hosts': args.hosts, 'steps': args.steps, 'seed': args.seed,
    'killed_after': reached, 'seconds_until_all_had_ended': longest, 'last_lines': lines,
    'one_line': one_line, 'leaves': len(ours),
    'same_curve': bool(same_curve), 'same_weights': same_weights,
  })  # fmt: skip


if __name__ == '__main__':
  main()
