"""Masked diffusion of the digits as 64 tokens of 17 levels, by the exact predictor of the training
images: epsilon and width of the predictor, chosen on a part of these; what a published objective
for the steps measures; and restoration by anchors beside the exact posterior.

  python -m experiments.studies.masked --workdir=runs/masked

Samples by the number of calls, and bits, are those of --mode=evaluate of configs/masked.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from experiments.lib import common
from gmm_diffusion import specs
from gmm_diffusion.data import sources
from gmm_diffusion.discrete import pixels, posterior, predictors
from gmm_diffusion.metrics import restoration
from gmm_diffusion.metrics.estimates import of_mean

LEVELS, CHOOSE, DRAWS = 17, 300, 16
EPSILONS, WIDTHS = (0.01, 0.03, 0.1, 0.2), (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)


def chosen(train: np.ndarray) -> tuple[float, float]:
  """epsilon and width with the fewest bits on the last CHOOSE training images."""
  known, held = train[:-CHOOSE], train[-CHOOSE:]
  cost = {}
  for epsilon in EPSILONS:
    for width in WIDTHS:
      found = predictors.exact(known, LEVELS, epsilon, width)
      cost[epsilon, width] = -float(np.mean(found.log_prob(held)))
  return min(cost, key=cost.__getitem__)


def correlations(predictor, train: np.ndarray, steps: int = 8, count: int = 512) -> list[float]:
  """The factors Phi of step 1 to steps - 1 where LSD's objective for a student [2509.19962, eq. 6],
  with squares, is least: E<s, s*> / E|s|^2 of the scores s at a state of the student and s* at one
  of the teacher, both exact. Anything but 1 says that the objective is not about errors."""
  random, out = np.random.RandomState(0), []
  for step in range(1, steps):
    scores = []
    for _ in ('student', 'teacher'):
      x = train[random.randint(len(train), size=count)]
      hidden = random.rand(*x.shape) < 1 - step / steps
      mu = np.exp(np.asarray(predictor(np.where(hidden, LEVELS, x), None), np.float64))
      scores.append(np.where(hidden[..., None], mu, 0))
    out.append(float(np.sum(scores[0] * scores[1]) / np.sum(scores[0] ** 2)))
  return out


def box(x):
  """Means of 2 x 2 pixels of images [B, 64] in [-1, 1]."""
  return x.reshape(len(x), 4, 2, 4, 2).mean((2, 4)).reshape(len(x), -1)


def left(x):
  """The left half of images [B, 64]."""
  return x.reshape(len(x), 8, 8)[:, :, :4].reshape(len(x), -1)


def restored(predictor, train: np.ndarray, test: np.ndarray, sigma: float, steps: int) -> list:
  """Rows of PSNR and more: anchors, and the exact posterior of the training images (each with
  probability proportional to N(y; A x, sigma^2), as they are), DRAWS draws of each test image."""
  random, rows = np.random.RandomState(1), []
  truth = pixels.pictures(test, LEVELS, (8, 8, 1))
  every = tuple(range(1, 4))
  for problem, measure in (('2 x super-resolution', box), ('right half hidden', left)):
    clean = measure(posterior.values(test, LEVELS))
    y = (clean + sigma * random.randn(*clean.shape)).astype(np.float32)
    distance = ((y[:, None] - measure(posterior.values(train, LEVELS))[None]) ** 2).sum(-1)
    weights = special.softmax(-distance / (2 * sigma**2), 1)
    exact = np.stack([train[random.choice(len(train), DRAWS, p=w / w.sum())] for w in weights])
    repeated = jnp.asarray(y.repeat(DRAWS, 0))
    found = {'exact posterior of the training images': exact}
    for inner in (100, 0):
      draw = jax.jit(
        lambda ids, y, measure=measure, inner=inner: posterior.anchored(
          predictor, LEVELS, 64, measure, y, ids, 0, steps, inner
        )
      )
      x = np.asarray(draw(np.arange(len(repeated), dtype=np.uint32), repeated))
      found[f'anchors, {inner} gradient steps'] = x.reshape(len(test), DRAWS, -1)
    for method, x in found.items():
      shown = pixels.pictures(x.reshape(-1, 64), LEVELS, (8, 8, 1)).reshape(
        len(test), DRAWS, 8, 8, 1
      )
      of_each = np.mean([restoration.psnr(shown[:, d], truth) for d in range(DRAWS)], 0)
      misfit = np.abs(measure(posterior.values(x.reshape(-1, 64), LEVELS)) - y.repeat(DRAWS, 0))
      inside = (x.min(1) <= test) & (test <= x.max(1))
      values = {
        'PSNR': of_mean(np.minimum(of_each, 80)),
        'PSNR of the mean': of_mean(restoration.psnr(shown.astype(float).mean(1), truth)),
        'spread': of_mean(shown.astype(float).std(1).mean(every) / 127.5),
        'within the draws': of_mean(inside.mean(1)),
        'misfit': of_mean(misfit.reshape(len(test), -1).mean(1)),
      }
      for metric, value in values.items():
        rows.append({'problem': problem, 'method': method, 'metric': metric, **value.record()})
      shown_values = '  '.join(f'{name} {value}' for name, value in values.items())
      print(f'{problem}, {method}: {shown_values}', flush=True)
  return rows


def main():
  parser = common.parser(__doc__, 'runs/masked')
  parser.add_argument('--count', type=int, default=100, help='test images that are restored')
  parser.add_argument('--noise', type=float, default=0.1, help='of their measurements')
  parser.add_argument('--steps', type=int, default=16, help='calls of anchors')
  args = parser.parse_args()
  data = sources.load(specs.Data())
  train, test = (np.asarray(pixels.tokens(x, LEVELS)) for x in (data.train, data.test))
  epsilon, width = chosen(train)
  print(f'epsilon {epsilon:g}, width {width:g}')
  found = predictors.exact(train, LEVELS, epsilon, width)
  phi = correlations(jax.jit(found.predictor), train)
  print('LSD, factor of each step: ' + ', '.join(f'{one:.2f}' for one in phi))
  rows = restored(found.predictor, train, test[: args.count], args.noise, args.steps)
  settings = {'epsilon': epsilon, 'width': width, 'count': args.count, 'noise': args.noise}
  common.save(args.workdir, 'masked_exact', {**settings, 'draws': DRAWS, 'lsd': phi, 'rows': rows})


if __name__ == '__main__':
  main()
