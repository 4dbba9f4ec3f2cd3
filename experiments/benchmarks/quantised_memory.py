"""Memory of a released architecture with weights of few bits: what the compiler reserves for the
weights, and beside them, while a batch is sampled. Nothing is run and no weights are needed.

  python -m experiments.benchmarks.quantised_memory --variant=adm
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

FORMS = {  # dtype of the computation, bits of the weights, of the inputs
  'float32': ('float32', 0, 0),
  'bfloat16': ('bfloat16', 0, 0),
  'W8': ('float32', 8, 0),
  'W8 bfloat16': ('bfloat16', 8, 0),
  'W4': ('float32', 4, 0),
  'W8A8': ('float32', 8, 8),
}


def main():
  parser = common.parser(__doc__, 'runs/quantised_memory')
  parser.add_argument('--config', default='imagenet256')
  parser.add_argument('--variant', default='adm')
  parser.add_argument('--steps', type=int, default=10)
  parser.add_argument('--batch', type=int, default=1)
  parser.add_argument('--forms', nargs='*', default=list(FORMS))
  args = parser.parse_args()
  rows = []
  for name in args.forms:
    dtype, weights, inputs = FORMS[name]
    config = importlib.import_module('configs.' + args.config).get_config(args.variant)
    config.net.dtype, config.sampler.steps, config.sampler.name = dtype, args.steps, 'ddim'
    spec = specs.from_config(config)
    data = sources.load(spec.data)
    few = {'weights': weights, 'activations': inputs} if weights else None
    template = {'net': build.template(spec, data, few)['net']}
    made = drawing.prepare(spec, spec.sampler, data)
    labels = jnp.zeros(args.batch, jnp.int32)

    def draw(weights, steps, ids, made=made, labels=labels):
      return drawing.sample_batch(made.kernel, made.bind(weights), steps, ids, labels, made.shape)[
        1
      ].x

    start = time.perf_counter()
    steps = drawing.Steps(made.grid, made.plan, np.uint32(0))
    compiled = (
      jax.jit(draw).lower(template, steps, np.arange(args.batch, dtype=np.uint32)).compile()
    )
    found = compiled.memory_analysis()
    held = sum(leaf.size * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(template))
    row = {
      'form': name,
      'weights_bytes': held,
      'arguments_bytes': found.argument_size_in_bytes,
      'temporary_bytes': found.temp_size_in_bytes,
      'compile_seconds': time.perf_counter() - start,
    }
    rows.append(row)
    print(
      f'{name}: weights {held / 1e9:.3f} GB, beside them {row["temporary_bytes"] / 1e9:.3f} GB, '
      f'compiled in {row["compile_seconds"]:.0f} s',
      flush=True,
    )
  settings = {'config': f'{args.config}:{args.variant}', 'steps': args.steps, 'batch': args.batch}
  common.save(args.workdir, 'quantised_memory', {**settings, 'rows': rows})


if __name__ == '__main__':
  main()
