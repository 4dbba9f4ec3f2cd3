"""Training from images that are read when they are used, beside the same ones in memory and a few
of them: seconds of a step, seconds until the first one, and the most memory that the process took.
The images are JPEGs that are made, or a set of tensorflow-datasets.

  python -m experiments.benchmarks.streaming_speed --images=20000 --side=256 --size=256 --batch=4
  python -m experiments.benchmarks.streaming_speed --images=20000 --side=256 --size=32 --batch=64
  python -m experiments.benchmarks.streaming_speed --dataset=mnist --path=~/tensorflow_datasets
    --size=32 --batch=64
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
import time

import numpy as np
from PIL import Image
from tqdm import tqdm

from experiments.lib import common
from gmm_diffusion import specs
from gmm_diffusion.data import sources
from gmm_diffusion.errors import UserError

DISTINCT = 500  # images; the others are links to these, which a reader does not notice


def make(folder: str, count: int, side: int) -> None:
  """JPEGs of smooth shapes and some noise, about as large as photographs."""
  random = np.random.RandomState(0)
  os.makedirs(folder, exist_ok=True)
  for i in tqdm(range(count), desc='making images', unit='image', dynamic_ncols=True):
    path = os.path.join(folder, f'{i:06d}.jpg')
    if os.path.exists(path):
      continue
    if i < DISTINCT:
      small = random.uniform(0, 255, (8, 8, 3)).astype(np.uint8)
      large = np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC))
      noisy = large + random.normal(0, 8, large.shape)
      Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(path, quality=90)
    else:
      os.link(os.path.join(folder, f'{i % DISTINCT:06d}.jpg'), path)


def reading(data_spec: specs.Data, count: int = 500) -> float:
  """Images that can be read in a second when nothing else is done."""
  data = sources.load(dataclasses.replace(data_spec, stream=True, limit=count))
  start = time.perf_counter()
  data.train.read()
  return len(data.train) / (time.perf_counter() - start)


def train(workdir: str, overrides: list[str]) -> dict[str, float]:
  """What the real command took."""
  begun = time.time()
  command = [sys.executable, '-m', 'gmm_diffusion.main', '--config=configs/folder.py:runlocal']
  command += ['--mode=train', f'--workdir={workdir}', *overrides]
  code = (
    'import resource, subprocess, sys; done = subprocess.run(sys.argv[1:], capture_output=True, '
    'text=True); print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); '
    'sys.exit(done.stderr[-800:] if done.returncode else 0)'
  )
  done = subprocess.run([sys.executable, '-c', code, *command], capture_output=True, text=True)
  if done.returncode:
    raise UserError(re.sub(r'\s+', ' ', done.stderr)[-300:])
  with open(os.path.join(workdir, 'metrics.jsonl'), encoding='utf-8') as file:
    rows = [json.loads(line) for line in file]
  seconds = np.diff([row['time'] for row in rows])[2:]
  return {
    'step_seconds': float(np.median(seconds)),
    'first_step_seconds': rows[0]['time'] - begun,
    'gigabytes': int(done.stdout) * 1024 / 1e9,
  }


def main():
  parser = common.parser(__doc__, 'runs/streaming_speed')
  parser.add_argument('--images', type=int, default=20000)
  parser.add_argument('--side', type=int, default=256, help='of the JPEGs')
  parser.add_argument('--size', type=int, default=256, help='to which they are resized')
  parser.add_argument('--batch', type=int, default=4)
  parser.add_argument('--steps', type=int, default=40)
  parser.add_argument('--repeats', type=int, default=2)
  parser.add_argument('--dataset', default='', help='of tensorflow-datasets, in place of JPEGs')
  parser.add_argument('--path', default='', help='of the data set')
  args = parser.parse_args()
  folder = args.path or os.path.join(args.workdir, f'images_{args.side}')
  if not args.dataset:
    make(folder, args.images, args.side)
  name = 'tfds' if args.dataset else 'folder'
  data = specs.Data(name, args.dataset, path=folder, size=args.size, colour='rgb')
  rate, rows = reading(data), {'memory': [], 'stream': [], 'few': []}
  for repeat in range(args.repeats):
    for name, found in rows.items():
      overrides = [
        f'--config.data.name={data.name}',
        *([f'--config.data.dataset={data.dataset}'] if data.dataset else []),
        f'--config.data.path={folder}', f'--config.data.size={args.size}',
        f'--config.data.colour={data.colour}', f'--config.data.stream={name == "stream"}',
        f'--config.data.limit={args.batch if name == "few" else 0}',
        f'--config.train.batch={args.batch}',
        f'--config.train.steps={args.steps}', '--config.train.log_every=1',
        '--config.net.attention=(8,)',
      ]  # fmt: skip
      workdir = os.path.join(
        args.workdir, f'{name}_{args.size}_{args.batch}_{repeat}_{time.time():.0f}'
      )
      found.append(train(workdir, overrides))
      print(name, found[-1], flush=True)
  of = lambda name, key: float(np.median([row[key] for row in rows[name]]))
  ratio = of('stream', 'step_seconds') / of('memory', 'step_seconds')
  training = args.batch / of('stream', 'step_seconds')
  print(
    f'{args.size} pixels: a step takes {ratio:.3f} times as long as from memory; {rate:.0f} '
    f'images/s can be read, {training:.0f} are trained on; first step after '
    f'{of("stream", "first_step_seconds"):.0f} s ({of("memory", "first_step_seconds"):.0f} s), '
    f'{of("stream", "gigabytes"):.2f} GB ({of("memory", "gigabytes"):.2f} GB, and '
    f'{of("few", "gigabytes"):.2f} GB with {args.batch} images)'
  )
  common.save(
    args.workdir,
    f'streaming_speed_{args.dataset or args.size}',
    {**{k: v for k, v in vars(args).items() if k not in ('workdir', 'path')},
     'read_per_second': rate, 'ratio': ratio, 'rows': rows},
  )  # fmt: skip


if __name__ == '__main__':
  main()
