"""The tasks and their modes: what the command line, notebooks and experiments call."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from gmm_diffusion import files, options, parallel, specs
from gmm_diffusion.errors import UserError
from gmm_diffusion.reports import records
from gmm_diffusion.tasks import effects
from gmm_diffusion.tasks.creativity import modes as creativity
from gmm_diffusion.tasks.diffusion import modes as diffusion
from gmm_diffusion.tasks.masked import modes as masked
from gmm_diffusion.tasks.restoration import modes as restoration
from gmm_diffusion.tasks.segmentation import modes as segmentation

MODES = (
  'train', 'finetune', 'distill', 'quantise', 'fetch', 'convert', 'sample', 'tune', 'posterior',
  'evaluate', 'all', 'annotate',
)  # fmt: skip
MAKES_WEIGHTS = ('train', 'finetune', 'distill', 'quantise', 'fetch', 'convert', 'all')

TASKS = {  # task -> mode -> loop(spec, workdir, command)
  'diffusion': {
    mode: functools.partial(diffusion.run, mode) for mode in MODES if mode != 'annotate'
  },
  'segmentation': {
    mode: functools.partial(segmentation.run, mode)
    for mode in ('fetch', 'train', 'evaluate', 'all', 'annotate')
  },
  'creativity': {
    mode: functools.partial(creativity.run, mode) for mode in ('train', 'evaluate', 'all')
  },
  'restoration': {
    mode: functools.partial(restoration.run, mode)
    for mode in ('train', 'sample', 'evaluate', 'all')
  },
  'masked': {
    mode: functools.partial(masked.run, mode) for mode in ('train', 'sample', 'evaluate', 'all')
  },
}


def run(mode: str, workdir: str, config: Any, command: str, given: Sequence[str] = ()) -> None:
  """Runs a mode.

  Args:
    mode: in MODES, as far as the task has it.
    workdir: folder for checkpoints, samples and results.
    config: ConfigDict (or nested dict) of settings.
    command: what was typed, for records.
    given: keys of the config that a person has set; those must have an effect in this run.

  Raises:
    UserError: on anything that the person who set it can change.
  """
  spec = specs.from_config(config)
  if not workdir.isprintable():
    raise UserError(f'--workdir must be printable text, got {options.shown(workdir)}')
  if mode not in TASKS[spec.task]:
    raise UserError(
      f'task {spec.task!r} has no mode {mode!r}; valid: {", ".join(TASKS[spec.task])}'
    )
  effects.check(spec, mode, given)
  files.make_workdir(workdir)
  TASKS[spec.task][mode](diffusion.located(spec, workdir), workdir, command)
  if parallel.is_main():
    model = spec
    if spec.task == 'diffusion':  # what belongs to that run alone, not to the model
      net = dataclasses.replace(spec.net, checkpoint=0, average=0)
      model = dataclasses.replace(spec, net=net, inverse=specs.Inverse())
    records.remember(workdir, model, anew=mode in MAKES_WEIGHTS)
