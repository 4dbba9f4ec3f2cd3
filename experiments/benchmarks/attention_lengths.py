"""Time and memory of attention against the number of tokens: softmax, EM, and linear attention with
64 and with 256 landmarks. Time is the fastest of some runs in alternation; memory is what the
compiler reserves beside inputs and outputs.

  python -m experiments.benchmarks.attention_lengths
"""

import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lib import common
from gmm_diffusion.maths import nystrom
from gmm_diffusion.nets import blocks, em_attention, soft_attention

HEADS, WIDTH = 4, 16


def soft(count):
  """Linear attention of square images of tokens, with `count` landmarks."""

  def fn(q, k, v):
    del k
    side, inner = int(q.shape[1] ** 0.5), int(count**0.5)
    images = q.reshape(len(q), side, side, HEADS, WIDTH)
    landmarks = soft_attention.windows(images, side // inner)
    first = lambda x: jnp.moveaxis(x, 2, 1)
    return first(nystrom.attend(first(q), first(v), first(landmarks), WIDTH**-0.5))

  return fn


KINDS = {
  'softmax': blocks.dot_product,
  'em': em_attention.attend,
  'soft, 64 landmarks': soft(64),
  'soft, 256 landmarks': soft(256),
}


def main():
  parser = common.parser(__doc__, 'runs/attention_lengths')
  parser.add_argument('--tokens', type=int, nargs='*', default=[256, 1024, 4096, 16384])
  parser.add_argument('--softmax-to', type=int, default=4096, help='most tokens of softmax')
  parser.add_argument('--repeats', type=int, default=3)
  args = parser.parse_args()
  rows = []
  for tokens in args.tokens:
    random = np.random.RandomState(0)
    inputs = [jnp.asarray(random.randn(1, tokens, HEADS, WIDTH), jnp.float32) for _ in range(3)]
    kinds = {
      name: jax.jit(fn).lower(*inputs).compile()
      for name, fn in KINDS.items()
      if name != 'softmax' or tokens <= args.softmax_to
    }
    best = dict.fromkeys(kinds, np.inf)
    for _ in range(args.repeats + 1):
      for name, fn in kinds.items():
        start = time.perf_counter()
        jax.block_until_ready(fn(*inputs))
        best[name] = min(best[name], time.perf_counter() - start)
    for name, fn in kinds.items():
      megabytes = fn.memory_analysis().temp_size_in_bytes / 1e6
      rows.append({'kind': name, 'tokens': tokens, 'seconds': best[name], 'megabytes': megabytes})
      print(f'{tokens:6d} tokens, {name:20s} {best[name]:9.4f} s  {megabytes:9.1f} MB', flush=True)
  common.save(args.workdir, 'attention_lengths', {'heads': HEADS, 'width': WIDTH, 'rows': rows})


if __name__ == '__main__':
  main()
