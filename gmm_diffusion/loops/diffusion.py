"""The modes of the task 'diffusion': training a denoiser, sampling, and comparing samplers."""

from gmm_diffusion import specs
from gmm_diffusion.aliases import UserError
from gmm_diffusion.data import sources
from gmm_diffusion.loops import evaluate, pretrained, sample, train


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
    train.train(spec, data, workdir)
  if mode in ('fetch', 'convert'):
    getattr(pretrained, mode)(spec, data, workdir)
  if mode == 'sample':
    sample.sample(spec, data, workdir, command)
  if mode in ('evaluate', 'all'):
    evaluate.evaluate(spec, data, workdir, command)
