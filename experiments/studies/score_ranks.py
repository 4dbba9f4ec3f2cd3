"""Whether the score of tuning ranks samplers as a judge does that tuning never sees: how much the
features of a trained network should count beside pixels (tune/scores.py).

python -m experiments.studies.score_ranks --start=runs/digits --calls 5 8
"""

from typing import Any

import jax
import numpy as np
from scipy import stats
from tqdm import tqdm

from experiments.lib import common
from experiments.studies import posterior_kernels, transfer
from gmm_diffusion.errors import UserError
from gmm_diffusion.tune import race, scores, tiers

WEIGHTS = (0.0, 0.5, 0.8, 0.9, 1.0)
LEAST = 8  # samplers, so that half of them have an interval


def parts(features, known: scores.Reference, learned: int):
  """x [n, ...] -> (mean energy distance of pixels and the like, that of the trained networks, whose
  blocks are the last ones), each over the spread of the reference."""

  @jax.jit
  def of(x, known):
    each = [
      scores.energy([block], scores.Reference([theirs], [1 / within], [within]))[0]
      for block, theirs, within in zip(features(x), known.blocks, known.within, strict=True)
    ]
    rest = each[:-learned], each[-learned:]
    return [sum(some) / len(some) for some in rest]

  return lambda x: np.array(of(x, known))


def rank(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
  """Spearman's correlation over samplers, with its 95 % interval [Fieller et al. 1957]."""
  value = float(stats.spearmanr(first, second).statistic)
  middle, error = np.arctanh(np.clip(value, -0.9999, 0.9999)), np.sqrt(1.06 / (len(first) - 3))
  interval = [float(np.tanh(middle + sign * 1.96 * error)) for sign in (-1, 1)]
  return {'value': value, 'interval': interval}


def rows_of(args, here, calls: int) -> list[dict[str, Any]]:
  """How each weight ranks samplers of so many calls, all and the better half by the judge."""
  subject = here.subject
  settings = tiers.Settings(calls, samples=max(args.samples))
  tuner = tiers.Tuner(subject, here.items, settings, learned=here.learned)
  field = race.candidates(subject.schedule, calls, subject.times)
  random = np.random.RandomState(0)
  tried = [field[i] for i in random.permutation(len(field))[: args.samplers]]
  if len(tried) < LEAST:
    raise UserError(f'--samplers must be at least {LEAST}, got {len(tried)}')
  of, judged = parts(tuner.features, tuner.reference, len(here.learned)), []
  found: dict[int, list[np.ndarray]] = {n: [] for n in args.samples}
  for one in tqdm(tried, desc=f'{calls} calls', unit='sampler', dynamic_ncols=True):
    x = subject.draw(one.table, tiers.stream(0, tiers.TUNE), np.arange(max(args.samples)))
    for n in args.samples:
      found[n].append(of(x[:n]))
    judged.append(here.judge(subject.draw(one.table, tiers.stream(0, 0), np.arange(args.count))))
  value, rows = np.array(judged), []
  for which, some in (('all', len(value)), ('better half', len(value) // 2)):
    keep = np.argsort(value)[:some]
    for n in args.samples:
      pixels, learned = np.array(found[n]).T
      for weight in WEIGHTS:
        score = (1 - weight) * pixels + weight * learned
        about = {'calls': calls, 'samplers': which, 'samples': n, 'weight': weight}
        rows.append({**about, **rank(score[keep], value[keep])})
  return rows


def main():
  parser = common.parser(__doc__, 'runs/score_ranks')
  transfer.arguments(parser, 'runs/digits')
  parser.add_argument('--samplers', type=int, default=40, help='of the race, at random')
  parser.add_argument('--samples', type=int, nargs='+', default=[128, 512], help='of the score')
  args = parser.parse_args()
  here = posterior_kernels.lab(args)
  rows = [row for calls in args.calls for row in rows_of(args, here, calls)]
  for row in rows:
    low, high = row['interval']
    print(
      f'{row["calls"]} calls, {row["samplers"]}, {row["samples"]} samples, weight '
      f'{row["weight"]:g}: {row["value"]:.2f} ({low:.2f} to {high:.2f})'
    )
  keys = 'samplers', 'samples', 'count'
  common.save(args.workdir, 'score_ranks', {**{k: getattr(args, k) for k in keys}, 'rows': rows})


if __name__ == '__main__':
  main()
