"""The modes of the task 'diffusion': training a denoiser, sampling, and comparing samplers."""

from gmm_diffusion import specs
from gmm_diffusion.data import base, sources
from gmm_diffusion.engine import build, drawing, loss, released
from gmm_diffusion.errors import UserError
from gmm_diffusion.tasks.diffusion import evaluate


def run(mode: str, spec: specs.Spec, workdir: str, command: str) -> None:
  """Runs a mode: train, fetch, convert, sample, evaluate, or all (train, then evaluate)."""
  data, learns = sources.load(spec.data), spec.denoiser.name == 'network'
  if mode == 'train' and not learns:
    raise UserError(
      f'denoiser {spec.denoiser.name!r} is exact and has nothing to train; use --mode=sample or '
      f'evaluate'
    )
  if mode == 'all':  # find bad settings before the training, not after it
    evaluate.check(spec, data)
  if mode in ('train', 'all') and learns:
    loss.train(spec, data, workdir)
  if mode in ('fetch', 'convert'):
    getattr(released, mode)(spec, data, workdir)
  if mode == 'sample':
    sample(spec, data, workdir, command)
  if mode in ('evaluate', 'all'):
    evaluate.evaluate(spec, data, workdir, command)


def sample(spec: specs.Spec, data: base.Data, workdir: str, command: str) -> None:
  """--mode=sample: the sampler of the config."""
  drawing.prepare(spec, spec.sampler, data)  # bad settings before anything slow
  released.ensure(spec, data, workdir)
  weights = build.weights(spec, data, workdir)
  source = drawing.drawer(
    drawing.fitting(spec, spec.sample.count), data, weights, build.tree_hash(weights), spec.sampler
  )
  out = drawing.write(spec, data, source, spec.sampler, spec.sample.count, workdir, command)
  if source.report:
    print(drawing.format_report(source.report))
  print(
    f'{spec.sample.count} samples, {out.nfe} network evaluations each, {out.seconds:.1f} s: '
    f'{out.path}, .png'
  )
