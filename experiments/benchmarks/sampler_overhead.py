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
BARE = 'bare network calls'
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


def kernel_of(name, options, schedule, grid):
  if name == 'tuned':
    return of_table(schedule, grid, options['bands'])
  return samplers.make(name, options)


def network_of(batch, channels):
  """A U-Net, its parameters, and a batch of noise."""
  net = UNet(
    3,
    channels=channels,
    multipliers=(1, 2, 2),
    blocks=2,
    attention=(16,),
    head_channels=2 * channels,
  )
  x = jax.random.normal(jax.random.key(0), (batch,) + SHAPE)
  params = jax.jit(net.init)(jax.random.key(0), x, jnp.zeros(batch))
  params = jax.tree.map(lambda p: p + 0.01, params)  # the output layer starts at zero
  return net, params, x


def bare(net, params, x, grid):
  """A function that calls the network alone."""
  times = jnp.asarray(grid.t, jnp.float32)

  @jax.jit
  def fn(params, x):
    body = lambda x, t: (net.apply(params, x, jnp.broadcast_to(t, (len(x),))), None)
    return jax.lax.scan(body, x, times)[0]

  return lambda: fn(params, x)


def sampling(kernel, net, params, x, schedule, grid):
  """A function that samples a batch."""
  plan, _ = kernel.plan(grid, SHAPE)
  plan = jax.device_put(plan)

  @jax.jit
  def fn(params, x, plan):
    keys = noise.sample_keys(0, jnp.arange(len(x)))
    denoiser = network(lambda x, t, cond: net.apply(params, x, t), schedule)
    return run(kernel, denoiser, grid, plan, x, lambda n: noise.at_step(keys, n, SHAPE)).x

  return lambda: fn(params, x, plan)


def timed(runs, repeats):
  """({run: seconds of the first call}, {run: seconds of the others}), in alternation."""
  compile_seconds, seconds = {}, {label: [] for label in runs}
  for repeat in range(repeats + 1):
    for label, fn in runs.items():
      start = time.perf_counter()
      jax.block_until_ready(fn())
      if repeat:
        seconds[label].append(time.perf_counter() - start)
      else:
        compile_seconds[label] = time.perf_counter() - start
  return compile_seconds, seconds


def row_of(label, compile_seconds, seconds):
  best = {name: min(values) for name, values in seconds.items()}
  pairs = np.array(seconds[label]) / np.array(seconds[BARE])
  return {
    'run': label,
    'seconds': best[label],
    'over_bare': best[label] / best[BARE],
    'over_ddim': best[label] / best['ddim'],
    'median_over_bare': float(np.median(pairs)),
    'compile_seconds': compile_seconds[label],
  }


def show(row):
  print(
    f'{row["run"]:40s} {row["seconds"]:8.3f} s   {row["over_bare"]:.4f} x bare   '
    f'{row["over_ddim"]:.4f} x ddim   (median of pairs {row["median_over_bare"]:.4f})  '
    f' first call {row["compile_seconds"]:.1f} s'
  )


def arguments():
  parser = common.parser(__doc__, 'runs/sampler_overhead')
  parser.add_argument('--steps', type=int, default=5)
  parser.add_argument('--batch', type=int, default=16)
  parser.add_argument('--channels', type=int, default=64)
  parser.add_argument('--repeats', type=int, default=9)
  parser.add_argument(
    '--cases', nargs='+', choices=list(CASES), default=list(CASES), help='which to time beside ddim'
  )
  return parser.parse_args()


def main():
  args = arguments()
  schedule = schedules.linear()
  grid = grids.make(schedule, args.steps, 'trailing')
  net, params, x = network_of(args.batch, args.channels)
  runs = {BARE: bare(net, params, x, grid)}
  for label, case in CASES.items():
    if label in ('ddim', *args.cases):
      kernel = kernel_of(*case, schedule, grid)
      runs[label] = sampling(kernel, net, params, x, schedule, grid)
  compile_seconds, seconds = timed(runs, args.repeats)
  rows = [row_of(label, compile_seconds, seconds) for label in runs]
  for row in rows:
    show(row)
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
