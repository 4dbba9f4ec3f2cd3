"""Samplers that were tuned for one network, on another network, beside the best untuned sampler of
the first.

python -m experiments.studies.transfer --tuned=runs/digits --start=runs/digits_again --calls 4 6
"""

import os
from typing import Any

import numpy as np
from tqdm import tqdm

from experiments.lib import common, paired
from experiments.studies import posterior_kernels
from gmm_diffusion import files
from gmm_diffusion.maths import bands, grids
from gmm_diffusion.samplers import tuned
from gmm_diffusion.tasks.diffusion import tune
from gmm_diffusion.tune import race, tiers


def samplers_of(path: str, calls: int, here) -> dict[str, Any]:
  """Table of each sampler in a file of --mode=tune, and of DDIM; raises UserError where there is
  none for this shape and schedule."""
  schedule, shape = here.subject.schedule, here.subject.shape
  tuned.tuned(path).plan(tuned.grid(path, schedule), shape)
  default = 'trailing' if schedule.discrete else 'uniform'
  times = here.subject.times(grids.make(schedule, calls, default).t)
  return {
    'DDIM': race.embedded('ddim', {}, schedule, times, default).table,
    'best untuned': tuned.table_of(files.read_json(path, {})['fixed']['table']),
    'tuned': tuned.read(path).table,
  }


def values(args, here, table, bar) -> list[list[float]]:
  """Frechet distances by both judges for each seed."""
  count, out = table.keep.shape[1], []
  transform = bands.make(here.subject.shape, count) if count > 1 else None
  for seed in range(args.seeds):

    def make(seed=seed):
      ids = np.arange(args.count)
      return {'values': np.array(here.judges(here.subject.draw(table, seed, ids, transform)))}

    name = f'{tiers.hash_of(table)}-{args.count}-{seed}-both.npz'
    path = os.path.join(args.workdir, 'transfer', name)
    mark = f'{here.mark} {args.config} {args.set} {args.weights} {args.path}'
    out.append(files.kept(path, mark, make)['values'].tolist())
    bar.update()
  return out


def arguments(out, start: str) -> None:
  """Those of the network, and of how samplers on it are judged."""
  common.model_arguments(out)
  out.add_argument('--start', default=start, help='workdir of the network')
  out.add_argument('--weights', default='', help='in its place, the state dict of another')
  out.add_argument('--path', default='', help='with it, the folder of tensorflow-datasets')
  out.add_argument('--calls', type=int, nargs='+', default=[5])
  out.add_argument('--count', type=int, default=1000, help='samples of each seed')
  out.add_argument('--batch', type=int, default=64, help='samples at a time')


def rows_of(
  calls: int, own: dict[str, list[list[float]]], base: str, key: str
) -> list[dict[str, Any]]:
  """A row for each sampler, printed: its values by each judge, and under `key` their difference to
  those of `base`."""
  rows = []
  for name, found in own.items():
    row: dict[str, Any] = {'calls': calls, 'what': name}
    for judge, mine, others in zip(posterior_kernels.JUDGES, zip(*found), zip(*own[base])):
      away = paired.difference(mine, others) if name != base else None
      mean = float(np.mean(mine))
      row[judge] = {'mean': mean, 'values': list(mine), key: away and away._asdict()}
      print(f'{calls} calls, {name}, {judge}: {mean:.4f}', away or '', flush=True)
    rows.append(row)
  return rows


def main():
  parser = common.parser(__doc__, 'runs/transfer')
  arguments(parser, 'runs/digits_again')
  parser.add_argument('--seeds', type=int, default=8)
  parser.add_argument('--tuned', default='runs/digits', help='workdir of --mode=tune')
  args = parser.parse_args()
  here, rows = posterior_kernels.lab(args), []
  with tqdm(total=3 * args.seeds * len(args.calls), desc='transfer', unit='seed') as bar:
    for calls in args.calls:
      tables = samplers_of(tune.path_of(args.tuned, calls), calls, here)
      own = {name: values(args, here, table, bar) for name, table in tables.items()}
      rows += rows_of(calls, own, 'best untuned', 'minus_untuned')
  common.save(args.workdir, 'transfer', {'rows': rows})


if __name__ == '__main__':
  main()
