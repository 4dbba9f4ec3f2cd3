"""Images per second of a released architecture with random weights: samplers against each other and
the bare network.

  # ADM-256 in bfloat16, for a GPU or TPU:
  python -m experiments.benchmarks.released_speed --batch=32
  # small, anywhere:
  python -m experiments.benchmarks.released_speed --variant=runlocal --batch=4
"""

import importlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lib import common
from gmm_diffusion import specs
from gmm_diffusion.data import sources
from gmm_diffusion.engine import build, drawing


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
  shape, labels = (
    build.sample_shape(spec, data),
    jnp.arange(args.batch, dtype=jnp.int32) % max(1, data.classes),
  )
  weights = jax.jit(
    lambda: jax.tree.map(
      lambda x: 0.02 * jax.random.normal(jax.random.key(x.size), x.shape, spec.net.dtype),
      build.template(spec, data),
    )
  )()
  ids, x = np.arange(args.batch, dtype=np.uint32), jnp.zeros((args.batch,) + shape)
  module = build.net(spec, data)

  def bare(weights, times):  # N calls of the network that need each other
    call = lambda x, t: (
      module.apply(weights['net'], x, jnp.full(len(x), t), labels)[..., : shape[-1]],
      None,
    )
    return jax.lax.scan(call, x, times)[0]

  runs = {}
  for name in args.samplers:
    sampler = specs.Sampler(**{**vars(spec.sampler), 'name': name})
    bind, kernel, grid, plan, _ = drawing.prepare(spec, sampler, data)
    # weights and offsets enter as arguments: as constants they would be copied into the program
    fn = jax.jit(
      lambda weights, plan, seed, bind=bind, kernel=kernel, grid=grid: drawing.sample_batch(
        kernel, bind(weights), grid, plan, seed, ids, labels, shape
      )[0]
    )
    runs[name] = lambda seed, fn=fn, plan=plan: fn(weights, plan, seed)
    times = jnp.asarray(grid.t, jnp.float32)
  bare = jax.jit(bare)
  runs['bare network'] = lambda seed: bare(weights, times + 0 * seed)

  compiled, seconds = {}, {name: [] for name in runs}
  for name, fn in runs.items():
    start = time.perf_counter()
    jax.block_until_ready(fn(0))
    compiled[name] = time.perf_counter() - start
  for repeat in range(
    args.repeats
  ):  # in alternation, so that the load of the machine matters little
    for name, fn in runs.items():
      start = time.perf_counter()
      jax.block_until_ready(fn(repeat + 1))
      seconds[name].append(time.perf_counter() - start)
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
