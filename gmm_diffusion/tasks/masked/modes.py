"""The modes of task 'masked': train, sample, evaluate, all."""

import numpy as np

from gmm_diffusion import specs, task_specs
from gmm_diffusion.data import base, sources
from gmm_diffusion.engine import measuring, sample_sets
from gmm_diffusion.engine.runs import Run
from gmm_diffusion.errors import UserError
from gmm_diffusion.tasks.masked import evaluate, models, report


def run(mode: str, spec: specs.Spec, workdir: str, command: str) -> None:
  """Runs a mode: train, sample, evaluate, or all (train, then evaluate)."""
  this = Run(spec, sources.load(spec.data), workdir, command)
  check(mode, spec, this.data)
  if mode in ('evaluate', 'all'):
    evaluate.check(this)
  if mode in ('train', 'all') and spec.masked.predictor == 'network':
    models.train(this)
  if mode == 'sample':
    sample(this._replace(data=measuring.with_images(spec, this.data)))
  if mode in ('evaluate', 'all'):
    evaluate.evaluate(this)


def check(mode: str, spec: specs.Spec, data: base.Data) -> None:
  """Raises UserError on a bad setting before anything slow starts."""
  if not data.is_image or not len(data.train):
    raise UserError(f'data {spec.data.name!r} has no images; valid: digits, folder, tfds')
  if spec.masked.predictor == 'exact' and mode == 'train':
    raise UserError(
      "masked.predictor 'exact' has nothing to train; use --mode=sample or --mode=evaluate"
    )
  if spec.net.labels == 'null' or spec.net.learn_sigma or spec.train.noisy:
    raise UserError(
      "task masked needs net.labels 'none' or 'plain', net.learn_sigma False and train.noisy 0: "
      'there is no guidance, no variance and no Gaussian noise'
    )
  models.net(spec, data)


def sample(this: Run) -> None:
  """--mode=sample: images, or with inverse.operator=mask what is hidden in test images."""
  spec, data, known = this.spec, this.data, None
  count, own = spec.sample.count, spec.masked
  if spec.inverse.operator:
    if spec.inverse.operator != 'mask':
      raise UserError(
        f"task masked restores what is hidden: inverse.operator must be '' or 'mask', got "
        f'{spec.inverse.operator!r}'
      )
    if not len(data.test):
      raise UserError('there are no test images to restore; set inverse.images to a folder')
    ids = np.arange(count)
    known = report.hide(spec, data, measuring.originals(spec, data, ids))
  _check_calls(own, data)
  source = models.Model(this).drawer(own.order, own.calls, count, known, own.counts)
  out = sample_sets.write(this, source, count)
  print(
    f'{count} samples, {out.nfe} calls of the predictor each, {out.seconds:.1f} s: {out.path}, .png'
  )
  if spec.sample.png:
    print(f'images: {sample_sets.write_images(this, out, count)}')


def _check_calls(own: task_specs.Masked, data: base.Data) -> None:
  """Raises UserError where there are more calls than pixels to reveal."""
  tokens = int(np.prod(data.shape))
  if own.order == 'first_hitting' and own.calls > tokens:
    raise UserError(
      f'masked.calls {own.calls} are more than the {tokens} tokens of an image; valid: 0..{tokens},'
      f" or any with masked.order 'ancestral'"
    )
