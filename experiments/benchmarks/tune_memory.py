"""Memory of a step of tier 3 of --mode=tune: it grows by the states of a step, and not by the
activations of the network.

python -m experiments.benchmarks.tune_memory --config=folder --batch=16
"""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lib import common
from gmm_diffusion.data import sources
from gmm_diffusion.engine import build, drawing
from gmm_diffusion.tasks.diffusion import tune
from gmm_diffusion.tune import descend, race, scores


def main():
  parser = common.parser(__doc__, 'runs/tune_memory')
  common.model_arguments(parser)
  parser.add_argument('--calls', type=int, nargs='+', default=[4, 16])
  parser.add_argument('--batch', type=int, default=64)
  args = parser.parse_args()
  spec = common.spec_of(args.config, args.set)
  data = sources.load(spec.data)
  model = drawing.Model(spec, data, build.random_weights(build.template(spec, data), 0))
  bind = build.denoiser(spec, data)
  subject = tune.subject_of(model, bind, lambda ids: np.zeros(len(ids), np.int32))
  features = scores.features(subject.shape)
  items = np.random.RandomState(0).standard_normal((256, *subject.shape)).astype(np.float32)
  reference = scores.reference(features, items)
  ids, labels = np.arange(args.batch, dtype=np.uint32), subject.labels(np.arange(args.batch))
  ends, rows = np.zeros((args.batch, 1), np.float32), []
  state = args.batch * int(np.prod(subject.shape)) * 4
  middle = subject.schedule.at(np.float64(subject.schedule.last / 2))
  time = type(middle)(*(np.float32(part) for part in middle))
  activations = jax.eval_shape(
    lambda w, x: jax.vjp(lambda x: bind(w)(x, time, labels).x0, x),
    subject.weights, jax.ShapeDtypeStruct((args.batch, *subject.shape), jnp.float32),
  )  # fmt: skip
  kept = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(activations))
  for calls in args.calls:
    times = np.linspace(subject.schedule.last, 10, calls)
    table = race.embedded('unipc', {}, subject.schedule, times, '').table
    loss = descend.loss_of(
      subject, table, None, features, reference, descend.Settings(batch=args.batch), 0
    )
    step = jax.jit(jax.grad(loss)).lower(descend.still(table), subject.weights, ids, labels, ends)
    found = step.compile().memory_analysis().temp_size_in_bytes
    rows.append({'calls': calls, 'bytes': found})
    print(f'{calls} calls: {found / 1e6:.1f} MB beside the weights', flush=True)
  (first, *_, last) = rows
  each = (last['bytes'] - first['bytes']) / (last['calls'] - first['calls'])
  print(
    f'each further call: {each / 1e6:.2f} MB; a state of the batch {state / 1e6:.2f} MB, what the '
    f'gradient of one call of the network keeps {kept / 1e6:.1f} MB'
  )
  common.save(args.workdir, 'tune_memory', {
    'batch': args.batch, 'rows': rows, 'each': each, 'state': state, 'activations': kept,
  })  # fmt: skip


if __name__ == '__main__':
  main()
