"""The modes of the task 'diffusion': training a denoiser, sampling, restoring images, and comparing
samplers."""

import dataclasses
from collections.abc import Collection

from gmm_diffusion import specs
from gmm_diffusion.data import base, sources
from gmm_diffusion.engine import (
  build,
  classifying,
  drawing,
  loss,
  measuring,
  quality,
  released,
  sample_sets,
)
from gmm_diffusion.engine.runs import Run
from gmm_diffusion.errors import UserError
from gmm_diffusion.metrics import inception
from gmm_diffusion.tasks.diffusion import (
  distill,
  evaluate,
  finetune,
  posterior,
  quantise,
  restore,
  steady,
  tune,
)


def located(spec: specs.Spec, workdir: str) -> specs.Spec:
  """The settings with the files of the workdir where samplers are to find their own."""
  own = spec.sampler
  path = tune.path_of(workdir, own.steps) if own.path is None else own.path
  residuals = posterior.path_of(workdir) if own.posterior is None else own.posterior
  return dataclasses.replace(spec, sampler=dataclasses.replace(own, path=path, posterior=residuals))


def run(mode: str, spec: specs.Spec, workdir: str, command: str) -> None:
  """Runs a mode: train, finetune, distill, quantise, fetch, convert, sample, tune, posterior,
  evaluate, or all (train, then evaluate)."""
  if mode != 'sample':  # the other modes are about the model itself
    spec = dataclasses.replace(spec, inverse=specs.Inverse())
  data, learns = sources.load(spec.data), spec.denoiser.name == 'network'
  if mode in ('train', 'finetune', 'distill', 'quantise') and not learns:
    raise UserError(
      f'denoiser {spec.denoiser.name!r} is exact and has nothing to train; use --mode=sample, tune '
      f'or evaluate'
    )
  if mode == 'train' and spec.train.what == 'classifier':
    return classifying.train(spec, data, workdir)
  if mode == 'all' and spec.train.what == 'classifier':
    raise UserError("--mode=all trains a denoiser; with train.what 'classifier' use --mode=train")
  # find bad settings before the training, not after it
  todo = evaluate.check(spec, data) if mode == 'all' else None
  if mode == 'all' and learns:
    build.judge(spec, data)
  if mode in ('train', 'all') and learns:
    loss.train(spec, data, workdir)
  if mode == 'finetune':
    finetune.finetune(spec, data, workdir)
  if mode == 'distill':
    distill.distill(spec, data, workdir)
  if mode == 'quantise':
    quantise.quantise(spec, data, workdir)
  if mode == 'fetch':
    fetch(spec, data, workdir)
  if mode == 'convert':
    released.convert(spec, data, workdir)
  if mode == 'sample':
    sample(Run(spec, measuring.with_images(spec, data), workdir, command))
  if mode == 'tune':
    tune.tune(Run(spec, data, workdir, command))
  if mode == 'posterior':
    posterior.measure(Run(spec, data, workdir, command))
  if mode in ('evaluate', 'all'):
    evaluate.evaluate(Run(spec, data, workdir, command), todo)


def fetch(spec: specs.Spec, data: base.Data, workdir: str) -> None:
  """--mode=fetch: the released weights of the config, and those of its features."""
  of_features = spec.evaluate.features == 'inception'
  if of_features:
    cache = quality.cache_of(spec, workdir)
    inception.download(inception.place(cache, spec.evaluate.inception))
  released.fetch(spec, data, workdir, required=not of_features)


def sample(one: Run) -> None:
  """--mode=sample: the sampler of the config."""
  spec, data = one.spec, one.data
  count = steady.drawn(spec, data)
  sample_sets.check_pictures(one)
  made = drawing.prepare(spec, spec.sampler, data)  # bad settings before anything slow
  released.ensure(spec, data, one.workdir)
  model = drawing.Model(spec, data, build.weights(spec, data, one.workdir))
  source = model.drawer(made, count)
  out = sample_sets.write(one, source, count)
  if made.report:
    print(sample_sets.format_report(made.report))
  print(
    f'{count} samples, {out.nfe} network evaluations each, {out.seconds:.1f} s: {out.path}, .png'
  )
  if spec.inverse.operator:
    restore.judge(one, out, count)
  path: str = out.path
  ids: Collection[int] = range(count)
  if spec.sample.drop:
    path, ids = steady.keep(one, model, made, source, out, count)
    print(f'the {len(ids)} steadiest of them: {path}, .png')
  if spec.sample.png:
    print(f'images: {sample_sets.write_images(one, out, count, ids, path)}')
  if spec.sample.gif:
    print(f'x_0 on the way: {sample_sets.write_gif(model, made, out, count)}')
