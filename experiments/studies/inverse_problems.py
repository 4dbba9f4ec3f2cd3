"""Inverse problems without training: every method beside the exact posterior, and on a network.

`known` has data whose posterior is known: digits with a little noise, a mixture of Gaussians. A
true image is drawn from it and measured, and each method draws 16 images that fit the measurement.
An exact posterior has the true value of a pixel between the least and the largest of its 16 draws
in 15 of 17 cases, whatever the measurement. Samples are clipped to [-2, 2], which data do not
reach; `out of range` is how many pixels lay beyond, and is above 0 where a method runs away.

`model` restores the test images by a trained network: `python -m gmm_diffusion.main
--config=configs/digits.py --mode=train --workdir=runs/digits` comes first. `others` does so by a
network of MNIST that others trained, with several draws for each image.

  python -m experiments.studies.inverse_problems --workdir=runs/digits --only known model
  python -m experiments.studies.inverse_problems --workdir=runs/inverse_others --only others
    --weights=ddpm_mnist_607k.pt --path=~/tensorflow_datasets --count=24 --steps=50 --draws=8
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from experiments.lib import common, small_ddpm
from gmm_diffusion import samplers, specs
from gmm_diffusion.data import base, sources
from gmm_diffusion.denoisers import exact, inverse
from gmm_diffusion.engine import build, drawing, measuring
from gmm_diffusion.maths import grids, noise, schedules
from gmm_diffusion.metrics import estimates
from gmm_diffusion.samplers.run import initial_state, run
from gmm_diffusion.tasks.diffusion import restore

COMPONENTS, VARIANCE = 300, 0.02
TRAINING = 5000  # images of MNIST whose posterior is known exactly
PROBLEMS = {
  'inpainting, middle': dict(operator='mask', hidden='middle'),
  'inpainting, right half': dict(operator='mask', hidden='right'),
  'super-resolution, 2 x': dict(operator='box', factor=2),
  'blur of 1 pixel': dict(operator='blur', width=1.0),
}


def drawer(schedule, shape: tuple[int, ...], steps: int):
  """(y -> Denoiser, measurements [N, ...], ids [N]) -> samples [N, *shape], compiled for each
  denoiser."""
  grid = grids.make(schedule, steps, 'trailing')
  kernel = samplers.make('ddim', {'eta': 1.0})
  plan, _ = kernel.plan(grid, shape)

  @functools.partial(jax.jit, static_argnums=(0,))
  def draw(make, y, ids):
    keys = noise.sample_keys(0, ids)
    at = lambda n: noise.at_step(keys, n, shape)
    return run(kernel, make(y), grid, plan, initial_state(grid, keys, shape), at).x

  return draw


def known(count: int, steps: int, sigma: float, draws: int) -> list[dict]:
  """All problems and methods on data whose posterior is known."""
  data = sources.load(specs.Data())
  centres = base.to_model(data.train[:COMPONENTS])
  random = np.random.RandomState(0)
  true = centres[random.randint(COMPONENTS, size=count)]
  true = (true + np.sqrt(VARIANCE) * random.randn(*true.shape)).astype(np.float32)
  shape = true.shape[1:]
  draw, prior = (
    drawer(schedules.cosine(), shape, steps),
    exact.mixture(centres.reshape(COMPONENTS, *shape), VARIANCE),
  )
  rows = []
  for problem, settings in PROBLEMS.items():
    operator = measuring.operator(specs.Inverse(**settings), data.shape)
    y = operator.apply(jnp.asarray(true))
    y = np.asarray(y + sigma * random.randn(*y.shape) * (np.abs(y) > 0))
    repeated = np.repeat(y, draws, 0)
    for method in ('exact', *inverse.METHODS):
      if method == 'exact':
        make = lambda y: inverse.mixture(centres, VARIANCE, operator, y, sigma)
      else:
        make = lambda y: inverse.posterior(prior, operator, y, sigma, method)
      x = np.asarray(draw(make, repeated, np.arange(len(repeated), dtype=np.uint32)))
      x = np.nan_to_num(x.reshape(count, draws, *shape), nan=9.0)
      beyond, x = np.abs(x) > 2, np.clip(x, -2, 2)
      inside = (x.min(1) < true) & (true < x.max(1))
      every = tuple(range(1, true.ndim))
      found = {
        'coverage': estimates.of_mean(inside.mean(every)),
        'RMSE of the mean': estimates.of_mean(np.sqrt(np.mean((x.mean(1) - true) ** 2, every))),
        'spread': estimates.of_mean(x.std(1).mean(every)),
        'out of range': estimates.of_mean(beyond.mean((1, *(axis + 1 for axis in every)))),
      }
      rows += [row(problem, method, name, value) for name, value in found.items()]
  return rows


def row(problem, method, metric, value):
  return {'problem': problem, 'method': method, 'metric': metric, **value.record()}


def model(workdir: str, count: int, steps: int, sigma: float) -> list[dict]:
  """All problems and methods on the test images: by a trained network, and by the exact posterior
  of the training images."""
  spec = common.spec_of(
    'digits', ['sampler.name=ddim', 'sampler.eta=1.0', f'sampler.steps={steps}']
  )
  data = sources.load(spec.data)
  weights, rows = build.weights(spec, data, workdir), []
  for problem, settings in PROBLEMS.items():
    for method in ('exact', *inverse.METHODS):
      one = dataclasses.replace(spec, inverse=specs.Inverse(method=method, noise=sigma, **settings))
      arrays = weights
      if method == 'exact':
        one = dataclasses.replace(one, denoiser=dataclasses.replace(one.denoiser, name='empirical'))
        arrays = build.weights(one, data, workdir)
      made = drawing.prepare(one, one.sampler, data)
      x = drawing.Model(one, data, arrays).sample(made, count).x
      true = measuring.originals(one, data, np.arange(count))
      name = 'training images, exact' if method == 'exact' else method
      rows += [
        row(problem, name, key, estimates.of_mean(of(x, true)))
        for key, of in restore.METRICS.items()
      ]
  return rows


def others(args) -> list[dict]:
  """The problems and methods on test images of MNIST, by a network that others trained, and by the
  exact posterior of training images; several draws for each image."""
  data = sources.load(specs.Data(name='tfds', dataset='mnist', path=args.path))
  prior = small_ddpm.denoiser(small_ddpm.weights(args.weights))
  known, schedule, rows = base.to_model(data.train[:TRAINING]), schedules.linear(), []
  draw, random = drawer(schedule, data.shape, args.steps), np.random.RandomState(0)
  of, ids = np.repeat(np.arange(args.count), args.draws), np.arange(args.count * args.draws)
  true = data.test[: args.count]
  for problem in args.problems:
    own = specs.Inverse(**PROBLEMS[problem])
    operator = measuring.operator(own, data.shape)
    y = np.asarray(operator.apply(jnp.asarray(base.to_model(true))))
    y = (y + args.noise * random.randn(*y.shape) * (np.abs(y) > 0)).astype(np.float32)
    for method in ('exact', *inverse.METHODS):
      make = (
        (lambda y: inverse.empirical(known, operator, y, args.noise))
        if method == 'exact'
        else lambda y: inverse.posterior(prior, operator, y, args.noise, method)
      )
      title, parts = f'{problem}, {method}', np.array_split(ids, -(-len(ids) // args.batch))
      bar = tqdm(parts, desc=title, unit='batch', dynamic_ncols=True)
      x = np.concatenate([np.asarray(draw(make, y[of[part]], part)) for part in bar])
      name = f'{TRAINING} training images, exact' if method == 'exact' else method
      rows += _of_draws(problem, name, base.to_image(np.nan_to_num(x)), true, args.draws)
      print(table(rows[-4:]))
  return rows


def _of_draws(problem, name, x, true, draws):
  """Rows of uint8 draws [N draws, ...] of N images: what one of them has, what their mean has, and
  how often the true pixel is between the least and the largest."""
  each = {
    key: of(x, np.repeat(true, draws, 0)).reshape(-1, draws).mean(1)
    for key, of in restore.METRICS.items()
  }
  x = x.reshape(-1, draws, *true.shape[1:])
  mean = restore.METRICS['PSNR'](np.round(x.mean(1)).astype(np.uint8), true)
  inside = ((x.min(1) <= true) & (true <= x.max(1))).mean((1, 2, 3))
  found = {**each, 'PSNR of the mean': mean, 'coverage': inside}
  return [row(problem, name, key, estimates.of_mean(value)) for key, value in found.items()]


def table(rows: list[dict]) -> str:
  """Problems and methods as rows, metrics as columns."""
  metrics = list(dict.fromkeys(one['metric'] for one in rows))
  lines = [
    '| problem | method | ' + ' | '.join(metrics) + ' |',
    '|---|---|' + '---:|' * len(metrics),
  ]
  cells: dict[tuple[str, str], dict[str, str]] = {}
  for one in rows:
    text = str(estimates.Estimate(one['value'], *one['interval']))
    cells.setdefault((one['problem'], one['method']), {})[one['metric']] = text
  lines += [
    f'| {problem} | {method} | ' + ' | '.join(found[name] for name in metrics) + ' |'
    for (problem, method), found in cells.items()
  ]
  return '\n'.join(lines)


def main():
  parser = common.parser(__doc__, 'runs/digits')
  parser.add_argument('--count', type=int, default=100, help='images')
  parser.add_argument('--steps', type=int, default=100, help='of DDIM with eta 1')
  parser.add_argument('--noise', type=float, default=0.2, help='of the measurements')
  parser.add_argument('--draws', type=int, default=16, help='of each image, but of `model`')
  parser.add_argument('--problems', nargs='+', default=list(PROBLEMS), choices=PROBLEMS)
  parser.add_argument('--weights', default='', help='of `others`, the state dict')
  parser.add_argument('--path', default='', help='with it, the folder of tensorflow-datasets')
  parser.add_argument('--batch', type=int, default=32, help='samples of `others` at a time')
  parser.add_argument(
    '--only', nargs='+', default=['known', 'model'], choices=('known', 'model', 'others')
  )
  args = parser.parse_args()
  parts = {
    'known': lambda: known(args.count, args.steps, args.noise, args.draws),
    'model': lambda: model(args.workdir, args.count, args.steps, args.noise),
    'others': lambda: others(args),
  }
  found = {}
  for name in tqdm(args.only, desc='inverse problems', unit='part'):
    found[name] = parts[name]()
    print(table(found[name]))
  settings = {'count': args.count, 'steps': args.steps, 'noise': args.noise, 'draws': args.draws}
  common.save(args.workdir, 'inverse_problems', {**settings, **found})


if __name__ == '__main__':
  main()
