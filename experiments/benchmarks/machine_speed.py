"""Cost of the ELS machine: our forms against the bare matrix products of its distances, and against
the formula as published.

For each noise level a batch of 8 queries meets all k x k patches of 5,000 images, 32 x 32 x 3 each.
Timed on --measured images and scaled, the cost being linear in them; ratios are of the fastest of
--repeats runs within one process, and beside them those of processor time, which other work on the
machine disturbs less.

  bare     the matrix products of unrolled patches alone, each block's result dropped
  forms    the whole machine with each form of maths/patches.py; 'chosen' is what it takes by itself
  direct   the public code's formula, here only and on --direct images with one query: differences
           of all pairs of patches, squared and summed, one operation at a time as that code runs
  fused    the same formula, compiled, so that the differences are never stored

  python -m experiments.benchmarks.machine_speed
"""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lib import common
from gmm_diffusion.denoisers import score_machines
from gmm_diffusion.maths import patches
from gmm_diffusion.types import Time

SIDE, CHANNELS, NOISE = 32, 3, Time(np.float32(0), np.float32(0.8), np.float32(0.6))


def bare(size, x, images):
  """The products of all patches of the queries with those of the images, 8 images at a time, one
  query at a time."""
  units = images.reshape((-1, 8) + images.shape[1:])

  def query(x):
    left = patches.windows(patches.pad(x, size, 'circular'), size).reshape(SIDE * SIDE, -1)

    def block(total, images):
      right = patches.windows(images, size).reshape(-1, left.shape[1])
      product = jnp.matmul(right, left.T, precision=jax.lax.Precision.HIGHEST)
      return total + product[0], None  # a use of the result that costs nothing

    return jax.lax.scan(block, jnp.zeros(SIDE * SIDE), units)[0]

  return jax.lax.map(query, x)


def machine(size, form, x, images):
  """The whole machine."""
  parts = score_machines.equivariant_local(images.shape[1:], size, 'circular', 'interior', form)
  replaced = lambda *_: parts
  return score_machines.of(replaced, images, ((float('inf'), size),))(x, NOISE, None).x0


def posterior(logits, values):
  """Softmax over units [J, P], and the mean of values [J, C] under it."""
  weights = jnp.exp(logits - jnp.max(logits, 0)[None])
  return (weights.T @ values) / jnp.sum(weights, 0)[:, None]


def formula(
  size, x, images, at_once=4
):  # it divides the number of patches of an image, an even number squared
  """E[x_0 | x] of one query [1, H, W, C] by differences of all pairs of patches, some units at a
  time."""
  left = patches.windows(patches.pad(x[0], size, 'circular'), size).reshape(SIDE * SIDE, -1)
  units = patches.windows(images, size).reshape(-1, left.shape[1])
  values = patches.centres(images, size).reshape(-1, CHANNELS)

  def some(part):
    difference = left[None] - NOISE.a * part[:, None]
    return -jnp.sum(difference**2, -1) / (2 * NOISE.b**2)

  parts = units.reshape(-1, at_once, units.shape[1])
  traced = isinstance(parts, jax.core.Tracer)
  logits = jax.lax.map(some, parts) if traced else jnp.stack([some(part) for part in parts])
  return posterior(logits.reshape(len(units), -1), values).reshape(1, SIDE, SIDE, CHANNELS)


def functions(size):
  """{run: function of queries and images}."""
  return {
    'bare': functools.partial(bare, size),
    **{form: functools.partial(machine, size, form) for form in patches.FORMS},
    'fused': functools.partial(formula, size),
    'direct': functools.partial(formula, size),
  }


def timed(compiled, inputs, repeats):
  """({run: result}, {run: seconds}, {run: seconds of processor time}), the fastest, in alternation;
  for one query and one image."""
  results, seconds, busy = {}, {name: [] for name in compiled}, {name: [] for name in compiled}
  for _ in range(repeats):
    for name, fn in compiled.items():
      x, images = inputs[name]
      count = len(x) * len(images)
      start, used = time.perf_counter(), time.process_time()
      results[name] = jax.block_until_ready(fn(x, images))
      seconds[name].append((time.perf_counter() - start) / count)
      busy[name].append((time.process_time() - used) / count)
  best, least = ({name: min(values) for name, values in table.items()} for table in (seconds, busy))
  return results, best, least


def check(size, x, images, results):
  """That the published formula gives what the machine does."""
  same = jax.jit(functools.partial(machine, size, ''))(x, images)
  np.testing.assert_allclose(results['direct'], same, atol=1e-3)
  np.testing.assert_allclose(results['fused'], same, atol=1e-3)


