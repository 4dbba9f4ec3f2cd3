"""Tunes samplers for a network that others trained, and writes what --mode=tune writes.

python -m experiments.studies.tune_others --weights=ddpm_mnist_607k.pt --path=~/tensorflow_datasets
  --calls 5 10 --workdir=runs/others_mnist
"""

import argparse
import os
import time

import numpy as np

from experiments.lib import small_ddpm
from gmm_diffusion import files, specs
from gmm_diffusion.data import base, image_sets, sources
from gmm_diffusion.engine import build
from gmm_diffusion.maths import grids, schedules
from gmm_diffusion.metrics import features as features_lib
from gmm_diffusion.metrics import frechet, references
from gmm_diffusion.reports import images, records
from gmm_diffusion.samplers import tuned
from gmm_diffusion.tasks.diffusion import judging, tune, tune_page
from gmm_diffusion.tune import race, tiers
from gmm_diffusion.tune.subject import Subject

SHOWN = 96  # samples of each sampler


def main(argv=None):
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--weights', required=True, help='the state dict')
  parser.add_argument('--path', required=True, help='folder of tensorflow-datasets')
  parser.add_argument('--workdir', required=True)
  parser.add_argument('--own', action='store_true', help='match the long runs of the network')
  parser.add_argument('--calls', type=int, nargs='+', default=[5])
  parser.add_argument('--tier', type=int, default=2)
  parser.add_argument('--samples', type=int, default=512)
  parser.add_argument('--seeds', type=int, default=8)
  parser.add_argument('--count', type=int, default=1000)
  parser.add_argument('--batch', type=int, default=32)
  parser.add_argument('--minutes', type=float, default=0)
  parser.add_argument('--features', default='classifier', choices=('classifier', 'rotation'),
                      help='of the report')  # fmt: skip
  parser.add_argument('--limits', type=int, default=0, help='seeds of the model in many steps')
  args = parser.parse_args(argv)
  data = sources.load(specs.Data(name='tfds', dataset='mnist', path=args.path))
  arrays = small_ddpm.weights(args.weights)
  it = Subject(
    small_ddpm.denoiser, arrays, schedules.linear(), small_ddpm.SHAPE, (-1.0, 1.0),
    batch=args.batch, whole_times=True,
  )  # fmt: skip
  items, held = base.to_model(data.train), data.test
  if args.own:
    make = lambda: {'x': _long(it, 6 * args.samples + 2000)}
    own = files.kept(os.path.join(args.workdir, 'own.npz'), build.tree_hash(arrays), make)['x']
    items, held = own[:-2000], base.to_image(own[-2000:])
  names = [args.features, tune.SECOND]
  features = [features_lib.load(name, data, args.workdir, '') for name in names]
  seen = features_lib.for_tuning(data, args.workdir)
  source = references.Source(f'{len(held)} images', image_sets.ArraySet(held, 'held-out'))
  known = [references.load(source, one, set(), args.workdir) for one in features]

  def values(x):
    found = [one.extract(base.to_image(x)).features for one in features]
    pairs = zip(found, known, strict=True)
    return [frechet.frechet_distance(part, one.moments).value for part, one in pairs]

  for calls in args.calls:
    _one(args, it, (items, data.train, seen), values, calls, arrays, source.what)
  found = [files.read_json(tune.path_of(args.workdir, calls), {}) for calls in args.calls]
  path = os.path.join(args.workdir, 'tuned.html')
  name = os.path.basename(args.weights)
  print(
    '\n'.join(
      tune_page.write(
        path,
        f'{name}: the best sampler',
        str(argv),
        vars(args),
        found,
        strips(it, args.workdir, found),
      )
    )
  )


def strips(it, workdir, found):
  """[(name, PNG)] of samples of each table of files, with the same noise; also in the workdir."""
  out = []
  for one in found:
    for what, numbers in tune_page.tables_of(one):
      x = it.draw(tuned.table_of(numbers), tiers.stream(0, 0), np.arange(SHOWN))
      picture = images.grid(base.to_image(x), 16)
      name = f'{one["calls"]} calls, {what}'
      images.save(
        os.path.join(workdir, name.replace(', ', '_').replace(' ', '_') + '.png'), picture
      )
      out.append((name, images.png(picture)))
  return out


def _long(it, count):
  grid = grids.make(it.schedule, 1000, 'trailing')
  return np.asarray(it.end('ddpm', {}, grid, tiers.stream(0, tiers.OWN), np.arange(count)))


def _one(args, it, known, values, calls, arrays, reference):
  items, training, seen = known
  start, before = time.perf_counter(), it.calls
  folder = os.path.join(args.workdir, 'work', str(calls))
  keep = lambda name, mark, make: files.kept(os.path.join(folder, name), mark, make)
  settings = tiers.Settings(calls, args.tier, samples=args.samples, minutes=args.minutes)
  weights = build.tree_hash(arrays)
  mark = ' '.join([weights, str(args.own), str(args.samples), *(network.key for network in seen)])
  learned = [network.features for network in seen]
  tuner = tiers.Tuner(it, items, settings, keep, mark=mark, learned=learned)
  found = tuner.run()
  seconds, asked = time.perf_counter() - start, it.calls - before
  trailing = it.times(grids.make(it.schedule, calls, 'trailing').t)
  default = race.embedded('ddim', {}, it.schedule, trailing, 'trailing')
  some = (default, found.fixed, *found.proposals)
  judged = judging.judged(
    some, tuner, values, {args.features: True, tune.SECOND: True}, args.seeds, args.count,
    f'{args.features} {reference}',
  )  # fmt: skip
  keep_limit = lambda name, make: files.kept(
    os.path.join(args.workdir, 'work', name), f'{weights} {args.features} {reference}', make
  )
  limits = [] if args.own else [_floor(training, values, args)]
  if args.limits:
    streams = [tiers.stream(0, seed) for seed in range(args.limits)]
    limits += judging.limits(it, values, streams, args.count, keep_limit)
  about = {
    'metric': 'frechet',
    'features': args.features,
    'second': tune.SECOND,
    'reference': reference,
    'count': args.count,
  }
  content = tuned.content(found.best.table, it.shape, weights)
  fixed = tuned.content(found.fixed.table, it.shape, weights)['table']
  files.write_json(tune.path_of(args.workdir, calls), {
    'what': str(found.best), **content, 'fixed': {'what': str(found.fixed), 'table': fixed},
    'evidence': found.evidence,
    'report': tune_page.report(judged, found, {**about, 'limits': limits}),
    'calls': calls, 'seconds': seconds, 'network_calls': asked, 'finished': found.finished,
    'command': f'python -m experiments.studies.tune_others {vars(args)}',
    'versions': records.versions(),
    'reference': f'{len(items)} {"samples of 1000 steps" if args.own else "training items"}',
  })  # fmt: skip


def _floor(training, judges, args):
  """What training items reach, in as many draws as there are seeds."""
  draw = lambda seed: np.random.RandomState(seed).choice(len(training), args.count, replace=False)
  values = [judges(base.to_model(training[draw(seed)])) for seed in range(args.seeds)]
  return judging.limit(f'{args.count} training items', values)


if __name__ == '__main__':
  main()
