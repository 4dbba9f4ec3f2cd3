"""Fine-tuning a trained network for few steps: kernels, features and samplers, beside as many more
updates of the plain loss.

  python -m experiments.studies.finetuning --workdir=runs/finetuning --start=runs/digits

after `python -m gmm_diffusion.main --config=configs/digits.py --mode=train --workdir=runs/digits`.
Every network is sampled by both samplers in the few steps, and by UniPC in 20; with --tuned also by
the sampler that --mode=tune found for so many calls, for which the network is fine-tuned too. What
judges is the classifier of another seed than that of the features, and histograms of gradients.
"""

import dataclasses
import itertools
import os
import shutil

from tqdm import tqdm

from experiments.lib import common
from gmm_diffusion.data import sources
from gmm_diffusion.engine import loss
from gmm_diffusion.tasks.diffusion import finetune

SAMPLERS = {
  'ddim': ['sampler.name=ddim'],
  'unipc': ['sampler.name=unipc', 'sampler.order=3', 'sampler.extrapolate=True'],
}
VARIANTS = {  # sampler, kernel, features
  'ddim, energy, pixels': ('ddim', 'energy', 'identity'),
  'unipc, energy, pixels': ('unipc', 'energy', 'identity'),
  'ddim, polynomial, pixels': ('ddim', 'polynomial', 'identity'),
  'ddim, energy, classifier': ('ddim', 'energy', 'classifier'),
  'tuned, energy, pixels': ('tuned', 'energy', 'identity'),
}


def main():
  parser = common.parser(__doc__, 'runs/finetuning')
  common.model_arguments(parser)
  parser.add_argument('--start', default='runs/digits', help='workdir of the trained network')
  parser.add_argument('--steps', type=int, default=5, help='of the samplers')
  parser.add_argument('--updates', type=int, default=100)
  parser.add_argument('--tuned', default='', help='the file of --mode=tune for so many calls')
  parser.add_argument('--variants', nargs='+', default=list(VARIANTS), choices=VARIANTS)
  parser.add_argument('--count', type=int, default=1000, help='samples of each')
  parser.add_argument('--seeds', type=int, nargs='*', default=[0, 1, 2], help='of the samples')
  args = parser.parse_args()
  samplers = {**SAMPLERS, **({'tuned': _tuned(args.tuned)} if args.tuned else {})}
  own = [f'finetune.start={args.start}', f'finetune.steps={args.updates}', *args.set]

  def spec_of(sampler, steps, *changes):
    return common.spec_of(
      args.config,
      [*samplers[sampler], f'sampler.steps={steps}', 'evaluate.metrics=()', *own, *changes],
    )

  rows, data = [], sources.load(spec_of('ddim', args.steps).data)
  networks = {'before': args.start, 'plain loss': _plain(spec_of('ddim', args.steps), data, args)}
  chosen = {name: VARIANTS[name] for name in args.variants if VARIANTS[name][0] in samplers}
  for name, (sampler, kernel, features) in tqdm(chosen.items(), desc='networks', unit='network'):
    networks[name] = os.path.join(args.workdir, name.replace(', ', '_'))
    spec = spec_of(
      sampler, args.steps, f'finetune.kernel={kernel}', f'finetune.features={features}'
    )
    finetune.finetune(spec, data, networks[name])
  asked = [*((sampler, args.steps) for sampler in samplers), ('unipc', 20)]
  judges = [], ['evaluate.features=gradients', "evaluate.metrics=('frechet',)"]
  for (name, workdir), (sampler, steps), judge in itertools.product(
    networks.items(), asked, judges
  ):
    spec = spec_of(sampler, steps, *judge)
    subject = common.load_subject(spec, workdir, args.count)
    title = f'{sampler} {steps}'
    found = common.over_seeds(subject, spec.sampler, args.count, args.seeds, f'{name}, {title}')
    about = {'network': name, 'sampler': title, 'features': spec.evaluate.features}
    rows += [{**about, **row} for row in found]
  settings = {'count': args.count, 'steps': args.steps, 'updates': args.updates}
  common.save(args.workdir, 'finetuning', {**settings, 'rows': rows})


def _tuned(path: str) -> list[str]:
  """Settings of the sampler of a file of --mode=tune."""
  return ['sampler.name=tuned', f'sampler.path={path}']


def _plain(spec, data, args) -> str:
  """The workdir of the same network after as many more updates of the plain loss, with the batch
  and rate of the fine-tuning."""
  folder = os.path.join(args.workdir, 'plain')
  if not os.path.exists(folder):
    shutil.copytree(args.start, folder)
  settings = dataclasses.replace(
    spec.train,
    steps=spec.train.steps + args.updates,
    batch=spec.finetune.batch,
    learning_rate=spec.finetune.learning_rate,
  )
  loss.train(dataclasses.replace(spec, train=settings), data, folder)
  return folder


if __name__ == '__main__':
  main()
