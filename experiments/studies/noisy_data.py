"""What noisy images are worth: the digits with 10 % clean and 90 % noisy items against the clean
ones alone, all of them clean, and none of them clean.

  python -m experiments.studies.noisy_data --workdir=runs/noisy_data
"""

import dataclasses
import os

import numpy as np
from tqdm import tqdm

from experiments.lib import common
from gmm_diffusion.data import sources
from gmm_diffusion.engine import loss

VARIANTS = {  # share of the items that is noisy, whether those are left out, train.consistency
  'all clean': (0.0, False, 0.0),
  '10 % clean + 90 % noisy': (0.9, False, 0.0),
  '10 % clean + 90 % noisy, consistent': (0.9, False, 0.1),
  '10 % clean alone': (0.9, True, 0.0),
  'all noisy': (1.0, False, 0.0),
  'all noisy, consistent': (1.0, False, 0.1),
}


def main():
  parser = common.parser(__doc__, 'runs/noisy_data')
  common.model_arguments(parser)
  parser.add_argument('--count', type=int, default=1000, help='samples of each')
  parser.add_argument('--level', type=float, default=0.2, help='of the noise')
  parser.add_argument('--seeds', type=int, nargs='*', default=[0, 1], help='of the samples')
  parser.add_argument('--variants', nargs='+', default=list(VARIANTS), choices=VARIANTS)
  args = parser.parse_args()
  base = common.spec_of(
    args.config,
    [
      'sampler.name=unipc',
      'sampler.steps=20',
      'sampler.extrapolate=False',  # as the authors, and as in the record
      'evaluate.metrics=()',
      *args.set,
    ],
  )
  rows = []
  for name in tqdm(args.variants, desc='noisy data', unit='model'):
    share, alone, weight = VARIANTS[name]
    settings = dataclasses.replace(
      base.train, noisy=0.0 if alone else share, noise_level=args.level, consistency=weight
    )
    spec, data = dataclasses.replace(base, train=settings), sources.load(base.data)
    if alone:
      noisy = dataclasses.replace(base.train, noisy=share)
      clean = loss.noisy_items(dataclasses.replace(base, train=noisy), len(data.train)) < 0
      data = data._replace(train=data.train[clean], train_labels=data.train_labels[clean])
    workdir = os.path.join(
      args.workdir, name.replace(' ', '_').replace('%', 'percent').replace(',', '')
    )
    loss.train(spec, data, workdir)
    subject = common.load_subject(spec, workdir, args.count)
    found = common.over_seeds(subject, spec.sampler, args.count, args.seeds, name)
    rows += [{'data': name, **row} for row in found]
  settings = {'count': args.count, 'level': args.level, 'steps': base.train.steps}
  common.save(args.workdir, 'noisy_data', {**settings, 'rows': rows})
  frechet = [row for row in rows if row['metric'] == 'frechet']
  for name in args.variants:
    values = [row['value'] for row in frechet if row['data'] == name]
    print(f'{name}: frechet {np.mean(values):.3f}')


if __name__ == '__main__':
  main()
