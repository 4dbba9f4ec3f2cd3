"""What fewer bits cost: samples of a trained network whose weights, and inputs of layers, are
rounded, beside those of the network itself on the same noise.

`python -m gmm_diffusion.main --config=configs/digits.py --mode=train --workdir=runs/digits` comes
first.

  python -m experiments.studies.quantisation --start=runs/digits --workdir=runs/quantisation
"""

import dataclasses
import os

import jax
import numpy as np
from tqdm import tqdm

from experiments.lib import common
from gmm_diffusion import task_specs
from gmm_diffusion.data import sources
from gmm_diffusion.engine import drawing
from gmm_diffusion.metrics.estimates import Estimate, difference, of_mean
from gmm_diffusion.tasks.diffusion import quantise

ROWS = {  # weights, activations, times
  'W8': (8, 0, 'uniform'),
  'W4': (4, 0, 'uniform'),
  'W3': (3, 0, 'uniform'),
  'W8A8 uniform': (8, 8, 'uniform'),
  'W8A8 normal': (8, 8, 'normal'),
  'W8A8 noise': (8, 8, 'noise'),
  'W8A8 clean': (8, 8, 'clean'),
  'W8A6 uniform': (8, 6, 'uniform'),
  'W8A6 clean': (8, 6, 'clean'),
  'W4A8 uniform': (4, 8, 'uniform'),
  'W8A4 uniform': (8, 4, 'uniform'),
}


def drawn(subject, count, seed):
  """(samples in [-1, 1], Frechet distance) of the sampler of the config."""
  made = drawing.prepare(subject.spec, subject.spec.sampler, subject.data)
  x = subject.model.sample(made, count, seed).x
  found = subject.bench.features.extract(x)
  return np.float32(x) / 127.5 - 1, common.measure(subject, found, False)['frechet']


def size(weights) -> int:
  """Bytes of the arrays of the network."""
  return sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(weights['net']))


def main():
  parser = common.parser(__doc__, 'runs/quantisation')
  common.model_arguments(parser)
  parser.add_argument('--start', required=True, help='workdir of the trained network')
  parser.add_argument('--count', type=int, default=1000, help='samples of each')
  parser.add_argument('--calibration', type=int, default=256, help='samples')
  parser.add_argument('--seed', type=int, default=1, help='of the samples')
  parser.add_argument('--rows', nargs='*', default=list(ROWS), help='which rows')
  args = parser.parse_args()
  spec = common.spec_of(
    args.config,
    ['sampler.name=ddim', 'sampler.steps=10', "evaluate.metrics=('frechet',)", *args.set],
  )
  # one network of features for all
  evaluate = dataclasses.replace(spec.evaluate, cache=args.workdir)
  spec = dataclasses.replace(spec, evaluate=evaluate)
  data, rows = sources.load(spec.data), []
  whole = common.load_subject(spec, args.start, args.count)
  x, known = drawn(whole, args.count, args.seed)
  rows.append({'row': 'float32', 'bytes': size(whole.model.weights), 'frechet': known.record()})
  for name in tqdm(args.rows, desc='quantisation', unit='row'):
    weights, activations, times = ROWS[name]
    own = task_specs.Quantise(args.start, weights, activations, args.calibration, times)
    workdir = os.path.join(args.workdir, name.replace(' ', '_'))
    if not os.path.isdir(os.path.join(workdir, 'checkpoints')):
      os.makedirs(workdir, exist_ok=True)
      quantise.quantise(dataclasses.replace(spec, quantise=own), data, workdir)
    subject = common.load_subject(spec, workdir, args.count)
    few, value = drawn(subject, args.count, args.seed)
    away = difference(value, known)
    change = of_mean(np.mean((few - x) ** 2, tuple(range(1, x.ndim))))
    rms = Estimate(*(max(v, 0) ** 0.5 for v in change))
    rows.append(
      {
        'row': name,
        'bytes': size(subject.model.weights),
        'rms': rms.record(),
        'frechet': value.record(),
        'minus_float32': away.record(),
      }
    )
    print(f'{name}: rms {rms}, frechet {value}, minus float32 {away}', flush=True)
  settings = {'count': args.count, 'calibration': args.calibration, 'seed': args.seed}
  common.save(args.workdir, 'quantisation', {**settings, 'rows': rows})


if __name__ == '__main__':
  main()
