"""What is known while a network is trained: rows of metrics.jsonl, which TensorBoard and Weights &
Biases get too where that is wanted."""

import contextlib
import importlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from gmm_diffusion import files, parallel, specs
from gmm_diffusion.checkpoints.store import Store
from gmm_diffusion.errors import UserError

METRICS = 'metrics.jsonl'  # a row of Log in each line
ERRORS = 'errors'  # of a row: {noise level b / a in words: mean squared error there}
_WANDB_RUN = 'wandb_run.json'  # of a workdir: which run goes on


class Log:
  """The rows of metrics.jsonl: means since the row before."""

  def __init__(
    self,
    spec: specs.Train,
    workdir: str,
    start: int,
    section: str,
    rate: Callable[[int], Any] | float,
    write: Callable[[dict[str, Any]], None],
  ):
    """Removes rows after the step `start`, which is where the training goes on.

    Args:
      spec, workdir, section: as for trainer.fit.
      rate: the learning rate.
      write: called with each row, too.
    """
    self.spec, self.path, self.section = spec, os.path.join(workdir, METRICS), section
    self.values: list[Any] = []
    self._rate, self._write, self._then = rate, write, time.perf_counter()
    self._work = 0.0
    if parallel.is_main() and os.path.exists(self.path):
      with open(self.path, encoding='utf-8') as file:
        kept = [line for line in file if _step_of(line) <= start]
      files.write_text(self.path, ''.join(kept))

  def expect(self, work: float) -> None:
    """An update takes this part of what the devices can compute in a second; 0 is not known."""
    self._work = work

  def row(self, done: int, store: Store) -> dict[str, Any]:
    """Adds the row of a step; raises UserError where its loss or gradient is not finite."""
    losses, norms, errors = zip(*parallel.unreplicate(self.values))
    rate = self._rate(done - 1) if callable(self._rate) else self._rate
    loss, norm = (
      self._mean(what, values, done, store)
      for what, values in (('loss', losses), ('gradient', norms))
    )
    now, images = time.perf_counter(), len(losses) * self.spec.batch
    row: dict[str, Any] = {
      'step': done,
      'images': done * self.spec.batch,
      'loss': loss,
      'gradient_norm': norm,
      'learning_rate': float(rate),
      'images_per_second': images / (now - self._then),
      'time': time.time(),
    }
    sums = {
      level: np.sum([step[level] for step in errors], 0) for level in sorted(errors[0], key=float)
    }
    if sums:
      row[ERRORS] = {k: float(total / count) for k, (total, count) in sums.items() if count}
    if self._work:
      row['flops_share'] = self._work * len(losses) / (now - self._then)
    if parallel.is_main():
      files.append_line(self.path, json.dumps(row))
      self._write(row)
    self.values, self._then = [], now
    return row

  def _mean(self, what: str, values: Sequence[Any], done: int, store: Store) -> float:
    """The mean of the last values; raises UserError where it is not finite: a gradient that is not
    makes the weights of the next checkpoint NaN before a loss shows it."""
    mean = float(np.mean(values))
    if np.isfinite(mean):
      return mean
    kept = store.latest()
    raise UserError(
      f'{what} is {mean} between steps {done - len(values)} and {done}; lower '
      f'{self.section}.learning_rate ({self.spec.learning_rate:g}) or train.clip_norm; '
      + (f'checkpoint {kept} is kept' if kept else 'no checkpoint was written')
    )


def _step_of(line: str) -> float:
  """The step of a row; infinite where the line is none, such as one that was cut off."""
  try:
    return float(json.loads(line)['step'])
  except (ValueError, KeyError, TypeError):
    return float('inf')


@contextlib.contextmanager
def writers(
  names: Sequence[str], workdir: str, start: int, about: dict[str, Any]
) -> Iterator[Callable[[dict[str, Any]], None]]:
  """What takes rows of metrics to the loggers of these names, of the first host.

  Args:
    names: in LOGGERS.
    workdir: of the run.
    start: the step at which the training goes on.
    about: the settings, for people.

  Raises:
    UserError: a logger is not installed.
  """
  with contextlib.ExitStack() as stack:
    mine = names if parallel.is_main() else ()
    found = [stack.enter_context(LOGGERS[name](workdir, start, about)) for name in mine]

    def write(row):
      for one in found:
        one(row)

    yield write


def check(names: Sequence[str]) -> None:
  """Raises UserError where one of the loggers is not installed."""
  for name in names:
    _module(name)


def _module(extra):
  name = {'tensorboard': 'tensorboardX'}.get(extra, extra)
  try:
    return importlib.import_module(name)
  except ImportError as error:
    raise UserError(
      f'train.loggers {extra!r} needs {name} ({error}); install the extra: pip install -e '
      f"'.[{extra}]'"
    ) from error


@contextlib.contextmanager
def _tensorboard(workdir, start, about):
  """Event files in WORKDIR/tensorboard."""
  module = _module('tensorboard')
  with module.SummaryWriter(os.path.join(workdir, 'tensorboard'), purge_step=start + 1) as writer:
    writer.add_text('settings', f'```\n{json.dumps(about, indent=1)}\n```', start)

    def write(row):
      values = {f'{ERRORS}/{level}': value for level, value in row.get(ERRORS, {}).items()}
      for key, value in {**row, **values}.items():
        if key not in ('step', 'time', ERRORS):
          writer.add_scalar(key, value, row['step'], walltime=row['time'])

    yield write


@contextlib.contextmanager
def _wandb(workdir, start, about):
  """One run for a workdir, however often it is started."""
  del start  # rows that are there already are left out over there
  module = _module('wandb')
  path = os.path.join(workdir, _WANDB_RUN)
  own = files.read_json(path, {}) or {'id': uuid.uuid4().hex[:12]}
  files.write_json(path, own)
  try:
    run = module.init(
      project=os.environ.get('WANDB_PROJECT', 'gmm_diffusion'),
      name=os.path.basename(os.path.realpath(workdir)),
      dir=workdir,
      id=own['id'],
      resume='allow',
      config=about,
    )
  except module.Error as error:
    raise UserError(
      f'Weights & Biases refuses ({str(error).splitlines()[0]}); run wandb login on this machine, '
      f'or set WANDB_MODE=offline'
    ) from error
  try:
    yield lambda row: run.log(row, step=row['step'])
  finally:
    run.finish()


LOGGERS = {'tensorboard': _tensorboard, 'wandb': _wandb}
