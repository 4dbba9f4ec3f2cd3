"""What leaving out the least steady samples changes: Frechet distance, precision and recall of
`count` samples that stay of count / (1 - share), beside as many of all of them.

  python -m experiments.studies.drop --workdir=runs/drop --start=runs/digits

after `python -m gmm_diffusion.main --config=configs/digits.py --mode=train --workdir=runs/digits`.
"""

import dataclasses

import numpy as np
from tqdm import tqdm

from experiments.lib import common
from gmm_diffusion import metrics
from gmm_diffusion.engine import drawing
from gmm_diffusion.metrics import estimates
from gmm_diffusion.tasks.diffusion import steady

SAMPLERS = {
  'ddim 5': {'name': 'ddim', 'steps': 5},
  'unipc 5': {'name': 'unipc', 'steps': 5, 'order': 3, 'extrapolate': True},
  'ddim 50': {'name': 'ddim', 'steps': 50},
}


def main():
  parser = common.parser(__doc__, 'runs/drop')
  common.model_arguments(parser)
  parser.add_argument('--start', default='runs/digits', help='workdir of the trained network')
  parser.add_argument('--shares', type=float, nargs='+', default=[0.1, 0.3])
  parser.add_argument('--count', type=int, default=1000, help='samples that stay')
  parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2, 3])
  args = parser.parse_args()
  subject = common.load_subject(common.spec_of(args.config, args.set), args.start, args.count)
  bench, data, found = subject.bench, subject.data, []

  def values(x):
    extracted = bench.features.extract(x)
    return metrics.compare(extracted, bench.reference, bench.names, bench.neighbours)

  most = steady.needed(args.count, max(args.shares))
  for name, options in tqdm(SAMPLERS.items(), desc='samplers', unit='sampler'):
    sampler = dataclasses.replace(subject.spec.sampler, **options)
    made = drawing.prepare(subject.spec, sampler, data)
    for seed in args.seeds:
      x = subject.model.sample(made, most, seed).x
      labels = drawing.labels_of(subject.spec, data, np.arange(most))
      moves = subject.model.unsteadiness(made.bind, x, labels)
      for share in (0.0, *args.shares):
        drawn = steady.needed(args.count, share)
        kept = np.sort(np.argsort(moves[:drawn], kind='stable')[: args.count])
        about = {'sampler': name, 'share': share, 'seed': seed}
        found += [{**about, 'metric': key, **one.record()} for key, one in values(x[kept]).items()]
  rows = []
  for name in SAMPLERS:
    for metric in dict.fromkeys(row['metric'] for row in found):
      of = lambda share: np.array(
        [
          row['value'] for row in found
          if (row['sampler'], row['share'], row['metric']) == (name, share, metric)
        ]
      )  # fmt: skip
      for share in (0.0, *args.shares):
        mean, change = estimates.of_mean(of(share)), estimates.of_mean(of(share) - of(0.0))
        rows.append({'sampler': name, 'share': share, 'metric': metric, **mean.record()})
        rows[-1]['change'] = change.record()
        print(f'{name:8s} {metric:10s} {share:4.1f}  {mean}   change {change}')
  common.save(args.workdir, 'drop', {**vars(args), 'rows': rows, 'found': found})


if __name__ == '__main__':
  main()
