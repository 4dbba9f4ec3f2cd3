"""What recipes of others find with as many network calls as the tiers of --mode=tune that need no
gradient: each moves the numbers of the best deterministic untuned sampler along a gradient.

  grid, to a teacher                    as LD3, arXiv 2405.15506
  grid and coefficients, to a teacher   as GS, arXiv 2510.17699
  all numbers, energy distance          as DDSS, arXiv 2202.05830, with another distance

python -m experiments.studies.tune_recipes --start=runs/digits --workdir=runs/tune_recipes --calls 5

The teacher is the fine sampler of tier 1 from the same noise. Where the workdir `--start` has a
tuned sampler, it is a row as well. All rows are judged as those of experiments.studies.transfer.
"""

import os

import numpy as np
from tqdm import tqdm

from experiments.lib import common
from experiments.studies import posterior_kernels, transfer
from gmm_diffusion import files
from gmm_diffusion.errors import UserError
from gmm_diffusion.samplers import tuned
from gmm_diffusion.tasks.diffusion import tune
from gmm_diffusion.tune import descend, fit, tiers

RECIPES = {
  'grid, to a teacher': {'energy': 0.0, 'trajectory': 1.0, 'free': ('xi',)},
  'grid and coefficients, to a teacher': {
    'energy': 0.0, 'trajectory': 1.0, 'free': ('alpha', 'beta', 'xi'),
  },
  'all numbers, energy distance': {},
}  # fmt: skip
BANK = 512  # ends of the teacher


def start_of(args, here, calls: int):
  """(the best deterministic untuned sampler, the Tuner that raced)."""
  keep = lambda name, mark, make: files.kept(
    os.path.join(args.workdir, 'race', str(calls), name), mark, make
  )
  settings = tiers.Settings(calls, tier=-1, samples=args.samples)
  mark = f'{here.mark} {args.samples} {args.set}'
  tuner = tiers.Tuner(here.subject, here.items, settings, keep, mark=mark, learned=here.learned)
  tuner.run()
  still = [one for one, _ in tuner.leaders if not np.any(one.table.std)]
  if not still:
    raise UserError(f'no deterministic sampler is among the best {len(tuner.leaders)} of the race')
  return still[0], tuner


def moved(args, here, start, tuner, recipe: dict):
  """The table that a recipe finds, with args.budget calls."""
  subject, ids = here.subject, np.arange(BANK)
  before, seed, ends = subject.calls, tiers.stream(0, tiers.DESCEND), None
  if recipe.get('trajectory'):
    x = subject.start(float(start.table.b[0]), seed, ids)
    ends = np.asarray(subject.clipped(fit.targets(subject, start.table, x, ids)[-1]))
  each = 4 * len(start.table.keep) * args.batch
  steps = max(1, (args.budget - (subject.calls - before)) // each)
  settings = descend.Settings(steps=steps, batch=args.batch, **recipe)
  state = descend.beginning(start.table, settings)
  loss = descend.loss_of(
    subject, start.table, None, tuner.features, tuner.reference, settings, seed
  )
  walk = descend.descend(subject, start.table, loss, settings, ends, state)
  for _ in tqdm(range(steps), desc='gradient', unit='step', dynamic_ncols=True):
    _, state = next(walk)
  return descend.table_of(start.table, state[2], subject.schedule, subject.whole_times)


def main():
  parser = common.parser(__doc__, 'runs/tune_recipes')
  transfer.arguments(parser, 'runs/digits')
  parser.add_argument('--seeds', type=int, default=8)
  parser.add_argument('--budget', type=int, default=340_000, help='calls of one sample, for each')
  parser.add_argument('--samples', type=int, default=512, help='of the race')
  args = parser.parse_args()
  here, rows = posterior_kernels.lab(args), []
  for calls in args.calls:
    start, tuner = start_of(args, here, calls)
    tables = {f'{start}': start.table}
    for name, recipe in RECIPES.items():
      tables[name] = moved(args, here, start, tuner, recipe)
    path = tune.path_of(args.start, calls)
    if not args.weights and os.path.exists(path):  # a network of others has no such workdir
      tables['--mode=tune'] = tuned.read(path).table
    with tqdm(total=args.seeds * len(tables), desc='report', unit='seed') as bar:
      own = {name: transfer.values(args, here, table, bar) for name, table in tables.items()}
    rows += transfer.rows_of(calls, own, f'{start}', 'minus_start')
  common.save(args.workdir, 'tune_recipes', {'budget': args.budget, 'rows': rows})


if __name__ == '__main__':
  main()
