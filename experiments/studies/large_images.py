"""Segmentation of images that are larger than those of the training: units at stride 8, as there,
against the fewer units that images beyond model.MOST units have. BSDS500 at twice its size.

  python -m experiments.studies.large_images --workdir=runs/bsds --set data.path=~/bsds500

after training with `--config=configs/segmentation.py:photographs --workdir=runs/bsds`.
"""

import time

import numpy as np
from PIL import Image
from tqdm import tqdm

from experiments.lib import common
from gmm_diffusion.metrics import estimates
from gmm_diffusion.tasks.segmentation import (
  annotator,
  benchmark,
  metrics,
  model,
  scenes,
  session,
  training,
)

KINDS = {'stride 8': 10**9, 'fewer units': model.MOST}


def doubled(image: np.ndarray) -> np.ndarray:
  """uint8 [H, W, 3] -> [2 H, 2 W, 3]."""
  height, width, _ = image.shape
  return np.asarray(
    Image.fromarray(image).resize((2 * width, 2 * height), Image.Resampling.BICUBIC)
  )


def clicked(network, params, objects, clicks, title):
  """IoU [N, clicks] after each click, and milliseconds of those after the first of an image."""
  session.compiled.cache_clear()  # the number of units is read while compiling
  curves, spent = [], []
  for scene, small in tqdm(list(zip(objects.scenes, objects.masks)), desc=title, unit='image'):
    mask, seen = small.repeat(2, 0).repeat(2, 1), doubled(scene.image)
    one = session.Session(
      network, params, seen, size=max(seen.shape), slots=objects.slots, arm='both'
    )
    found, curve = one.mask, []
    for n in range(clicks):
      click = annotator.next_click(mask, found, one.clicks)
      if click is not None:
        start = time.perf_counter()
        found = one.click(*click)
        spent += [1000 * (time.perf_counter() - start)] * (n > 0)
      curve.append(metrics.iou(found, mask))
    curves.append(curve)
  return np.array(curves), np.array(spent)


def main():
  parser = common.parser(__doc__, 'runs/bsds')
  common.model_arguments(parser, 'segmentation:photographs')
  parser.add_argument('--count', type=int, default=30, help='objects')
  parser.add_argument('--clicks', type=int, default=3, help='on each')
  args = parser.parse_args()
  spec = common.spec_of(args.config, [*args.set, f'segmentation.objects={args.count}'])
  objects = benchmark.Objects(spec, scenes.load(spec.data, ('test',)).test)
  network, params = training.load(spec, args.workdir)
  curves, out = {}, {}
  for kind, model.MOST in KINDS.items():
    curves[kind], spent = clicked(network, params, objects, args.clicks, kind)
    means = [estimates.of_mean(row) for row in curves[kind].T]
    out[kind] = {'IoU': means, 'milliseconds': float(np.median(spent))}
    print(f'{kind}: IoU {", ".join(map(str, means))}; a click {np.median(spent):.0f} ms')
  before, after = curves.values()
  out['difference'] = [estimates.of_mean(row) for row in (after - before).T]
  print(f'difference: {", ".join(map(str, out["difference"]))}')
  common.save(args.workdir, 'large_images', {'count': args.count, 'clicks': args.clicks, **out})


if __name__ == '__main__':
  main()
