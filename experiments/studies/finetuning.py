"""Fine-tuning a trained network for few steps: kernels, features and samplers, beside as many more
updates of the plain loss.

  python -m experiments.studies.finetuning --workdir=runs/finetuning --start=runs/digits

after `python -m gmm_diffusion.main --config=configs/digits.py --mode=train --workdir=runs/digits`.
Every network is sampled by both samplers in the few steps, and by UniPC in 20. What judges is the
classifier of another seed than that of the features.
"""

import dataclasses
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
}


def main():
  parser = common.parser(__doc__, 'runs/finetuning')
  common.model_arguments(parser)
  parser.add_argument('--start', default='runs/digits', help='workdir of the trained network')
  parser.add_argument('--steps', type=int, default=5, help='of the samplers')
  parser.add_argument('--updates', type=int, default=100)
  parser.add_argument('--count', type=int, default=1000, help='samples of each')
  parser.add_argument('--seeds', type=int, nargs='*', default=[0, 1, 2], help='of the samples')
  args = parser.parse_args()
  own = [f'finetune.start={args.start}', f'finetune.steps={args.updates}', *args.set]

  def spec_of(sampler, steps, *changes):
    return common.spec_of(
      args.config,
      [*SAMPLERS[sampler], f'sampler.steps={steps}', 'evaluate.metrics=()', *own, *changes],
    )

  rows, data = [], sources.load(spec_of('ddim', args.steps).data)
  networks = {'before': args.start, 'plain loss': _plain(spec_of('ddim', args.steps), data, args)}
  for name, (sampler, kernel, features) in tqdm(VARIANTS.items(), desc='networks', unit='network'):
    networks[name] = os.path.join(args.workdir, name.replace(', ', '_'))
    spec = spec_of(
      sampler, args.steps, f'finetune.kernel={kernel}', f'finetune.features={features}'
    )
    finetune.finetune(spec, data, networks[name])
  for name, workdir in networks.items():
    for sampler, steps in (('ddim', args.steps), ('unipc', args.steps), ('unipc', 20)):
      spec = spec_of(sampler, steps)
      subject = common.load_subject(spec, workdir, args.count)
      title = f'{sampler} {steps}'
      found = common.over_seeds(subject, spec.sampler, args.count, args.seeds, f'{name}, {title}')
      rows += [{'network': name, 'sampler': title, **row} for row in found]
  settings = {'count': args.count, 'steps': args.steps, 'updates': args.updates}
  common.save(args.workdir, 'finetuning', {**settings, 'rows': rows})


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