def shapes(size):
  """Of a query with its margin, and of an image."""
  return (SIDE + size - 1,) * 2 + (CHANNELS,), (SIDE, SIDE, CHANNELS)


def row_of(size, name, fn, best, least, args):
  memory = 0 if name == 'direct' else fn.memory_analysis().temp_size_in_bytes
  return {
    'size': size,
    'run': name,
    'chosen': name == patches.cheapest(*shapes(size), size),
    'seconds': best[name] * args.images * args.queries,
    'over_bare': best[name] / best['bare'],
    'cpu_over_bare': least[name] / least['bare'],
    'direct_over': best['direct'] / best[name],
    'cpu_direct_over': least['direct'] / least[name],
    'temporary_bytes': memory,
  }


def show(row, args):
  print(
    f'k = {row["size"]:2d}  {row["run"]:8s}{"*" if row["chosen"] else " "} '
    f'{row["seconds"]:9.1f} s for {args.images} images and {args.queries} queries   '
    f'{row["over_bare"]:7.3f} x bare   direct is {row["direct_over"]:6.1f} x this   '
    f'(of processor time {row["cpu_over_bare"]:.3f} and {row["cpu_direct_over"]:.1f})   '
    f'{row["temporary_bytes"] / 2**20:7.1f} MiB',
    flush=True,
  )


def rates_of(size, best, least, images):
  """The rates of the bare products, and what a query of so many images takes."""
  pairs = SIDE**2 * (SIDE - size + 1) ** 2
  operations = 2 * size**2 * CHANNELS * pairs
  return {
    'size': size,
    'run': 'rates',
    'bare_gflops': operations * 1e-9 / best['bare'],
    'bare_gflops_a_core': operations * 1e-9 / least['bare'],
    'tflop_a_query': operations * images * 1e-12,
    'gb_of_distances_a_query': pairs * images * 4e-9,
  }


def show_rates(rates, images):
  size = rates['size']
  strips = patches.cost('strips', *shapes(size), size)
  print(
    f'k = {size:2d}  bare: {rates["bare_gflops"]:.0f} GFLOP/s, {rates["tflop_a_query"]:.2f} TFLOP '
    f'a query; {rates["gb_of_distances_a_query"]:.1f} GB of distances a query; strips by the cost '
    f'model {strips * images * 1e-12:.2f} TFLOP'
  )


def rows_of(size, x, images, args):
  """Times all runs at a size of patches and prints what it finds: a row for each, and the rates."""
  few = x[:1], images[: args.direct]
  fns = functions(size)
  inputs = {name: few if name in ('fused', 'direct') else (x, images) for name in fns}
  compiled = {
    name: fn if name == 'direct' else jax.jit(fn).lower(*inputs[name]).compile()
    for name, fn in fns.items()
  }
  results, best, least = timed(compiled, inputs, args.repeats)
  check(size, *few, results)
  rows = [row_of(size, name, fn, best, least, args) for name, fn in compiled.items()]
  for row in rows:
    show(row, args)
  rates = rates_of(size, best, least, args.images)
  show_rates(rates, args.images)
  return [*rows, rates]


def arguments():
  parser = common.parser(__doc__, 'runs/machine_speed')
  parser.add_argument('--sizes', type=int, nargs='+', default=[3, 7, 17])
  parser.add_argument('--images', type=int, default=5000)
  parser.add_argument('--queries', type=int, default=8)
  parser.add_argument(
    '--measured', type=int, default=96, help='images that are timed; a multiple of 8'
  )
  parser.add_argument(
    '--direct',
    type=int,
    default=2,
    help='images that the direct formula is timed on, with one query',
  )
  parser.add_argument('--repeats', type=int, default=3)
  return parser.parse_args()


def main():
  args = arguments()
  random = np.random.RandomState(0)
  images = jnp.asarray(random.uniform(-1, 1, (args.measured, SIDE, SIDE, CHANNELS)), jnp.float32)
  x = jnp.asarray(random.standard_normal((args.queries, SIDE, SIDE, CHANNELS)), jnp.float32)
  rows = [row for size in args.sizes for row in rows_of(size, x, images, args)]
  common.save(
    args.workdir,
    'machine_speed',
    {
      'images': args.images,
      'queries': args.queries,
      'measured': args.measured,
      'direct': args.direct,
      'repeats': args.repeats,
      'rows': rows,
    },
  )


if __name__ == '__main__':
  main()
