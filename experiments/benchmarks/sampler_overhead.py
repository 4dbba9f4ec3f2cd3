"""What a sampler costs beyond its network calls.

The limit is N bare network calls: a scan of the same length that feeds each output back in. All are
timed in alternation in one run, and the ratios of their fastest runs are printed, so that the load
of the machine matters little.

  python -m experiments.benchmarks.sampler_overhead
"""

import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lib import common
from gmm_diffusion import samplers
from gmm_diffusion.denoisers.network import network
from gmm_diffusion.maths import bands, grids, noise, schedules
from gmm_diffusion.nets import UNet
from gmm_diffusion.samplers import linear
from gmm_diffusion.samplers.run import run
from gmm_diffusion.tune import fit

SHAPE = (32, 32, 3)
CASES = {
  'ddim': ('ddim', {}),
  'ddim eta 1': ('ddim', dict(eta=1.0)),
  'ddim_gmm': ('ddim_gmm', dict(components=8, scale=1.0)),
  'ddim_gmm eta 1': ('ddim_gmm', dict(components=8, scale=1.0, eta=1.0)),
  'ddim_gmm eta 1, offsets of each step': (
    'ddim_gmm',
    dict(components=8, scale=1.0, eta=1.0, shared=False),
  ),
  'ddim_gmm eta 1, K 256': ('ddim_gmm', dict(components=256, scale=1.0, eta=1.0)),
  'a table, 1 band': ('tuned', dict(bands=1)),
  'a table, 6 bands': ('tuned', dict(bands=6)),
}


def of_table(schedule, grid, count):
  """The kernel of a table with all earlier predictions in every step, as tuning makes them."""
  table = fit.widened(linear.embed(samplers.make('ddim', {}, schedule), grid, (1,)), count)
  every = np.tril(np.full((len(grid.t),) * 2, 1e-6))[..., None]
  table = table._replace(weights=table.weights + every)
  return linear.linear(table, bands.make(SHAPE, count) if count > 1 else None)


def main():
  parser = common.parser(__doc__, 'runs/sampler_overhead')
  parser.add_argument('--steps', type=int, default=5)
  parser.add_argument('--batch', type=int, default=16)
  parser.add_argument('--channels', type=int, default=64)
  parser.add_argument('--repeats', type=int, default=9)
  parser.add_argument(
    '--cases', nargs='+', choices=list(CASES), default=list(CASES), help='which to time beside ddim'
  )
  args = parser.parse_args()
  schedule = schedules.linear()
  grid = grids.make(schedule, args.steps, 'trailing')
  net = UNet(
    3,
    channels=args.channels,
    multipliers=(1, 2, 2),
    blocks=2,
    attention=(16,),
    head_channels=2 * args.channels,
  )
  x = jax.random.normal(jax.random.key(0), (args.batch,) + SHAPE)
  params = jax.jit(net.init)(jax.random.key(0), x, jnp.zeros(args.batch))
  params = jax.tree.map(lambda p: p + 0.01, params)  # the output layer starts at zero
  times = jnp.asarray(grid.t, jnp.float32)

  @jax.jit
  def bare(params, x):
    body = lambda x, t: (net.apply(params, x, jnp.broadcast_to(t, (len(x),))), None)
    return jax.lax.scan(body, x, times)[0]

  def sampler(name, options):
    if name == 'tuned':
      kernel = of_table(schedule, grid, options['bands'])
    else:
      kernel = samplers.make(name, options)
    plan, _ = kernel.plan(grid, SHAPE)
    plan = jax.device_put(plan)

    @jax.jit
    def fn(params, x, plan):
      keys = noise.sample_keys(0, jnp.arange(args.batch))
      denoiser = network(lambda x, t, cond: net.apply(params, x, t), schedule)
      return run(kernel, denoiser, grid, plan, x, lambda n: noise.at_step(keys, n, SHAPE)).x

    return lambda: fn(params, x, plan)

  runs = {
    'bare network calls': lambda: bare(params, x),
    **{label: sampler(*case) for label, case in CASES.items() if label in ('ddim', *args.cases)},
  }
  compile_seconds, seconds = {}, {label: [] for label in runs}
  for label, fn in runs.items():
    start = time.perf_counter()
    jax.block_until_ready(fn())
    compile_seconds[label] = time.perf_counter() - start
  for _ in range(args.repeats):
    for label, fn in runs.items():
      start = time.perf_counter()
      jax.block_until_ready(fn())
      seconds[label].append(time.perf_counter() - start)
  best = {label: min(values) for label, values in seconds.items()}
  rows = []
  for label in runs:
    rows.append(
      {
        'run': label,
        'seconds': best[label],
        'over_bare': best[label] / best['bare network calls'],
        'over_ddim': best[label] / best['ddim'],
        'median_over_bare': float(
          np.median(np.array(seconds[label]) / np.array(seconds['bare network calls']))
        ),
        'compile_seconds': compile_seconds[label],
      }
    )
    print(
      f'{label:40s} {best[label]:8.3f} s   {rows[-1]["over_bare"]:.4f} x bare   '
      f'{rows[-1]["over_ddim"]:.4f} x ddim   (median of pairs {rows[-1]["median_over_bare"]:.4f})  '
      f' first call {compile_seconds[label]:.1f} s'
    )
  common.save(
    args.workdir,
    'sampler_overhead',
    {
      'steps': args.steps,
      'batch': args.batch,
      'channels': args.channels,
      'repeats': args.repeats,
      'rows': rows,
    },
  )


if __name__ == '__main__':
  main()
