"""A training that is killed at random times, beside one that is not: its weights and its curve have
to be the same, byte for byte. Images are streamed, and gradients are accumulated.

  python -m experiments.benchmarks.kills --kills=30 --steps=20000
"""

import json
import os
import shutil
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments.lib import common
from gmm_diffusion.checkpoints.store import Store
from gmm_diffusion.data import sources
from gmm_diffusion.errors import UserError
from gmm_diffusion.specs import Data


def command(workdir: str, path: str, steps: int) -> list[str]:
  """The training of a small network on the digits of an .npz."""
  return [
    sys.executable, '-m', 'gmm_diffusion.main', '--config=configs/digits.py', '--mode=train',
    f'--workdir={workdir}', '--config.data.name=npz', f'--config.data.path={path}',
    '--config.data.stream=True', '--config.net.name=cnn', '--config.net.channels=8',
    '--config.net.blocks=1', f'--config.train.steps={steps}', '--config.train.batch=16',
    '--config.train.accumulate=2', '--config.train.checkpoint_every=25',
    '--config.train.log_every=5',
  ]  # fmt: skip


def curve(workdir: str) -> list[tuple[int, float]]:
  """(step, loss) of each row."""
  try:
    with open(os.path.join(workdir, 'metrics.jsonl'), encoding='utf-8') as file:
      rows = [json.loads(line) for line in file if line.endswith('\n')]
  except FileNotFoundError:
    return []
  return [(row['step'], row['loss']) for row in rows]


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
  parser.add_argument('--seed', type=int, default=0, help='of the times')
  args = parser.parse_args()
  shutil.rmtree(args.workdir, ignore_errors=True)
  os.makedirs(args.workdir)
  path, data = os.path.join(args.workdir, 'digits.npz'), sources.load(Data('digits'))
  np.savez(path, x_train=data.train, y_train=data.train_labels)
  whole, killed = (os.path.join(args.workdir, name) for name in ('whole', 'killed'))
  begun = time.time()
  subprocess.run(command(whole, path, args.steps), check=True, capture_output=True)
  with open(os.path.join(whole, 'metrics.jsonl'), encoding='utf-8') as file:
    first = json.loads(file.readline())['time'] - begun
  random, reached = np.random.RandomState(args.seed), []
  while True:
    process = subprocess.Popen(
      command(killed, path, args.steps), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:  # half of the kills come before the first step
      process.wait(random.uniform(0, 2 * first) if len(reached) < args.kills else None)
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()
      reached.append(max([0, *(step for step, _ in curve(killed))]))
      print(f'kill {len(reached)} of {args.kills} after step {reached[-1]}', flush=True)
      continue
    if process.returncode:
      raise UserError(f'the training ended with {process.returncode}')
    break
  if len(reached) < args.kills:
    raise UserError(f'it was done after {len(reached)} kills; set more --steps than {args.steps}')
  same_curve = curve(whole) == curve(killed)
  ours, theirs = weights(whole), weights(killed)
  same_weights = len(ours) == len(theirs) and all(map(np.array_equal, ours, theirs))
  print(f'{args.kills} kills: curve equal {same_curve}, weights equal {same_weights}')
  common.save(args.workdir, 'kills', {
    'kills': args.kills, 'steps': args.steps, 'seed': args.seed, 'killed_after': reached,
    'leaves': len(ours), 'same_curve': same_curve, 'same_weights': same_weights,
  })  # fmt: skip


if __name__ == '__main__':
  main()
