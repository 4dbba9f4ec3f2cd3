"""The mixture of the source by its scale, beside DDIM and isotropic noise of the same energy, on a
model of one's own or of others: whether large offsets help, and what an offset in the last step
does (sampler.last_step=source).

  python -m experiments.studies.mixture_scales --weights=ddpm_mnist_607k.pt
    --path=~/tensorflow_datasets --workdir=runs/mixture_scales

Frechet distances to held-out items by two judges, on features of a classifier and on histograms of
gradients, paired by noise over seeds. The offsets have another seed for each seed of the noise.
"""

from typing import Any

import numpy as np
from tqdm import tqdm

from experiments.lib import common, paired
from experiments.studies import posterior_kernels, transfer
from gmm_diffusion import samplers
from gmm_diffusion.maths import grids
from gmm_diffusion.samplers.mixture import LAST_STEPS
from gmm_diffusion.tune import tiers


def arms(args) -> dict[str, tuple[str, dict[str, Any]]]:
  """label -> (sampler, options); the first is what all are compared with."""
  out: dict[str, tuple[str, dict[str, Any]]] = {'ddim': ('ddim', {})}
  for last in args.last_steps:
    for scale in args.scales:
      options = {'scale': scale, 'components': args.components, 'last_step': last}
      for name in (args.mixture, samplers.control_of(args.mixture)):
        out[f'{name}, scale {scale:g}' + ', offset in the last step' * (last == 'source')] = (
          name,
          options,
        )
  return out


def rows_of(args, here, judge, calls: int, grid: str, eta: float) -> list[dict[str, Any]]:
  """A row for each arm: its values over the seeds, and their paired difference to DDIM and to its
  control."""
  subject, wanted = here.subject, arms(args)
  steps = subject.times(grids.make(subject.schedule, calls, grid).t)
  times = grids.from_times(subject.schedule, steps)
  values: dict[str, list[list[float]]] = {label: [] for label in wanted}
  title = f'{calls} calls, {grid}, eta {eta:g}'
  for seed in tqdm(range(args.seeds), desc=title, unit='seed', dynamic_ncols=True):
    for label, (name, options) in wanted.items():
      full = {**options, 'eta': eta, **({'offsets_seed': seed} if options else {})}
      x = subject.end(name, full, times, tiers.stream(0, seed), np.arange(args.count))
      values[label].append(judge(x))
  rows = []
  for label, (name, options) in wanted.items():
    row = {'calls': calls, 'grid': grid, 'eta': eta, 'sampler': name, **options}
    control = samplers.control_of(name)
    others = {'minus_ddim': 'ddim', 'minus_control': control and label.replace(name, control)}
    for i, one in enumerate(posterior_kernels.JUDGES):
      own = [each[i] for each in values[label]]
      row[one] = {'mean': float(np.mean(own)), 'values': own}
      for key, other in others.items():
        if other and other != label:
          row[one][key] = paired.difference(own, [each[i] for each in values[other]])._asdict()
    rows.append(row)
    print(
      f'{title}: {label}  '
      + '  '.join(f'{one} {row[one]["mean"]:.3f}' for one in posterior_kernels.JUDGES)
    )
  return rows


def main():
  parser = common.parser(__doc__, 'runs/mixture_scales')
  transfer.arguments(parser, 'runs/digits')
  parser.set_defaults(calls=[10])
  parser.add_argument('--grids', nargs='+', default=['trailing', 'leading'], choices=grids.GRIDS)
  parser.add_argument('--etas', type=float, nargs='+', default=[0.0])
  parser.add_argument('--mixture', default='ddim_gmm_ortho', help='a mixture sampler')
  parser.add_argument('--scales', type=float, nargs='+', default=[1, 3, 6, 10])
  parser.add_argument('--components', type=int, default=8)
  parser.add_argument('--last-steps', nargs='+', default=list(LAST_STEPS), choices=LAST_STEPS)
  parser.add_argument('--seeds', type=int, default=4)
  args = parser.parse_args()
  here = posterior_kernels.lab(args)
  judge, rows = here.judges, []
  for calls in args.calls:
    for grid in args.grids:
      for eta in args.etas:
        rows += rows_of(args, here, judge, calls, grid, eta)
  keys = 'count', 'seeds', 'components'
  common.save(args.workdir, 'mixture_scales', {**{k: vars(args)[k] for k in keys}, 'rows': rows})


if __name__ == '__main__':
  main()
