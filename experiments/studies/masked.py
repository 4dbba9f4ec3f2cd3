"""Masked diffusion of the digits as 64 tokens of 17 levels, by the exact predictor of the training
images: bits for each pixel of held-out digits beside what knows less, and what several pixels a
call cost. epsilon and width of the predictor are chosen on a part of the training images.

  python -m experiments.studies.masked --workdir=runs/masked
"""

import os

import jax
import numpy as np
from tqdm import tqdm

from experiments.lib import common
from gmm_diffusion import specs
from gmm_diffusion.data import image_sets, sources
from gmm_diffusion.discrete import pixels, predictors, process, reveal
from gmm_diffusion.metrics import features as features_lib
from gmm_diffusion.metrics import frechet, references
from gmm_diffusion.metrics.estimates import Estimate, of_mean
from gmm_diffusion.reports import images
from gmm_diffusion.tasks.masked import evaluate

LEVELS, CHOOSE = 17, 300
EPSILONS, WIDTHS = (0.01, 0.03, 0.1, 0.2), (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)


def pictures(x) -> np.ndarray:
  return pixels.pictures(np.asarray(x), LEVELS, (8, 8, 1))


def bits(nats) -> Estimate:
  return of_mean(process.bits_per_token(nats, 64))


def chosen(train: np.ndarray) -> tuple[float, float]:
  """epsilon and width with the fewest bits on the last CHOOSE training images."""
  known, held = train[:-CHOOSE], train[-CHOOSE:]
  cost = {}
  for epsilon in EPSILONS:
    for width in WIDTHS:
      found = predictors.exact(known, LEVELS, epsilon, width)
      cost[epsilon, width] = -float(np.mean(found.log_prob(held)))
  return min(cost, key=cost.__getitem__)


def main():
  parser = common.parser(__doc__, 'runs/masked')
  parser.add_argument('--count', type=int, default=1000, help='samples of each')
  parser.add_argument('--steps', type=int, nargs='*', default=[64, 32, 16, 8, 4, 2, 1])
  args = parser.parse_args()
  data = sources.load(specs.Data())
  train, test = (pixels.tokens(x, LEVELS) for x in (data.train, data.test))
  epsilon, width = chosen(train)
  found = predictors.exact(train, LEVELS, epsilon, width)
  known = {
    'uniform': bits(np.full(len(test), 64 * np.log(LEVELS))),
    'independent pixels': bits(evaluate.independent(train, test, LEVELS)),
    'training images, exact': bits(-np.asarray(found.log_prob(test))),
  }
  for name, value in known.items():
    print(f'{name}: {value} bits a pixel')
  features = features_lib.load('classifier', data, args.workdir, '')
  source = references.Source('training items', image_sets.ArraySet(data.train, 'training items'))
  reference = references.load(source, features, set(), args.workdir)
  rows, strips = [], []
  for order in reveal.ORDERS:
    for steps in tqdm(args.steps, desc=order, unit='row'):
      draw = jax.jit(
        lambda ids, steps=steps, order=order: (
          reveal.sample(found.predictor, LEVELS, 64, ids, 0, steps, order).x
        )
      )
      x = pictures(draw(np.arange(args.count, dtype=np.uint32)))
      value = frechet.frechet_distance(features.extract(x).features, reference.moments)
      rows.append({'order': order, 'steps': steps, 'frechet': value.record()})
      print(f'{order}, {steps} calls: frechet {value}', flush=True)
      if order == 'first_hitting':
        strips.append(x[:10])
  hidden = np.where(np.arange(64) % 8 >= 4, LEVELS, test[:10])
  inpainted = reveal.sample(found.predictor, LEVELS, 64, np.arange(10), known=hidden).x
  strips += [pictures(hidden), pictures(inpainted), data.test[:10]]
  images.save(os.path.join(args.workdir, 'masked.png'), images.grid(np.concatenate(strips), 10))
  common.save(
    args.workdir,
    'masked',
    {
      'epsilon': epsilon,
      'width': width,
      'bits': {name: value.record() for name, value in known.items()},
      'count': args.count,
      'rows': rows,
    },
  )


if __name__ == '__main__':
  main()
