"""A released model of full size, end to end by the documented commands: convert, sample, sample
again.

The file has the released names, shapes and precision, and random values, so nothing is downloaded;
images are noise. Each command is a process of its own, whose time and peak memory are recorded.

  python -m experiments.benchmarks.released_end_to_end
  python -m experiments.benchmarks.released_end_to_end --config=imagenet256 --variant=dit
"""

import functools
import importlib
import math
import os
import re
import shutil
import subprocess
import sys
import time

import numpy as np

from experiments.lib import common, released_layout
from gmm_diffusion import specs
from gmm_diffusion.checkpoints import importers
from gmm_diffusion.data import sources
from gmm_diffusion.engine import build, released


def tensors(spec, data, name):
  """What the released file holds of one network: name -> (shape, dtype, make)."""
  module, template, weights = build.parts(spec, data)[name]
  recipe, _ = importers.recipe_of(
    weights.format, name, module, template, [], build.sample_shape(spec, data)[0]
  )
  out = {
    key: (value.shape, np.float32, lambda value=value: value)
    for key, value in recipe.constants.items()
  }
  for key, shape in recipe.expected().items():
    if key in out:
      continue
    if weights.format == 'guided_diffusion' and re.search(
      r'(qkv|proj_out|qkv_proj|c_proj)\.weight$', key
    ):
      shape += (1,)  # matrices of attention are convolutions there
    seed = 0 if 'embedder' in key else len(out)  # copies of one tensor must be equal
    out[key] = tuple(shape), np.float32, functools.partial(_draw, shape, seed)
  return {
    ('first_stage_model.' if weights.format == 'compvis' and name == 'autoencoder' else '')
    + key: value
    for key, value in out.items()
  }


def _draw(shape, seed):
  z = np.random.Generator(np.random.SFC64(seed)).standard_normal(shape, np.float32)
  return (
    z / np.float32(math.sqrt(max(1, math.prod(shape[1:]))))
    if len(shape) > 1
    else np.float32(0.1) * z + 1
  )


def write(spec, data, workdir):
  """Writes the files; returns their size in bytes."""
  by_path = {}
  for name in build.parts(spec, data):
    weights = getattr(spec, name).weights
    by_path.setdefault((released.place(weights, workdir), weights.format), {}).update(
      tensors(spec, data, name)
    )
  for (path, form), values in by_path.items():
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if not os.path.exists(path):
      save = (
        released_layout.write_safetensors
        if path.endswith('.safetensors')
        else functools.partial(
          released_layout.write_torch, nest='state_dict' if form == 'compvis' else ''
        )
      )
      save(path, values)
  return sum(os.path.getsize(path) for path, _ in by_path)


def command(*arguments):
  """Runs a process: seconds and peak memory in bytes."""
  print('$ python', ' '.join(arguments), flush=True)
  start = time.perf_counter()
  _, status, usage = os.wait4(subprocess.Popen([sys.executable, *arguments]).pid, 0)
  if status:
    sys.exit(f'failed with status {status}')
  return {
    'seconds': round(time.perf_counter() - start, 1),
    'peak_gb': round(usage.ru_maxrss * 1024 / 1e9, 2),
  }


def main():
  parser = common.parser(__doc__, 'runs/released_end_to_end')
  parser.add_argument('--config', default='imagenet256')
  parser.add_argument('--variant', default='adm')
  parser.add_argument('--steps', type=int, default=2)
  parser.add_argument('--count', type=int, default=1)
  args = parser.parse_args()
  spec = specs.from_config(
    importlib.import_module('configs.' + args.config).get_config(args.variant)
  )
  data = sources.load(spec.data)
  run = os.path.join(args.workdir, f'{args.config}_{args.variant}')
  size = write(spec, data, run)
  for folder in ('checkpoints', 'samples'):  # of an earlier run
    shutil.rmtree(os.path.join(run, folder), ignore_errors=True)
  base = [
    '-m',
    'gmm_diffusion.main',
    f'--config=configs/{args.config}.py:{args.variant}',
    f'--workdir={run}',
  ]
  # the released files have known sizes and hashes, which random values have not
  base += [
    f'--config.{name}.weights.{key}={empty}'
    for name in build.parts(spec, data)
    for key, empty in (('size', 0), ('sha256', ''))
    if getattr(getattr(spec, name).weights, key)
  ]
  sample = base + [
    '--mode=sample',
    f'--config.sampler.steps={args.steps}',
    f'--config.sample.count={args.count}',
    f'--config.sample.batch={args.count}',
    '--config.autoencoder.batch=1',
  ]
  found = {'file_gb': round(size / 1e9, 2), 'convert': command(*base, '--mode=convert')}
  if (
    found['convert']['peak_gb'] > 1.3 * found['file_gb'] + 0.4
  ):  # 0.4 GB: the interpreter with its libraries
    print('NOTE: converting took more than 1.3 times the size of the file')
  found['sample'] = command(*sample)
  found['sample again, another sampler'] = command(*sample, '--config.sampler.name=ddim')
  found['sample in bfloat16'] = command(*sample, '--config.net.dtype=bfloat16')
  for name, value in found.items():
    print(f'{name:32s} {value}')
  common.save(
    args.workdir,
    f'released_end_to_end_{args.config}_{args.variant}',
    {
      **found,
      'steps': args.steps,
      'count': args.count,
      'peak over the file': round(found['convert']['peak_gb'] / found['file_gb'], 2),
    },
  )


if __name__ == '__main__':
  main()
