"""Do score machines predict what a trained CNN generates? The rows of [ELS]'s table on digits or
MNIST, and the bound by bbELS.

A plain CNN is trained with zero and with circular padding; machines with patch sizes calibrated on
its trajectories start from the same noise. Median Pearson r (and r^2) over the images with
bootstrap intervals, beside what r is between the network's samples and their nearest training
images, and between unrelated samples.

  python -m experiments.studies.els_predicts_cnn --workdir=runs/els_digits
  python -m experiments.studies.els_predicts_cnn --data=mnist --path=~/tensorflow_datasets \\
    --workdir=runs/els_mnist

With --bound, instead: the denoising error of the boundary-broken machine with 7 x 7 patches beside
that of a trained CNN of three layers, which sees 7 x 7 pixels, on noised training images. The
machine is the best function of that kind, so its mean error is a lower bound.
"""

import dataclasses
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np

from configs import common as configs
from experiments.lib import common
from gmm_diffusion import files, specs
from gmm_diffusion.data import base, sources
from gmm_diffusion.denoisers import score_machines
from gmm_diffusion.engine import build, drawing, loss
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import marginals
from gmm_diffusion.metrics.estimates import bootstrap
from gmm_diffusion.reports import images
from gmm_diffusion.tasks.creativity import compare, machines
from gmm_diffusion.tasks.creativity.quality import plain

# Published medians of r, called r^2 there (60,000 training images, 256 channels, receptive field
# 17, 32 x 32).
PUBLISHED = {
  'zero': {'ELS': 0.94, 'LS': 0.82, 'IS': 0.61},
  'circular': {'ELS': 0.77, 'LS': 0.36, 'IS': 0.15},
}
LEVELS = (50, 200, 400, 600, 800)


def settings(args, padding: str, blocks: int) -> specs.Spec:
  """The spec of one network and its machines."""
  config = configs.defaults()
  config.task, config.seed = 'creativity', args.seed
  config.data.update(
    name='tfds' if args.data == 'mnist' else 'digits',
    dataset=args.data,
    path=args.path,
    limit=args.limit,
  )
  config.schedule.name = 'cosine'
  config.net.update(
    name='cnn', channels=args.channels, blocks=blocks, padding=padding, labels='none'
  )
  config.train.update(
    steps=args.train_steps,
    batch=args.batch,
    learning_rate=args.learning_rate,
    ema=0.995,
    checkpoint_every=500,
  )
  config.sampler.update(name='ddim', steps=args.steps, eta=0.0, grid='trailing')
  config.sample.update(count=args.pairs, batch=50)
  config.creativity.update(
    networks=('none',), pairs=args.pairs, probes=args.probes, sizes=tuple(args.sizes)
  )
  return specs.from_config(config)


def trained_in(args, name: str) -> str:
  """Where a network of this data and seed is kept."""
  return os.path.join(args.workdir, f'{name}_{args.data}_{args.limit or "all"}_seed{args.seed}')


def predict(args, padding: str) -> dict:
  """One network against its machines."""
  spec = settings(args, padding, args.blocks)
  data = sources.load(spec.data)
  folder = trained_in(args, padding)
  os.makedirs(folder, exist_ok=True)
  loss.train(spec, data, folder)
  weights = build.weights(spec, data, folder)
  model, made = drawing.Model(spec, data, weights), drawing.prepare(spec, spec.sampler, data)
  network = model.sample(made, args.pairs).x
  denoiser = build.denoiser(spec, data)(weights)
  few = dataclasses.replace(
    spec, creativity=dataclasses.replace(spec.creativity, images=args.calibration_images)
  )
  states = model.states(made, args.probes)
  rows, made = {}, {}
  for name in ('ELS', 'bbELS', 'LS', 'IS') if padding == 'zero' else ('ELS', 'LS', 'IS'):
    size, found = args.sizes[0], None
    if name != 'IS':
      found = machines.calibrated(few, data, denoiser, states, name)
      size = found.sizes
    made[name] = machines.machine_samples(spec, data, name, size, args.pairs)
    rows[name] = {
      **plain(compare.agreement(made[name], network)),
      'sizes': size if found else None,
      'cosines': found.cosines.tolist() if found else None,
      'published r': PUBLISHED[padding].get(name),
    }
    print(
      f'{padding:9s} {name:6s} r {compare.agreement(made[name], network)["r"]}   sizes '
      f'{[k for _, k in size] if found else "-"}',
      flush=True,
    )
  # paired: by how much the first is above the others, image by image
  r = {name: compare.pearson(x, network) for name, x in made.items()}
  best = 'bbELS' if padding == 'zero' else 'ELS'
  above = {
    f'{one} - {other}': plain(compare.median(r[one] - r[other]))
    for one in {'ELS', best}
    for other in ('LS', 'IS')
  }
  base = compare.baselines(network, data.train)
  for name, value in base.items():
    print(f'{padding:9s} {name}: r {value}', flush=True)
  order = [0, *range(1, min(args.pairs, 16))]
  sheet = np.concatenate(
    [
      network[order],
      *[x[order] for x in made.values()],
      data.train[compare.nearest(network, data.train)[0]][order],
    ]
  )
  images.save(
    os.path.join(args.workdir, f'els_{args.data}_{padding}.png'), images.grid(sheet, len(order))
  )
  return {
    'machines': rows,
    'differences of r': above,
    'baselines': plain(base),
    'rows of the picture': ['network', *made, 'nearest training image'],
  }


