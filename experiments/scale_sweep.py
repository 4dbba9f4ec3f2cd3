"""The layout of the source's tables 7-8 on a data set of one's own: eta x steps x variant, best scale.

Reads the checkpoint of a workdir made by --mode=train (or all). Each cell is the best Frechet
distance over the scales, with that scale in parentheses; the isotropic control has a column of its
own, with its own best scale. Best scales are chosen on one seed and reported on another, so that
choosing among scales does not count as a gain. A cell that is done is not computed again.

  python -m gmm_diffusion.main --config=configs/digits.py --mode=train --workdir=runs/digits
  python -m experiments.scale_sweep --config=digits --workdir=runs/digits
"""

import dataclasses
import importlib
import os

from experiments import common
from gmm_diffusion import specs
from gmm_diffusion.data import image_sets, sources
from gmm_diffusion.loops import build, evaluate
from gmm_diffusion.loops import sample as sample_loop
from gmm_diffusion.metrics.estimates import Estimate
from gmm_diffusion.reports import files

VARIANTS = {'DDIM': 'ddim', 'RAND': 'ddim_gmm_rand', 'ORTHO': 'ddim_gmm_ortho', 'ORTHO-VUB': 'ddim_gmm_ortho_vub',
            'ORTHO*': 'ddim_gmm_ortho_shared', 'ORTHO-VUB*': 'ddim_gmm_ortho_vub_shared', 'control': 'ddim_noise_ortho'}


def table(cells: dict, etas, steps, heading: str) -> str:
  """Markdown: rows are eta x steps, columns are samplers; a cell is 'FD ± half width (scale)'."""
  lines = [f'| {heading} | ' + ' | '.join(VARIANTS) + ' |', '|---|' + '---:|' * len(VARIANTS)]
  for eta in etas:
    for n in steps:
      row = []
      for name in VARIANTS:
        cell = cells[f'{name}/{eta:g}/{n}']
        scale = '' if name == 'DDIM' else f" ({cell['scale']:g})"
        row.append(f"{Estimate(*cell['estimate'])}{scale}")
      lines.append(f'| eta {eta:g}, {n} steps | ' + ' | '.join(row) + ' |')
  return '\n'.join(lines)


def main():
  parser = common.parser(__doc__, 'runs/digits')
  parser.add_argument('--config', default='digits', help='a name in configs/, with :variants')
  parser.add_argument('--data_path', default='', help='overrides config.data.path')
  parser.add_argument('--etas', type=float, nargs='+', default=[0.0, 0.2, 0.5, 1.0])
  parser.add_argument('--steps', type=int, nargs='+', default=[10, 20, 50])
  parser.add_argument('--scales', type=float, nargs='+', default=[0.01, 0.1, 0.3, 1.0, 3.0])
  parser.add_argument('--count', type=int, default=1000)
  args = parser.parse_args()
  name, _, variant = args.config.partition(':')
  config = importlib.import_module('configs.' + name).get_config(variant)
  if args.data_path:
    config.data.path = args.data_path
  spec = specs.from_config(config)
  data = sources.load(spec.data)
  weights = build.weights(spec, data, args.workdir)
  spec = dataclasses.replace(spec, evaluate=dataclasses.replace(spec.evaluate, metrics=('frechet',)))
  bench = evaluate.bench(spec, data, args.workdir, data.shape, args.count)

  def frechet(sampler, eta, n, scale, seed):
    this = dataclasses.replace(spec, seed=seed)
    out = sample_loop.generate(this, data, weights, dataclasses.replace(
        spec.sampler, name=VARIANTS[sampler], eta=eta, steps=n, scale=scale), args.count)
    return evaluate.measure(bench, image_sets.ArraySet(out.x, 'samples'), 'features')[0]['frechet']

  path = os.path.join(args.workdir, 'scale_sweep_cells.json')
  key = {'weights': build.tree_hash(weights), 'count': args.count, 'scales': args.scales, 'features': bench.features.name}
  stored = files.read_json(path, {})
  cells = stored['cells'] if stored.get('key') == key else {}
  for eta in args.etas:
    for n in args.steps:
      for sampler in VARIANTS:
        cell = f'{sampler}/{eta:g}/{n}'
        if cell in cells:
          continue
        scales = [0.0] if sampler == 'DDIM' else args.scales
        chosen = min(scales, key=lambda scale: frechet(sampler, eta, n, scale, seed=1).value) if len(scales) > 1 else scales[0]
        cells[cell] = {'scale': chosen, 'estimate': frechet(sampler, eta, n, chosen, seed=0)}
        files.write_json(path, {'key': key, 'cells': cells})
        print(f"{cell}: {Estimate(*cells[cell]['estimate'])} at scale {chosen:g}", flush=True)
  text = table(cells, args.etas, args.steps, f'{spec.data.dataset or spec.data.name}, Frechet distance')
  files.write_text(os.path.join(args.workdir, 'scale_sweep.md'), text + '\n')
  common.save(args.workdir, 'scale_sweep', {**key, 'cells': cells})
  print(text)


if __name__ == '__main__':
  main()
