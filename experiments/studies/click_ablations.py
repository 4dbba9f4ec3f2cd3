"""What each part of the segmenter adds: networks that lack one part, trained alike, and clicked by
the simulated annotator on the same objects of the test part of BSDS500.

  python -m experiments.studies.click_ablations --workdir=runs/ablations --set \
    data.path=~/bsds500 "segmentation.crop=(96,128)" train.steps=200 segmentation.objects=100 \
    segmentation.clicks=5

The trainings are short, so the differences count, and not how good each network is. Networks that
are trained already are only evaluated again.
"""

import os

from experiments.lib import common
from gmm_diffusion.tasks.segmentation import benchmark, metrics, scenes, training
from gmm_diffusion.tasks.segmentation.model import ARMS

FULL = 'all parts'
NETWORKS = {  # how clicks enter, and what of the config is another
  FULL: ('tokens', []),
  'an encoder from scratch': ('tokens', ['segmentation.encoder=scratch']),
  'a smaller encoder': ('tokens', ['segmentation.encoder=efficientnet_lite0']),
  'no EM over pixels': ('tokens', ['segmentation.pixels=False']),
  'no clicks on its own errors': ('tokens', ['segmentation.corrections=0']),
  'clicks through propagated values alone': ('values', []),
}


def clicked(spec, objects, clicks, folder, title):
  """IoU [N, segmentation.clicks] with both adaptations, and with none, which the clicks that enter
  through values alone cannot do without."""
  module, params = training.restore(spec, folder, clicks)
  names = ('both',) if clicks == 'values' else ('both', 'none')
  predict = benchmark.predictor(
    objects, module, params, [ARMS[name] for name in names], spec.segmentation.batch
  )
  found = benchmark.click_through(objects, predict, len(names), spec.segmentation.clicks, title)
  return dict(zip(names, (course.curves for course in found)))


def main():
  parser = common.parser(__doc__, 'runs/ablations')
  common.model_arguments(parser, 'segmentation:photographs')
  parser.add_argument(
    '--networks', nargs='+', default=list(NETWORKS), choices=NETWORKS, help=f'beside {FULL!r}'
  )
  args = parser.parse_args()
  curves, out, objects, learn = {}, {}, None, None
  for name in dict.fromkeys([FULL, *args.networks]):
    clicks, own = NETWORKS[name]
    spec = common.spec_of(args.config, [*args.set, *own])
    if objects is None:
      data = scenes.load(spec.data, ('train', 'val', 'test'))
      objects, learn = benchmark.Objects(spec, data.test), [*data.train, *data.val]
    folder = os.path.join(args.workdir, f'{name.replace(" ", "_")}_{spec.train.steps}')
    training.fit(spec, learn, clicks, folder)
    curves[name] = clicked(spec, objects, clicks, folder, name)
    rows = {arm: metrics.summary(found, objects.images) for arm, found in curves[name].items()}
    if name != FULL:
      rows[f'minus {FULL}'] = metrics.differences(
        curves[name]['both'], curves[FULL]['both'], objects.images
      )
    if 'none' in rows:
      rows['minus none'] = metrics.differences(*curves[name].values(), objects.images)
    out[name] = rows
    for row, values in rows.items():
      print(f'{name}, {row}: ' + '  '.join(f'{key} {value}' for key, value in values.items()))
    about = {'n': len(objects), 'steps': spec.train.steps, 'seed': spec.seed}
    common.save(args.workdir, 'click_ablations', {**about, 'networks': out})


if __name__ == '__main__':
  main()