def bound(args, save) -> None:
  """Mean squared errors per pixel of bbELS with 7 x 7 patches and of a three-layer CNN, at several
  noise levels; save(rows) after each."""
  spec = settings(args, 'zero', 1)
  data = sources.load(spec.data)
  if args.pairs > len(data.train):
    raise UserError(f'--pairs {args.pairs} are more than the {len(data.train)} training images')
  folder = trained_in(args, 'three_layers')
  os.makedirs(folder, exist_ok=True)
  loss.train(spec, data, folder)
  network = build.denoiser(spec, data)(build.weights(spec, data, folder))
  clean, random = base.to_model(data.train), np.random.RandomState(args.seed)
  chosen = random.choice(len(clean), args.pairs, replace=False)
  machine = jax.jit(lambda x, time, known: score_machines.make('bbELS', known, 7)(x, time, None).x0)
  guess = jax.jit(lambda x, time: network(x, time, jnp.zeros(len(x), jnp.int32)).x0)
  rows = []
  for t in LEVELS:
    time = jax.tree.map(np.float32, build.schedule(spec.schedule).at(float(t)))
    x = marginals.diffuse(
      clean[chosen], random.standard_normal(clean[chosen].shape).astype(np.float32), time
    )
    errors = [
      np.mean(np.square(np.asarray(x0) - clean[chosen], dtype=np.float64), (1, 2, 3))
      for x0 in (machine(x, time, clean), guess(x, time))
    ]
    mean = lambda values: bootstrap(
      lambda counts: np.sum(counts * values) / np.sum(counts), len(values), 1000
    )
    row = {
      't': t,
      'b': float(time.b),
      'bbELS': mean(errors[0]),
      'CNN': mean(errors[1]),
      'CNN - bbELS': mean(errors[1] - errors[0]),
    }
    print(
      f't {t:4d}  b {row["b"]:.3f}  error of bbELS {row["bbELS"]}, of the CNN {row["CNN"]}, '
      f'difference {row["CNN - bbELS"]}',
      flush=True,
    )
    rows.append(plain(row))
    save(rows)


def main():
  parser = common.parser(__doc__, 'runs/els_predicts_cnn')
  parser.add_argument('--data', choices=('digits', 'mnist'), default='digits')
  parser.add_argument('--path', default='~/tensorflow_datasets')
  parser.add_argument(
    '--limit', type=int, default=0, help='training images of network and machines; 0 is all'
  )
  parser.add_argument('--channels', type=int, default=32)
  parser.add_argument(
    '--blocks',
    type=int,
    default=2,
    help='residual convolutions; the network sees 2 (blocks + 2) + 1 pixels',
  )
  parser.add_argument('--sizes', type=int, nargs='+', default=[3, 5, 7])
  parser.add_argument('--train-steps', type=int, default=3000)
  parser.add_argument('--batch', type=int, default=64)
  parser.add_argument('--learning-rate', type=float, default=2e-3)
  parser.add_argument('--steps', type=int, default=20)
  parser.add_argument('--pairs', type=int, default=100)
  parser.add_argument('--probes', type=int, default=8)
  parser.add_argument(
    '--calibration-images',
    type=int,
    default=0,
    help='training images that the machines see while patch sizes are chosen',
  )
  parser.add_argument('--paddings', nargs='+', default=['zero', 'circular'])
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--bound', action='store_true')
  args = parser.parse_args()
  about = {
    key: value for key, value in vars(args).items() if key not in ('workdir', 'path', 'paddings')
  }
  files.make_workdir(args.workdir)
  if args.bound:
    for key in ('blocks', 'sizes', 'steps', 'probes', 'calibration_images'):
      del about[key]
    bound(
      args,
      lambda rows: common.save(args.workdir, f'bbels_bound_{args.data}', {**about, 'rows': rows}),
    )
  else:
    for padding in args.paddings:  # saved after each
      about[padding] = predict(args, padding)
      common.save(args.workdir, f'els_predicts_cnn_{args.data}', about)


if __name__ == '__main__':
  try:
    main()
  except UserError as error:
    sys.exit(f'error: {error}')
