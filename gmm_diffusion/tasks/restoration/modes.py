"""The modes of task 'restoration': train, sample, evaluate, all."""

import os

import numpy as np
from tqdm import tqdm

from gmm_diffusion import parallel, specs
from gmm_diffusion.data import base, sources
from gmm_diffusion.denoisers import residual
from gmm_diffusion.engine import build, trainer
from gmm_diffusion.engine.runs import Run
from gmm_diffusion.errors import UserError
from gmm_diffusion.reports import images
from gmm_diffusion.tasks.restoration import evaluate, inputs, models

_SHOWN = 10  # images in the picture


def run(mode: str, spec: specs.Spec, workdir: str, command: str) -> None:
  """Runs a mode: train, sample, evaluate, or all (train, then evaluate)."""
  this = Run(spec, sources.load(spec.data), workdir, command)
  check(mode, spec, this.data)
  pairs = inputs.load(spec, this.data)
  if mode in ('evaluate', 'all'):
    evaluate.check(this)
  if mode in ('train', 'all'):
    for model in spec.restoration.models:
      print(f'network {model}', flush=True)
      models.train(this, pairs, model)
  if mode == 'sample':
    sample(this, pairs)
  if mode in ('evaluate', 'all'):
    evaluate.evaluate(this, pairs)


def check(mode: str, spec: specs.Spec, data: base.Data) -> None:
  """Raises UserError on a bad setting before anything slow starts."""
  if mode in ('train', 'all'):
    trainer.check_batch(spec.train)
  wanted = spec.restoration.models
  for name in wanted or ('',):
    if name not in models.MODELS:
      raise UserError(
        f'unknown name {name!r} in restoration.models; valid: {", ".join(models.MODELS)}'
      )
  inputs.check(spec, data)
  if spec.net.labels != 'none' or spec.train.noisy or spec.net.learn_sigma:
    raise UserError(
      "task restoration needs net.labels 'none', train.noisy 0 and net.learn_sigma False: its "
      'networks know no classes, learn from clean images, and no variance'
    )
  if spec.train.loss == 'elbo':
    raise UserError(
      "train.loss 'elbo' has no weights where there is no signal, at which restoration begins; "
      'valid: simple, min_snr, p2'
    )
  residual.check(build.schedule(spec.schedule), spec.denoiser.prediction)
  build.net(spec, data)


def sample(this: Run, pairs: inputs.Pairs | None) -> None:
  """--mode=sample: the first of restoration.models restores restoration.images, or degraded test
  images, into the folder restored/."""
  spec, data, model = this.spec, this.data, this.spec.restoration.models[0]
  if spec.restoration.images:
    x_in, names = inputs.own_images(spec, data)
  elif not len(data.test):
    raise UserError('there are no test images to restore; set restoration.images to a folder')
  else:
    count = min(spec.sample.count, len(data.test))
    x_in = inputs.of_test(spec, data, pairs, count)
    names = [f'{number:05d}.png' for number in range(count)]
  chosen = None if model == models.REGRESSION else spec.sampler
  if chosen is not None:
    models.prepared(spec, data, chosen)
  draws = spec.inverse.draws if chosen else 1
  ids = np.arange(len(x_in) * draws, dtype=np.uint32)
  with tqdm(total=len(ids), desc=f'restoring, {model}', unit='image', dynamic_ncols=True) as bar:
    restored, calls = models.Restorer(this, model).restore(
      chosen, x_in.repeat(draws, 0), ids, bar.update
    )
  if not parallel.is_main():
    return
  folder = os.path.join(this.workdir, 'restored')
  for number, image in enumerate(restored):
    stem, draw = os.path.splitext(names[number // draws])[0], number % draws
    path = os.path.join(folder, f'{stem}-{draw}.png' if draws > 1 else f'{stem}.png')
    images.save(path, images.single(image))
  path = os.path.join(this.workdir, 'restored.png')
  rows = [base.to_image(x_in[:_SHOWN]), *(restored[draw::draws][:_SHOWN] for draw in range(draws))]
  images.save(path, images.grid(np.concatenate(rows), len(rows[0])))
  print(f'{len(restored)} images, {calls} network evaluations each: {folder}')
  print(f'degraded images above what is made of them: {path}')
