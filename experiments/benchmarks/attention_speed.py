"""What probabilistic attention costs beside softmax attention, in time and memory.

All are timed in alternation in one process, and ratios of their fastest runs are printed, so that
the load of the machine matters little. Memory is the peak of a child process for each case, less
that of a child which makes the inputs and no more.

  python -m experiments.benchmarks.attention_speed
"""

import functools
import json
import resource
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lib import common
from gmm_diffusion.nets import em_attention

HEADS = 4


def naive(q, k, v):
  """Softmax attention with all weights in memory."""
  logits = jnp.einsum('bnhc,bmhc->bhnm', q, k) * q.shape[-1] ** -0.5
  return jnp.einsum('bhnm,bmhc->bnhc', jax.nn.softmax(logits, -1), v)


def public(q, k, v):
  """The public layer's formula term by term: squared distances, magnitude priors, normalisation
  with an epsilon."""
  alpha, square = q.shape[-1] ** -0.5, lambda x: jnp.sum(x**2, -1).transpose(0, 2, 1)
  distance = square(q)[..., None] + square(k)[:, :, None] - 2 * jnp.einsum('bnhc,bmhc->bhnm', q, k)
  logits = -0.5 * alpha * distance
  logits = logits + 0.5 * alpha * square(k)[:, :, None]
  weights = jnp.exp(logits - jnp.max(logits, -1, keepdims=True))
  weights = weights / (jnp.sum(weights, -1, keepdims=True) + 1e-20)
  return jnp.einsum('bhnm,bmhc->bnhc', weights, v)


def backward(fn):
  return jax.grad(lambda q, k, v: jnp.sum(jnp.sin(fn(q, k, v))), (0, 1, 2))


adapted = lambda q, k, v: em_attention.attend(q, k, v, key_steps=1)
CASES = {
  'softmax': jax.jit(naive),
  'public formula, op by op': public,
  'public formula, compiled': jax.jit(public),
  'em': jax.jit(em_attention.attend),
  'em, one key adaptation': jax.jit(adapted),
  'softmax, forward and backward': jax.jit(backward(naive)),
  'em, forward and backward': jax.jit(backward(em_attention.attend)),
}
RATIOS = (
  ('em', 'softmax', 1.1),
  ('em', 'public formula, op by op', 0.15),
  ('em', 'public formula, compiled', None),
  ('em, forward and backward', 'softmax, forward and backward', None),
)


def inputs(tokens: int, channels: int):
  random = np.random.RandomState(0)
  return [
    jnp.asarray(random.randn(1, tokens, HEADS, channels // HEADS), jnp.float32) for _ in range(3)
  ]


@functools.cache
def peak(case: str, tokens: int, channels: int) -> float:
  """Peak MB of a process that runs one case twice; '' makes the inputs only. Children start at the
  parent's peak: call it first."""
  command = [
    sys.executable,
    '-m',
    'experiments.benchmarks.attention_speed',
    f'--child={case}',
    f'--tokens={tokens}',
    f'--channels={channels}',
  ]
  return json.loads(
    subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
  )


def own_peak(case: str, tokens: int, channels: int) -> float:
  """What `peak` asks of its child."""
  arrays = jax.block_until_ready(inputs(tokens, channels))
  for _ in range(2 if case else 0):
    jax.block_until_ready(CASES[case](*arrays))
  # the compiler is loaded in every case
  jax.block_until_ready(jax.jit(lambda x: x + 1)(arrays[0]))
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fastest(cases: dict, arrays: list, repeats: int) -> dict[str, float]:
  """{case: seconds}, in alternation."""
  seconds = {case: [] for case in cases}
  for n in range(repeats + 1):
    for case, fn in cases.items():
      start = time.perf_counter()
      jax.block_until_ready(fn(*arrays))
      seconds[case] += [time.perf_counter() - start] if n else []  # the first compiles
  return {case: min(values) for case, values in seconds.items()}


def ratios_of(best: dict[str, float]) -> list[dict]:
  out = [
    {'case': case, 'over': other, 'ratio': best[case] / best[other], 'limit': limit}
    for case, other, limit in RATIOS
    if {case, other} <= set(best)
  ]
  if 'em, one key adaptation' in best:
    step = (best['em, one key adaptation'] - best['em']) / best['em']
    out.append({'case': 'a key adaptation', 'over': 'em', 'ratio': step, 'limit': 2.5})
  return out


def show(rows: list[dict], ratios: list[dict], long: dict) -> None:
  for row in rows:
    print(
      f'{row["case"]:32s} {row["seconds"]:8.3f} s   {row["over_softmax"]:7.3f} x softmax   '
      f'{row["extra_mb"]:7.0f} MB extra'
    )
  for row in ratios:
    print(
      f'{row["case"]} / {row["over"]}: {row["ratio"]:.3f}'
      + (f' (at most {row["limit"]:g})' if row['limit'] else '')
    )
  print(
    f'{long["tokens"]} tokens, whole process: '
    + ', '.join(f'{case} {value:.0f} MB' for case, value in long['peak_mb'].items())
    + f' (inputs alone {long["inputs_alone_mb"]:.0f} MB)'
  )


def arguments():
  parser = common.parser(__doc__, 'runs/attention_speed')
  parser.add_argument('--tokens', type=int, default=4096)
  parser.add_argument(
    '--long',
    type=int,
    default=16384,
    help='tokens of the long case, of which only the memory is taken',
  )
  parser.add_argument('--channels', type=int, default=64)
  parser.add_argument('--repeats', type=int, default=7)
  parser.add_argument(
    '--cases',
    nargs='+',
    choices=list(CASES),
    default=list(CASES),
    help='which to run beside softmax and em',
  )
  parser.add_argument('--child', help='run one case and print the peak memory')
  return parser.parse_args()


def main():
  args = arguments()
  if args.child is not None:
    print(json.dumps(own_peak(args.child, args.tokens, args.channels)))
    return
  cases = {case: CASES[case] for case in CASES if case in (*args.cases, 'softmax', 'em')}
  base = peak('', args.tokens, args.channels)
  memory = {case: peak(case, args.tokens, args.channels) - base for case in cases}
  long = {
    'tokens': args.long,
    'peak_mb': {
      case: peak(case, args.long, args.channels)
      for case in ('em', 'em, forward and backward')
      if case in cases
    },
    'inputs_alone_mb': peak('', args.long, args.channels),
  }
  arrays = inputs(args.tokens, args.channels)
  error = float(jnp.max(jnp.abs(CASES['em'](*arrays) - CASES['softmax'](*arrays))))
  best = fastest(cases, arrays, args.repeats)
  rows = [
    {
      'case': case,
      'seconds': best[case],
      'over_softmax': best[case] / best['softmax'],
      'extra_mb': memory[case],
    }
    for case in cases
  ]
  ratios = ratios_of(best)
  show(rows, ratios, long)
  common.save(
    args.workdir,
    'attention_speed',
    {
      'heads': HEADS,
      'tokens': args.tokens,
      'channels': args.channels,
      'repeats': args.repeats,
      'largest_difference': error,
      'rows': rows,
      'ratios': ratios,
      'long': long,
    },
  )


if __name__ == '__main__':
  main()
