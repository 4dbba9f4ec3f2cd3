"""Which denoisers are gradients: the asymmetry of their Jacobians against the noise.

`machines` are score machines of the digits, by their exact Jacobians at noisy held-out digits.
`networks` is a U-Net of the digits (`python -m gmm_diffusion.main --config=configs/digits.py
--mode=train --workdir=runs/digits` comes first), beside the exact denoiser of the training images;
and, where --others names state dicts of experiments/lib/small_ddpm.py, networks that others
trained. `gauge` turns an exact score, which keeps its marginals, and counts what that costs.

  python -m experiments.studies.geometry --workdir=runs/digits
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from experiments.lib import common, small_ddpm
from gmm_diffusion import samplers, specs
from gmm_diffusion.data import base, sources
from gmm_diffusion.denoisers import exact, geometry, score_machines
from gmm_diffusion.engine import build, drawing
from gmm_diffusion.maths import grids, marginals, noise, schedules
from gmm_diffusion.metrics.estimates import Estimate, of_mean, of_ratio
from gmm_diffusion.reports import plots
from gmm_diffusion.tasks.diffusion import jacobian
from gmm_diffusion.types import Time

MACHINES = {
  'IS': ('IS', {}),
  'ES': ('ES', {}),
  'LS 3': ('LS', {'size': 3}),
  'LS 5': ('LS', {'size': 5}),
  'ELS 3': ('ELS', {'size': 3}),
  'ELS 5': ('ELS', {'size': 5}),
  'bbELS 3': ('bbELS', {'size': 3}),
  'bbELS 5': ('bbELS', {'size': 5}),
  'consistent 3': ('consistent', {'size': 3}),
}
SIGNALS = (0.9, 0.5, 0.1)  # a^2
COLOURS = [*map('C{}'.format, range(10)), 'black', 'navy', 'gold']  # one for each model
GAUGES = (0.0, 1.0, 3.0)
STEPS = (20, 80, 320, 1280)


def machines(count: int, training: int) -> list[dict]:
  """The asymmetry of each machine at each signal level, over `count` noisy held-out digits."""
  data = sources.load(specs.Data())
  images = jnp.asarray(base.to_model(data.train[:training]))
  x0 = jnp.asarray(base.to_model(data.test[:count]))
  keys = noise.sample_keys(0, np.arange(count))
  eps = noise.at_step(keys, 0, x0.shape[1:]).normal
  rows = []
  for name, (kind, options) in tqdm(MACHINES.items(), desc='machines', unit='machine'):
    machine = score_machines.make(kind, images, **options)
    ask = jax.jit(lambda x, time, machine=machine: geometry.jacobians(machine, x, time))
    for signal in SIGNALS:
      time = Time(*(np.float32(v) for v in (0, signal**0.5, (1 - signal) ** 0.5)))
      K = np.asarray(ask(marginals.diffuse(x0, eps, time), time), np.float64)
      skew = np.sum((K - K.swapaxes(1, 2)) ** 2, (1, 2)) / 4
      size = np.sum(K**2, (1, 2))
      least = np.linalg.eigvalsh((K + K.swapaxes(1, 2)) / 2)[:, 0]
      trace = time.a * np.trace(K, axis1=1, axis2=2)
      found = {
        'asymmetry': of_ratio(skew, size),
        'dimension': of_mean(trace),
        'largest': of_mean(np.linalg.norm(K, 2, (1, 2))),
        'least eigenvalue': of_mean(least),
      }
      ratio = float(time.b / time.a)
      rows += [row(name, ratio, metric, value) for metric, value in found.items()]
  return rows


def row(name: str, ratio: float, metric: str, value: Estimate) -> dict:
  return {'model': name, 'ratio': ratio, 'metric': metric, **value.record()}


def of_levels(name: str, levels: list[jacobian.Level]) -> list[dict]:
  return [
    row(name, level.ratio, metric, getattr(level, metric))
    for level in levels
    for metric in jacobian.Level._fields[1:]
  ]


def networks(workdir: str, config: str, changes: list[str]) -> list[dict]:
  """A trained U-Net, and the exact denoiser of its training images, at the same noisy images."""
  spec = common.spec_of(config, changes)
  data = sources.load(spec.data)
  model = drawing.Model(spec, data, build.weights(spec, data, workdir))
  rows = of_levels('U-Net', jacobian.find(model))
  known = exact.empirical(jnp.asarray(base.to_model(data.train)))
  return rows + of_levels('training images', of_denoiser(known, spec.schedule, data))


def of_denoiser(denoiser, schedule, data) -> list[jacobian.Level]:
  """The levels of a denoiser without labels, at the images that jacobian.find asks about."""
  process = build.schedule(schedule)
  index = np.linspace(0, len(data.test) - 1, jacobian.COUNT).astype(int)
  x0 = jnp.asarray(base.to_model(data.test[index]))
  ids = np.arange(jacobian.COUNT, dtype=np.uint32)
  eps = noise.at_step(noise.sample_keys(0, ids), 0, x0.shape[1:]).normal
  ask = jax.jit(lambda x, time: geometry.measure(denoiser, x, time, ids, None, 1))
  out = []
  for t in tqdm(grids.nearest(process, jacobian.RATIOS), desc='levels', unit='level'):
    time = process.at(t)
    single = Time(*(np.float32(part) for part in time))
    found = jax.tree.map(np.asarray, ask(marginals.diffuse(x0, eps, single), single))
    out.append(jacobian.level(time, found))
  return out


def others(paths: list[str], folder: str) -> list[dict]:
  """Networks that others trained, at noisy test images of MNIST."""
  data = sources.load(specs.Data(name='tfds', dataset='mnist', path=folder))
  rows = []
  for path in paths:
    denoiser = small_ddpm.denoiser(small_ddpm.weights(path), clip=False)
    name = os.path.basename(path)
    rows += of_levels(name, of_denoiser(denoiser, specs.Schedule(), data))
  return rows


def gauged(count: int) -> list[dict]:
  """Unequal modes in the plane, drawn by DDIM with a turned score: the rms distance of samples to
  the nearest centre, and the share of the heaviest mode."""
  centres = np.array([[0.0, 1.0], [0.87, -0.5], [-0.87, -0.5]])
  weights, deviation = np.array([0.6, 0.3, 0.1]), 0.05
  exactly = exact.mixture(jnp.asarray(centres, jnp.float32), deviation**2, jnp.log(weights))
  turn = np.array([[0.0, 1.0], [-1.0, 0.0]])
  rows = []
  for c in GAUGES:
    for steps in STEPS:
      denoiser = geometry.gauge(exactly, turn, c) if c else exactly
      x = np.asarray(
        samplers.draw(
          denoiser,
          schedules.edm(sigma_max=20.0),
          (2,),
          ids=range(count),
          steps=steps,
          grid='karras',
        )
      )
      square = np.sum((x[:, None] - centres[None]) ** 2, -1)
      heavy, near = of_mean(square.argmin(1) == 0), of_mean(square.min(1))
      found = {
        'rms distance': Estimate(*(max(v, 0) ** 0.5 for v in near)),
        'heaviest mode': heavy,
      }
      rows += [{'c': c, 'steps': steps, 'metric': name, **v.record()} for name, v in found.items()]
  return rows


def draw(path: str, found: dict) -> None:
  """Asymmetry and dimension against the noise level."""
  figure, axes = plots.new(columns=3, size=(11, 3.6))
  for panel, metric in zip(axes[0], ('asymmetry', 'dimension')):
    rows = [one for part in ('machines', 'networks', 'others') for one in found.get(part, [])]
    rows = [one for one in rows if one['metric'] == metric]
    names = list(dict.fromkeys(one['model'] for one in rows))
    for name in names:
      own = sorted((one['ratio'], one['value']) for one in rows if one['model'] == name)
      known = name in MACHINES
      colour = COLOURS[names.index(name)]
      style = '--' if known else '-'
      panel.plot(*zip(*own), style, color=colour, marker='.', label=name, lw=1)
    panel.set(xscale='log', xlabel='noise level b / a', title=metric)
    panel.grid(alpha=0.3)
  axes[0, 0].set_yscale('symlog', linthresh=1e-3)
  axes[0, 1].set_yscale('symlog', linthresh=1)
  axes[0, 2].axis('off')
  axes[0, 2].legend(*axes[0, 1].get_legend_handles_labels(), fontsize=8, loc='center left')
  plots.png(figure, path)


def main():
  parser = common.parser(__doc__, 'runs/digits')
  common.model_arguments(parser)
  parser.add_argument('--count', type=int, default=64, help='images for the machines')
  parser.add_argument('--training', type=int, default=500, help='training images of the machines')
  parser.add_argument('--others', nargs='*', default=[], help='state dicts that others trained')
  parser.add_argument('--path', default='~/tensorflow_datasets', help='MNIST, for --others')
  args = parser.parse_args()
  found = {
    'machines': machines(args.count, args.training),
    'networks': networks(args.workdir, args.config, args.set),
    'gauge': gauged(4000),
  }
  if args.others:
    found['others'] = others(args.others, args.path)
  common.save(args.workdir, 'geometry', found)
  draw(os.path.join(args.workdir, 'geometry.png'), found)
  for part, rows in found.items():
    for one in rows:
      names = ' '.join(str(v) for k, v in one.items() if k not in ('value', 'interval'))
      print(f'{part}: {names} {Estimate(one["value"], *one["interval"])}')


if __name__ == '__main__':
  main()
