"""Guidance of images with and without Feynman-Kac correctors [2503.02819]: what is recognised as
asked, precision, recall, and how many particles of a group are left.

  python -m experiments.studies.fkc_images --workdir=runs/fkc_images --start=runs/digits

after `python -m gmm_diffusion.main --config=configs/digits.py --mode=train --workdir=runs/digits`.
"""

import os

import numpy as np
from tqdm import tqdm

from experiments.lib import common
from gmm_diffusion import files, metrics, samplers
from gmm_diffusion.data import base
from gmm_diffusion.denoisers import guidance
from gmm_diffusion.engine import build
from gmm_diffusion.metrics import estimates
from gmm_diffusion.reports import images
from gmm_diffusion.samplers import fkc


def drawn(subject, denoiser, args, scale, particles, seed):
  """(samples, mean effective sample size over steps and groups, share of steps that resample,
  calls of a branch for a sample); 0 particles is guidance without correction."""
  process, shape = build.schedule(subject.spec.schedule), subject.data.shape
  classes, ids = subject.data.classes, np.arange(args.count)
  labels = np.asarray(ids % classes, np.int32)
  if not particles:
    guided = guidance.classifier_free(denoiser, scale, classes)
    x = samplers.draw(
      guided, process, shape, ids, seed, 'ddim', args.steps, eta=1.0, cond=labels
    )  # fmt: skip
    return np.asarray(x), 1.0, 0.0, args.steps
  found = fkc.draw(
    fkc.branches(denoiser, classes), [1 - scale, scale], process, shape, ids, seed, particles,
    args.steps, cond=labels,
  )  # fmt: skip
  return np.asarray(found.x), found.sizes.mean(), found.resampled.mean(), found.nfe


def main():
  parser = common.parser(__doc__, 'runs/fkc_images')
  common.model_arguments(parser)
  parser.add_argument('--start', default='runs/digits', help='workdir of the trained network')
  parser.add_argument('--scales', type=float, nargs='+', default=[2.0])
  parser.add_argument('--particles', type=int, nargs='+', default=[0, 2, 8])
  parser.add_argument('--steps', type=int, default=50)
  parser.add_argument('--count', type=int, default=500, help='samples of each')
  parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
  args = parser.parse_args()
  files.make_workdir(args.workdir)
  subject = common.load_subject(common.spec_of(args.config, args.set), args.start, args.count)
  denoiser = build.denoiser(subject.spec, subject.data)(subject.model.weights)
  cells = [(1.0, 0)] + [(scale, particles) for scale in args.scales for particles in args.particles]
  rows = []
  for scale, particles in tqdm(cells, desc='guidance', unit='setting'):
    for seed in args.seeds:
      x, size, again, calls = drawn(subject, denoiser, args, scale, particles, seed)
      x = base.to_image(x)
      if seed == args.seeds[0]:
        path = os.path.join(args.workdir, f'scale{scale:g}_particles{particles}.png')
        images.save(path, images.picture(x[:40], subject.data.train, columns=10))
      found = subject.bench.features.extract(x)
      values = metrics.compare(
        found, subject.bench.reference, subject.bench.names, subject.bench.neighbours
      )
      asked = np.arange(args.count) % subject.data.classes
      values['recognised as asked'] = estimates.of_share(np.argmax(found.logits, -1) == asked)
      about = {'scale': scale, 'particles': particles, 'seed': seed, 'calls': int(calls)}
      about |= {'effective': float(size), 'resampled': float(again)}
      rows += [{**about, 'metric': name, **value.record()} for name, value in values.items()]
  common.save(args.workdir, 'fkc_images', {**vars(args), 'rows': rows})


if __name__ == '__main__':
  main()
