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
from gmm_diffusion.discrete import predictors, process, reveal
from gmm_diffusion.metrics import features as features_lib
from gmm_diffusion.metrics import frechet, references
from gmm_diffusion.metrics.estimates import Estimate, of_mean
from gmm_diffusion.reports import images

LEVELS, CHOOSE = 17, 300
EPSILONS, WIDTHS = (0.01, 0.03, 0.1, 0.2), (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)


def tokens(x: np.ndarray) -> np.ndarray:
  """uint8 digits -> levels [N, 64]."""
  return np.round(x.reshape(len(x), -1) / 255 * (LEVELS - 1)).astype(np.int32)


def pictures(x: np.ndarray) -> np.ndarray:
  """Levels [N, 64] -> uint8 digits; masks are grey."""
  grey = np.where(x == LEVELS, (LEVELS - 1) / 2, x)
  return np.round(grey * 255 / (LEVELS - 1)).astype(np.uint8).reshape(-1, 8, 8, 1)


def bits(nats) -> Estimate:
  return of_mean(process.bits_per_token(nats, 64))


def independent(train: np.ndarray, test: np.ndarray) -> np.ndarray:
  """-log p of pixels that do not know of each other, with one count added to each level."""
  counts = np.stack([np.bincount(column, minlength=LEVELS) + 1 for column in train.T])
  p = counts / counts.sum(1, keepdims=True)
  return -np.log(p[np.arange(64)[None], test]).sum(1)


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
  train, test = tokens(data.train), tokens(data.test)
  epsilon, width = chosen(train)
  found = predictors.exact(train, LEVELS, epsilon, width)
  known = {
    'uniform': bits(np.full(len(test), 64 * np.log(LEVELS))),
    'independent pixels': bits(independent(train, test)),
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
      x = pictures(np.asarray(draw(np.arange(args.count, dtype=np.uint32))))
      value = frechet.frechet_distance(features.extract(x).features, reference.moments)
      rows.append({'order': order, 'steps': steps, 'frechet': value.record()})
      print(f'{order}, {steps} calls: frechet {value}', flush=True)
      if order == 'first_hitting':
        strips.append(x[:10])
  hidden = np.where(np.arange(64) % 8 >= 4, LEVELS, test[:10])
  inpainted = reveal.sample(found.predictor, LEVELS, 64, np.arange(10), known=hidden).x
  strips += [pictures(hidden), pictures(np.asarray(inpainted)), data.test[:10]]
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
