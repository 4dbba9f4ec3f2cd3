"""Memory of a step of tier 3 of --mode=tune, beside that of the same step where the activations of
the network are kept: it grows by the states, as many as calls for each of the calls.

python -m experiments.benchmarks.tune_memory
"""

from unittest import mock

import jax
import numpy as np

from experiments.lib import common
from gmm_diffusion.data import sources
from gmm_diffusion.engine import build, drawing
from gmm_diffusion.maths import grids
from gmm_diffusion.tasks.diffusion import tune
from gmm_diffusion.tune import descend, race, scores


def main():
  parser = common.parser(__doc__, 'runs/tune_memory')
  common.model_arguments(parser)
  parser.add_argument('--calls', type=int, nargs='+', default=[4, 8, 16, 32])
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
  for calls in args.calls:
    grid = grids.make(subject.schedule, calls, 'log_snr')
    table = race.embedded('unipc', {}, subject.schedule, np.asarray(grid.t), '').table
    settings = descend.Settings(batch=args.batch)
    found = {}
    for name in ('checkpointed', 'kept'):
      with mock.patch.object(jax, 'checkpoint', jax.checkpoint if name != 'kept' else lambda f: f):
        loss = descend.loss_of(subject, table, None, features, reference, settings, 0)
        moves = descend.still(table)
        step = jax.jit(jax.grad(loss)).lower(moves, subject.weights, ids, labels, ends)
      found[name] = step.compile().memory_analysis().temp_size_in_bytes
    rows.append({'calls': calls, **found})
    sizes = ', '.join(f'{size / 1e6:.1f} MB {name}' for name, size in found.items())
    print(f'{calls} calls: {sizes}', flush=True)
  common.save(args.workdir, 'tune_memory', {'batch': args.batch, 'rows': rows})


if __name__ == '__main__':
  main()
