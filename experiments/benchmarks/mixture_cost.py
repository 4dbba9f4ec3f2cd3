"""The cost of a mixture over DDIM: plan and compilation once, and time in every step; ratios within
one run."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from experiments.lib import common
from gmm_diffusion import samplers, specs
from gmm_diffusion.denoisers import exact
from gmm_diffusion.engine import build, drawing
from gmm_diffusion.maths import grids

BATCH = 32
ALONE = (32, 32, 3)  # shape for which kernels are timed without a network


def _ready(spec, sampler, bind, weights, labels, shape):
  """Plans and compiles: (function that samples a batch, {'plan', 'compile'} seconds)."""
  process = build.schedule(spec.schedule)
  grid = grids.make(process, sampler.steps, sampler.grid, sampler.end)
  kernel = samplers.make(sampler.name, sampler.options(), process)
  start = time.perf_counter()
  plan = jax.block_until_ready(kernel.plan(grid, shape)[0])
  planned = time.perf_counter()
  ids = np.arange(len(labels), dtype=np.uint32)
  fn = jax.jit(
    lambda weights, grid, plan, seed: drawing.sample_batch(
      kernel, bind(weights), grid, plan, seed, ids, labels, shape
    )[0]
  )
  # on the device beforehand, as in a sampling loop
  arguments = jax.device_put(
    (
      weights,
      jax.tree.map(np.float32, grid),
      jax.tree.map(lambda leaf: jax.numpy.asarray(leaf), plan),
      np.uint32(0),
    )
  )
  compiled = fn.lower(*arguments).compile()
  return lambda: compiled(*arguments), {
    'plan': planned - start,
    'compile': time.perf_counter() - planned,
  }


def timed(
  spec,
  bind,
  weights,
  labels,
  shape,
  sampler: specs.Sampler,
  components: Sequence[int],
  repeats: int,
  what: str,
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
    _ready(spec, one, bind, weights, labels, shape)
    for _, one, _ in tqdm(cases, desc=f'compiling, {what}', unit='kernel')
  ]
  seconds = [[] for _ in cases]
  for fn, _ in ready:
    jax.block_until_ready(fn())
  for _ in tqdm(range(repeats), desc=f'timing, {what}', unit='round'):
    for times, (fn, _) in zip(seconds, ready):
      start = time.perf_counter()
      jax.block_until_ready(fn())
      times.append(time.perf_counter() - start)
  ddim = {one.eta: min(times) for (_, one, _), times in zip(cases, seconds) if one.name == 'ddim'}
  for (_, one, more), times, (_, once) in zip(cases, seconds, ready):
    best = min(times)
    rows.append(
      {
        'what': what,
        'sampler': one.name,
        'eta': one.eta,
        **more,
        'D': int(np.prod(shape)),
        'batch': len(labels),
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
  run: common.Run, sampler: specs.Sampler, components: Sequence[int], repeats: int
) -> tuple[str, list[dict[str, Any]]]:
  """Markdown and rows: with the model's network, and without any network at 32 x 32 x 3."""
  shape = build.sample_shape(run.spec, run.data)
  fits = [K for K in components if K <= np.prod(shape)]
  labels = drawing.labels_of(np.arange(BATCH), run.data, run.spec.sample.label)
  rows = timed(
    run.spec,
    build.denoiser(run.spec, run.data),
    run.weights,
    labels,
    shape,
    sampler,
    fits,
    repeats,
    'with the network',
  )
  rows += timed(
    run.spec,
    lambda weights: exact.gaussian(0.0, 0.25),
    (),
    labels,
    ALONE,
    sampler,
    components,
    repeats,
    'kernel alone',
  )
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
