"""Inverse problems without training: every method beside the exact posterior, and on a network.

`known` has data whose posterior is known: digits with a little noise, a mixture of Gaussians. A
true image is drawn from it and measured, and each method draws 16 images that fit the measurement.
An exact posterior has the true value of a pixel between the least and the largest of its 16 draws
in 15 of 17 cases, whatever the measurement. Samples are clipped to [-2, 2], which data do not
reach; `out of range` is how many pixels lay beyond, and is above 0 where a method runs away.

`model` restores the test images by a trained network: `python -m gmm_diffusion.main
--config=configs/digits.py --mode=train --workdir=runs/digits` comes first.

  python -m experiments.studies.inverse_problems --workdir=runs/digits
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from experiments.lib import common
from gmm_diffusion import samplers, specs
from gmm_diffusion.data import base, sources
from gmm_diffusion.denoisers import exact, inverse
from gmm_diffusion.engine import build, drawing, measuring
from gmm_diffusion.maths import grids, noise, schedules
from gmm_diffusion.metrics import estimates
from gmm_diffusion.samplers.run import initial_state, run
from gmm_diffusion.tasks.diffusion import restore

DRAWS, COMPONENTS, VARIANCE = 16, 300, 0.02
PROBLEMS = {
  'inpainting, middle': dict(operator='mask', hidden='middle'),
  'inpainting, right half': dict(operator='mask', hidden='right'),
  'super-resolution, 2 x': dict(operator='box', factor=2),
  'blur of 1 pixel': dict(operator='blur', width=1.0),
}


def known(count: int, steps: int, sigma: float) -> list[dict]:
  """All problems and methods on data whose posterior is known."""
  data = sources.load(specs.Data())
  centres = base.to_model(data.train[:COMPONENTS])
  random = np.random.RandomState(0)
  true = centres[random.randint(COMPONENTS, size=count)]
  true = (true + np.sqrt(VARIANCE) * random.randn(*true.shape)).astype(np.float32)
  schedule = schedules.cosine()
  grid = grids.make(schedule, steps, 'trailing')
  kernel, shape = samplers.make('ddim', {'eta': 1.0}), true.shape[1:]
  plan, _ = kernel.plan(grid, shape)
  prior = exact.mixture(centres.reshape(COMPONENTS, *shape), VARIANCE)

  @functools.partial(jax.jit, static_argnums=(0,))
  def draw(make, y, ids):
    keys = noise.sample_keys(0, ids)
    at = lambda n: noise.at_step(keys, n, shape)
    return run(kernel, make(y), grid, plan, initial_state(grid, keys, shape), at).x

  rows = []
  for problem, settings in PROBLEMS.items():
    operator = measuring.operator(specs.Inverse(**settings), data.shape)
    y = operator.apply(jnp.asarray(true))
    y = np.asarray(y + sigma * random.randn(*y.shape) * (np.abs(y) > 0))
    repeated = np.repeat(y, DRAWS, 0)
    for method in ('exact', *inverse.METHODS):
      if method == 'exact':
        make = lambda y: inverse.mixture(centres, VARIANCE, operator, y, sigma)
      else:
        make = lambda y: inverse.posterior(prior, operator, y, sigma, method)
      x = np.asarray(draw(make, repeated, np.arange(len(repeated), dtype=np.uint32)))
      x = np.nan_to_num(x.reshape(count, DRAWS, *shape), nan=9.0)
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
  parser.add_argument('--only', choices=('known', 'model'), help='one of the two parts')
  args = parser.parse_args()
  parts = {
    'known': lambda: known(args.count, args.steps, args.noise),
    'model': lambda: model(args.workdir, args.count, args.steps, args.noise),
  }
  found = {}
  for name in tqdm([args.only] if args.only else parts, desc='inverse problems', unit='part'):
    found[name] = parts[name]()
    print(table(found[name]))
  settings = {'count': args.count, 'steps': args.steps, 'noise': args.noise, 'draws': DRAWS}
  common.save(args.workdir, 'inverse_problems', {**settings, **found})


if __name__ == '__main__':
  main()
