"""The tasks and their modes: what the command line, notebooks and experiments call."""

import functools

from gmm_diffusion import files, specs
from gmm_diffusion.errors import UserError
from gmm_diffusion.tasks.creativity import modes as creativity
from gmm_diffusion.tasks.diffusion import modes as diffusion
from gmm_diffusion.tasks.segmentation import modes as segmentation

MODES = ('train', 'fetch', 'convert', 'sample', 'evaluate', 'all')

TASKS = {  # task -> mode -> loop(spec, workdir, command)
  'diffusion': {mode: functools.partial(diffusion.run, mode) for mode in MODES},
  'segmentation': {
    mode: functools.partial(segmentation.run, mode) for mode in ('train', 'evaluate', 'all')
  },
  'creativity': {
    mode: functools.partial(creativity.run, mode) for mode in ('train', 'evaluate', 'all')
  },
}


def run(mode: str, workdir: str, config, command: str) -> None:
  """Runs a mode with a ConfigDict (or nested dict) of settings."""
  spec = specs.from_config(config)
  if mode not in TASKS[spec.task]:
    raise UserError(
      f'task {spec.task!r} has no mode {mode!r}; valid: {", ".join(TASKS[spec.task])}'
    )
  files.make_workdir(workdir)
  TASKS[spec.task][mode](spec, workdir, command)
