"""Guidance by a classifier of noisy images that was trained here: towards classes, and towards what
is rare in the eyes of the model [minority guidance, arXiv 2301.12334].

  python -m experiments.studies.guidance --workdir=runs/guidance --start=runs/digits_unconditional

after `python -m gmm_diffusion.main --config=configs/digits.py --mode=train
--workdir=runs/digits_unconditional --config.net.labels=none`. Two classifiers are trained, one on
the classes of the images and one on the tenths of their minority scores. What judges is the network
of the features, which sees finished images, and the same score of other noise.
"""

import dataclasses
import os

import numpy as np
from tqdm import tqdm

from experiments.lib import common
from gmm_diffusion import files, metrics
from gmm_diffusion.data import base
from gmm_diffusion.engine import build, classifying, drawing
from gmm_diffusion.maths import grids
from gmm_diffusion.metrics import estimates, minority
from gmm_diffusion.reports import images

JUDGE = 1_000_003  # seed of the score that judges: of no samples, whose noise it would be
RARE = 0.9  # quantile of the scores of training images above which an image is called rare


def scores(subject, x, args, seed):
  """Minority scores of images [N, H, W, C]."""
  process = build.schedule(subject.spec.schedule)
  time = process.at(grids.nearest(process, [args.level])[0])
  measure = lambda denoiser, x0, ids: minority.score(denoiser, x0, time, ids, args.draws, seed)
  bind = build.denoiser(subject.spec, subject.data)
  ids = np.arange(len(x), dtype=np.uint32)
  return subject.model.ask(f'minority {seed}', bind, measure, (base.to_model(x), ids))


def guided(subject, data, label, folder):
  """(scale -> the subject guided by a classifier of the labels of `data`, which is trained in a
  folder where it is not yet)."""
  spec = dataclasses.replace(
    subject.spec, train=dataclasses.replace(subject.spec.train, what='classifier')
  )
  classifying.train(spec, data, folder)
  judge = build.own_classifier(spec, data, folder)

  def at(scale):
    own = dataclasses.replace(spec.classifier, scale=scale, trained=folder)
    sample = dataclasses.replace(spec.sample, label=label if scale else '')
    changed = dataclasses.replace(spec, classifier=own, sample=sample)
    weights = {**subject.model.weights, **({'classifier': judge} if scale else {})}
    return subject._replace(model=drawing.Model(changed, data, weights))

  return at


def main():
  parser = common.parser(__doc__, 'runs/guidance')
  common.model_arguments(parser)
  parser.add_argument('--start', default='runs/digits_unconditional', help='the trained network')
  parser.add_argument('--scales', type=float, nargs='+', default=[0, 1, 3.5])
  parser.add_argument('--labels', type=int, default=10, help='of rarity')
  parser.add_argument('--level', type=float, default=6.0, help='b / a of the minority score')
  parser.add_argument('--draws', type=int, default=20, help='of the minority score')
  parser.add_argument('--steps', type=int, default=20)
  parser.add_argument('--count', type=int, default=1000, help='samples of each')
  parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2], help='of the samples')
  args = parser.parse_args()
  more = ['net.labels=none', 'sampler.name=ddpm', f'sampler.steps={args.steps}']
  subject = common.load_subject(
    common.spec_of(args.config, more + args.set), args.start, args.count
  )
  data, sampler = subject.data, subject.spec.sampler
  known = scores(subject, data.train, args, 0)
  limit = np.quantile(scores(subject, data.train, args, JUDGE), RARE)
  rarity = data._replace(train_labels=minority.labels(known, args.labels), classes=args.labels)
  rarity = rarity._replace(names=(), test=data.test[:0], test_labels=data.test_labels[:0])
  rows = []
  for towards, of, label in (
    ('classes', data, ''),
    ('what is rare', rarity, str(args.labels - 1)),
  ):
    folder = os.path.join(args.workdir, towards.replace(' ', '_'))
    at = guided(subject, of, label, folder)
    cells = [(scale, seed) for scale in args.scales for seed in args.seeds]
    for scale, seed in tqdm(cells, desc=towards, unit='set'):
      one = at(scale)
      x = one.model.sample(drawing.prepare(one.spec, sampler, of), args.count, seed).x
      if seed == args.seeds[0]:
        path = os.path.join(args.workdir, f'{towards.replace(" ", "_")}_{scale:g}.png')
        files.make_workdir(args.workdir)
        images.save(path, images.picture(x[:40], data.train, columns=10))
      found = subject.bench.features.extract(x)
      values = metrics.compare(
        found, subject.bench.reference, subject.bench.names, subject.bench.neighbours
      )
      asked = np.arange(args.count) % data.classes
      if towards == 'classes':
        right = np.argmax(found.logits, -1) == asked
        values['recognised as asked'] = estimates.of_share(right)
      values['rare'] = estimates.of_share(scores(subject, x, args, JUDGE) > limit)
      rows += [
        {'towards': towards, 'scale': scale, 'seed': seed, 'metric': name, **value.record()}
        for name, value in values.items()
      ]
  common.save(args.workdir, 'guidance', {**vars(args), 'rows': rows})


if __name__ == '__main__':
  main()
