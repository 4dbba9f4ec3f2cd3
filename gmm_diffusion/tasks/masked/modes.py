"""The modes of task 'masked': train, sample, evaluate, all."""

from typing import Any

import numpy as np

from gmm_diffusion import specs, task_specs
from gmm_diffusion.data import base, sources, streams
from gmm_diffusion.discrete import pixels
from gmm_diffusion.engine import drawing, measuring, sample_sets, trainer
from gmm_diffusion.engine.runs import Run
from gmm_diffusion.errors import UserError
from gmm_diffusion.tasks.masked import evaluate, models, report


def run(mode: str, spec: specs.Spec, workdir: str, command: str) -> None:
  """Runs a mode: train, sample, evaluate, or all (train, then evaluate)."""
  data = sources.load(spec.data)
  check(mode, spec, data)
  train, test = (rounded(images, spec.masked.levels) for images in (data.train, data.test))
  this = Run(spec, data._replace(train=train, test=test), workdir, command)
  if mode in ('evaluate', 'all'):
    evaluate.check(this)
  if mode in ('train', 'all') and spec.masked.predictor == 'network':
    models.train(this)
  if mode == 'sample':
    sample(this._replace(data=measuring.with_images(spec, this.data)))
  if mode in ('evaluate', 'all'):
    evaluate.evaluate(this)


def rounded(images: Any, levels: int) -> Any:
  """Images of V levels: an array, or a stream where they come as one."""
  of = lambda x: pixels.pictures(np.asarray(pixels.tokens(x, levels)), levels, images.shape[1:])
  if isinstance(images, np.ndarray):
    return of(images)
  one = lambda number: of(images[number : number + 1].read())[0]
  return streams.Stream(one, lambda n: f'image {n}', len(images), 0, images.shape[1:])


def check(mode: str, spec: specs.Spec, data: base.Data) -> None:
  """Raises UserError on a bad setting before anything slow starts."""
  if not data.is_image or not len(data.train):
    raise UserError(f'data {spec.data.name!r} has no images; valid: digits, folder, npz, tfds')
  if spec.masked.predictor == 'exact' and mode == 'train':
    raise UserError(
      "masked.predictor 'exact' has nothing to train; use --mode=sample or --mode=evaluate"
    )
  if spec.masked.predictor == 'exact' and spec.net.labels != 'none':
    raise UserError(
      f"masked.predictor 'exact' knows no classes; set net.labels to 'none', got "
      f'{spec.net.labels!r}'
    )
  if mode in ('train', 'all'):
    trainer.check_batch(spec.train)
  measuring.known(spec.inverse.hidden, data.shape)
  drawing.labels_of(spec, data, np.arange(1))
  if not spec.masked.compared:
    raise UserError('masked.compared must name at least one number of calls, got ()')
  if spec.net.labels == 'null' or spec.net.learn_sigma or spec.train.noisy:
    raise UserError(
      "task masked needs net.labels 'none' or 'plain', net.learn_sigma False and train.noisy 0: "
      'there is no guidance, no variance and no Gaussian noise'
    )
  models.net(spec, data)


def sample(this: Run) -> None:
  """--mode=sample: images, or with inverse.operator=mask what is hidden in test images."""
  spec, data, known, classes = this.spec, this.data, None, None
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
    if not (spec.sample.label or spec.inverse.images):
      classes = data.test_labels[measuring.numbers(spec, data, ids)]
  _check_calls(own, data)
  source = models.Model(this).drawer(own.order, own.calls, count, known, own.counts, classes)
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
