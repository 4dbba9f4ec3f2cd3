"""Dot-product, EM and linear (soft) attention in the same U-Net: each kind is trained on the same
data for as many updates, sampled from the same noise, and measured.

  python -m experiments.studies.attention_kinds --workdir=runs/attention_kinds
  python -m experiments.studies.attention_kinds --workdir=runs/attention_kinds_mnist
    --config=mnist:runlocal --set data.path=~/tensorflow_datasets net.attention=(28,14)
"""

import dataclasses
import os
import time

import jax
import numpy as np
from tqdm import tqdm

from experiments.lib import common
from gmm_diffusion import files
from gmm_diffusion.data import sources
from gmm_diffusion.engine import loss
from gmm_diffusion.metrics.estimates import of_mean

KINDS = {
  'dot': {'attention_kind': 'dot'},
  'em': {'attention_kind': 'em'},
  'soft, rows': {'attention_kind': 'soft', 'attention_normalise': 'rows'},
  'soft, landmarks': {'attention_kind': 'soft', 'attention_normalise': 'landmarks'},
  'soft, none': {'attention_kind': 'soft', 'attention_normalise': 'none'},
}


def main():
  parser = common.parser(__doc__, 'runs/attention_kinds')
  common.model_arguments(parser)
  parser.add_argument('--count', type=int, default=1000, help='samples of each')
  parser.add_argument('--kinds', nargs='*', default=list(KINDS), choices=list(KINDS))
  parser.add_argument('--trainings', type=int, default=2, help='of each kind')
  parser.add_argument('--seed', type=int, default=1, help='of the samples')
  args = parser.parse_args()
  plain = common.spec_of(
    args.config,
    [
      'sampler.name=unipc',
      'sampler.steps=20',
      'sampler.extrapolate=False',  # as the authors, and as in the record
      "evaluate.metrics=('frechet',)",
      *args.set,
    ],
  )
  # one network of features for all
  evaluate = dataclasses.replace(plain.evaluate, cache=args.workdir)
  plain = dataclasses.replace(plain, evaluate=evaluate)
  data, rows = sources.load(plain.data), []
  for training in range(args.trainings):
    for kind in tqdm(args.kinds, desc=f'training {training}', unit='kind'):
      net = dataclasses.replace(plain.net, **KINDS[kind])
      spec = dataclasses.replace(plain, net=net, seed=training)
      workdir = os.path.join(args.workdir, f'{kind.replace(", ", "_")}_{training}')
      start = time.perf_counter()
      loss.train(spec, data, workdir)
      seconds = time.perf_counter() - start
      curve = files.read_json(os.path.join(workdir, 'training.json'), [])
      last = of_mean([row['loss'] for row in curve[-10:]])
      subject = common.load_subject(spec, workdir, args.count)
      drawn = common.draw(subject, spec.sampler, args.count, args.seed)
      value = common.measure(subject, drawn.features, False)['frechet']
      size = sum(leaf.size for leaf in jax.tree.leaves(subject.model.weights))
      rows.append(
        {
          'kind': kind,
          'training': training,
          'loss': last.record(),
          'frechet': value.record(),
          'parameters': size,
          'training_seconds': seconds,
          'sampling_seconds': drawn.seconds,
        }
      )
      print(
        f'{kind}, training {training}: loss {last}, frechet {value}, {seconds:.0f} s', flush=True
      )
  settings = {'count': args.count, 'seed': args.seed, 'attention': plain.net.attention}
  common.save(args.workdir, 'attention_kinds', {**settings, 'rows': rows})
  for kind in args.kinds:
    values = [row['frechet']['value'] for row in rows if row['kind'] == kind]
    print(f'{kind}: frechet {np.mean(values):.3f}')


if __name__ == '__main__':
  main()
