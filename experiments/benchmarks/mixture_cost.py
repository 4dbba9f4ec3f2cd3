"""The cost of a mixture over DDIM: plan and compilation once, and time in every step; ratios within
one run.

  python -m experiments.benchmarks.mixture_cost --config=digits --workdir=runs/digits
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from experiments.lib import common
from gmm_diffusion import samplers, specs
from gmm_diffusion.denoisers import exact
from gmm_diffusion.engine import build, drawing
from gmm_diffusion.maths import schedules

BATCH = 32
ALONE = (32, 32, 3)  # shape for which kernels are timed without a network


class Place(NamedTuple):
  """What kernels are timed on: words for it, a denoiser (weights -> Denoiser) with its weights, the
  labels of a batch, the shape of one sample."""

  what: str
  schedule: schedules.Schedule
  bind: Any
  weights: Any
  labels: np.ndarray
  shape: tuple[int, ...]


def _ready(place, sampler):
  """Plans and compiles: (function that samples a batch, {'plan', 'compile'} seconds)."""
  process, bind, labels, shape = place.schedule, place.bind, place.labels, place.shape
  grid = build.grid(process, sampler)
  kernel = samplers.make(sampler.name, sampler.options(), process)
  start = time.perf_counter()
  plan = jax.block_until_ready(kernel.plan(grid, shape)[0])
  planned = time.perf_counter()
  ids = np.arange(len(labels), dtype=np.uint32)
  fn = jax.jit(
    lambda weights, steps: (
      drawing.sample_batch(kernel, bind(weights), steps, ids, labels, shape)[1].x
    )
  )
  # on the device beforehand, as in a sampling loop
  arguments = jax.device_put(
    (
      place.weights,
      drawing.Steps(
        jax.tree.map(np.float32, grid),
        jax.tree.map(lambda leaf: jax.numpy.asarray(leaf), plan),
        np.uint32(0),
      ),
    )
  )
  compiled = fn.lower(*arguments).compile()
  return lambda: compiled(*arguments), {
    'plan': planned - start,
    'compile': time.perf_counter() - planned,
  }


def timed(
  place: Place, sampler: specs.Sampler, components: Sequence[int], repeats: int
) -> list[dict[str, Any]]:
  """Times DDIM and mixtures of K components at eta 0 and 1 (K = 8 also with offsets of each step),
  in alternation; the fastest of `repeats`."""
  rows, cases = [], []
  for eta in (0.0, 1.0):
    cases.append((f'ddim, eta {eta:g}', dataclasses.replace(sampler, name='ddim', eta=eta), {}))
    for K in components:
      for shared in (True, False) if K == 8 else (True,):
        one = dataclasses.replace(
          sampler, name='ddim_gmm', covariance='exact', eta=eta, components=K, shared=shared
        )
        cases.append((f'K {K}, eta {eta:g}', one, {'K': K, 'shared': shared}))
  ready = [
    _ready(place, one) for _, one, _ in tqdm(cases, desc=f'compiling, {place.what}', unit='kernel')
  ]
  seconds = [[] for _ in cases]
  for fn, _ in ready:
    jax.block_until_ready(fn())
  for _ in tqdm(range(repeats), desc=f'timing, {place.what}', unit='round'):
    for times, (fn, _) in zip(seconds, ready):
      start = time.perf_counter()
      jax.block_until_ready(fn())
      times.append(time.perf_counter() - start)
  ddim = {one.eta: min(times) for (_, one, _), times in zip(cases, seconds) if one.name == 'ddim'}
  for (_, one, more), times, (_, once) in zip(cases, seconds, ready):
    best = min(times)
    rows.append(
      {
        'what': place.what,
        'sampler': one.name,
        'eta': one.eta,
        **more,
        'D': int(np.prod(place.shape)),
        'batch': len(place.labels),
        'steps': one.steps,
        'plan_seconds': once['plan'],
        'compile_seconds': once['compile'],
        'step_ms': 1e3 * best / one.steps,
        'over_ddim': best / ddim[one.eta],
        'median_over_ddim': float(
          np.median(times)
          / np.median(
            seconds[[c[1].eta == one.eta and c[1].name == 'ddim' for c in cases].index(True)]
          )
        ),
      }
    )
  return rows


def table(
  subject: common.Subject, sampler: specs.Sampler, components: Sequence[int], repeats: int
) -> tuple[str, list[dict[str, Any]]]:
  """Markdown and rows: with the model's network, and without any network at 32 x 32 x 3."""
  shape = build.sample_shape(subject.spec, subject.data)
  fits = [K for K in components if K <= np.prod(shape)]
  labels = drawing.labels_of(subject.spec, subject.data, np.arange(BATCH))
  process, bind = build.schedule(subject.spec.schedule), build.denoiser(subject.spec, subject.data)
  network = Place('with the network', process, bind, subject.model.weights, labels, shape)
  alone = Place('kernel alone', process, lambda _: exact.gaussian(0.0, 0.25), (), labels, ALONE)
  rows = timed(network, sampler, fits, repeats) + timed(alone, sampler, components, repeats)
  lines = [
    '| | D | eta | kernel | plan, s | compilation, s | a step, ms | over DDIM |',
    '|---|---:|---:|---|---:|---:|---:|---:|',
  ]
  for row in rows:
    kernel = (
      'DDIM'
      if 'K' not in row
      else f'K = {row["K"]}, offsets {"shared" if row["shared"] else "of each step"}'
    )
    lines.append(
      f'| {row["what"]} | {row["D"]} | {row["eta"]:g} | {kernel} | {row["plan_seconds"]:.2f} | '
      f'{row["compile_seconds"]:.2f} | {row["step_ms"]:.3g} | {row["over_ddim"]:.3f} |'
    )
  head = (
    f'Batch {BATCH}, {sampler.steps} steps, covariance exact; the fastest of {repeats} runs in '
    'alternation; the first plan includes its compilation'
  )
  return head + '\n\n' + '\n'.join(lines), rows


def main():
  parser = common.parser(__doc__, 'runs/digits')
  common.model_arguments(parser)
  parser.add_argument('--components', type=int, nargs='+', default=[2, 8, 64])
  parser.add_argument('--repeats', type=int, default=20)
  args = parser.parse_args()
  spec = common.spec_of(args.config, args.set)
  subject = common.load_subject(spec, args.workdir, BATCH)
  text, rows = table(subject, spec.sampler, args.components, args.repeats)
  print(text)
  common.save(args.workdir, 'mixture_cost', {'repeats': args.repeats, 'rows': rows})


if __name__ == '__main__':
  main()
