"""Images per second of a released architecture with random weights: samplers against each other and
the bare network.

ADM-256 in bfloat16, for a GPU or TPU; then a small network, for any machine:

  python -m experiments.benchmarks.released_speed --batch=32
  python -m experiments.benchmarks.released_speed --variant=runlocal --batch=4
"""

import dataclasses
import importlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lib import common
from gmm_diffusion import specs
from gmm_diffusion.data import base, sources
from gmm_diffusion.engine import build, drawing


def functions(
  spec: specs.Spec, data: base.Data, batch: int, names: Sequence[str]
) -> dict[str, Callable[[int], Any]]:
  """{sampler or 'bare network': seed -> a batch}, compiled at the first call."""
  labels = jnp.arange(batch, dtype=jnp.int32) % max(1, data.classes)
  weights = jax.jit(
    lambda: jax.tree.map(
      lambda x: 0.02 * jax.random.normal(jax.random.key(x.size), x.shape, spec.net.dtype),
      build.template(spec, data),
    )
  )()
  ids, module, out = np.arange(batch, dtype=np.uint32), build.net(spec, data), {}
  for name in names:
    made = drawing.prepare(spec, dataclasses.replace(spec.sampler, name=name), data)
    # weights and offsets enter as arguments: as constants they would be copied into the program
    fn = jax.jit(
      lambda weights, steps, made=made: (
        drawing.sample_batch(made.kernel, made.bind(weights), steps, ids, labels, made.shape)[1].x
      )
    )
    steps = drawing.Steps(made.grid, made.plan, 0)
    out[name] = lambda seed, fn=fn, steps=steps: fn(weights, steps._replace(seed=seed))
  x, times = jnp.zeros((batch,) + made.shape), jnp.asarray(made.grid.t, jnp.float32)

  @jax.jit
  def bare(weights, times):  # N calls of the network that need each other
    call = lambda x, t: (
      module.apply(weights['net'], x, jnp.full(len(x), t), labels)[..., : x.shape[-1]],
      None,
    )
    return jax.lax.scan(call, x, times)[0]

  return {**out, 'bare network': lambda seed: bare(weights, times + 0 * seed)}


def timed(runs: dict[str, Callable[[int], Any]], repeats: int) -> tuple[dict, dict]:
  """({name: seconds of the first call}, {name: seconds of others}), in alternation, so that the
  load of the machine matters little."""
  compiled, seconds = {}, {name: [] for name in runs}
  for repeat in range(repeats + 1):
    for name, fn in runs.items():
      start = time.perf_counter()
      jax.block_until_ready(fn(repeat))
      if repeat:
        seconds[name].append(time.perf_counter() - start)
      else:
        compiled[name] = time.perf_counter() - start
  return compiled, seconds


def main():
  parser = common.parser(__doc__, 'runs/released_speed')
  parser.add_argument('--config', default='imagenet256')
  parser.add_argument('--variant', default='adm')
  parser.add_argument('--steps', type=int, default=10)
  parser.add_argument('--batch', type=int, default=32)
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--dtype', default='bfloat16')
  parser.add_argument('--samplers', nargs='+', default=['ddim', 'ddim_gmm'])
  args = parser.parse_args()
  config = importlib.import_module('configs.' + args.config).get_config(args.variant)
  config.net.dtype, config.sampler.steps = args.dtype, args.steps
  spec = specs.from_config(config)
  data = sources.load(spec.data)
  compiled, seconds = timed(functions(spec, data, args.batch, args.samplers), args.repeats)
  rows = {
    name: {
      'images_per_second': args.batch / min(found),
      'over_bare': min(found) / min(seconds['bare network']),
      'first_call_seconds': compiled[name],
      'seconds': found,
    }
    for name, found in seconds.items()
  }
  for name, row in rows.items():
    print(
      f'{name:14s} {row["images_per_second"]:9.3f} images/s  {row["over_bare"]:.3f} x bare network '
      f' first call {row["first_call_seconds"]:.1f} s'
    )
  common.save(
    args.workdir,
    'released_speed',
    {**{key: value for key, value in vars(args).items() if key != 'workdir'}, 'rows': rows},
  )


if __name__ == '__main__':
  main()
