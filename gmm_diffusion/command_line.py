"""What the command line needs besides flags: configs by name, help, errors of one line."""

import contextlib
import errno
import os
import re
import signal
import sys
from collections.abc import Iterator
from typing import Any

from gmm_diffusion import denoisers, metrics, options, parallel, samplers, specs
from gmm_diffusion.checkpoints import importers
from gmm_diffusion.denoisers import score_machines
from gmm_diffusion.errors import Stopped, UserError
from gmm_diffusion.maths import grids, marginals, schedules
from gmm_diffusion.metrics import features
from gmm_diffusion.nets import NETS, cnn

# beside the package, in a checkout as in an installation
CONFIGS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'configs')
TABLES = {  # the names that keys may have which the specs, below all of these, do not know
  'schedule.name': schedules.SCHEDULES,
  'net.name': NETS,
  'net.final': cnn.FINALS,
  'denoiser.name': denoisers.NAMES,
  'denoiser.prediction': marginals.PREDICTIONS,
  'sampler.name': samplers.NAMES,
  'sampler.grid': grids.GRIDS,
  'evaluate.samplers': samplers.NAMES,
  'evaluate.features': features.FEATURES,
  'evaluate.metrics': metrics.METRICS,
  'creativity.networks': cnn.FINALS,
  'creativity.machines': score_machines.MACHINES,
  **{f'{part}.weights.format': importers.FORMATS for part in ('net', 'autoencoder', 'classifier')},
}
LONGEST = 1500  # characters of an error
INTERRUPTED = 130  # the exit code of shells for Ctrl-C
USAGE = """\
gmm-diffusion --config=NAME[:VARIANT,...] --mode=MODE --workdir=FOLDER [--config.KEY=VALUE ...]

modes:   {modes}
configs: {configs}, or a file of yours
"""


def known_configs() -> list[str]:
  """The files of configs that come with the package."""
  try:
    names = os.listdir(CONFIGS)
  except OSError:
    names = []
  return sorted(n for n in names if n.endswith('.py') and n not in ('__init__.py', 'common.py'))


def locate(value: str) -> str:
  """FILE[:VARIANT] with the file that comes with the package where there is none of this path.

  Raises:
    UserError: if there is neither.
  """
  path, colon, variant = value.partition(':')
  if path and '\0' not in path and os.path.isfile(path):
    return value
  name = os.path.basename(path).removesuffix('.py') + '.py'
  if os.path.dirname(path) in ('', 'configs') and name in known_configs():
    return os.path.join(CONFIGS, name) + colon + variant
  raise UserError(
    f'no config {options.shown(path)}: there is no such file, and those that come with the package '
    f'are {", ".join(known_configs())}'
  )


def prepared(words: list[str]) -> list[str]:
  """Arguments with the path of the config; raises UserError on a key that does not exist."""
  out = list(words)
  for i, word in enumerate(words):
    key = re.match(r'--?(?:no)?config\.([^=]*)', word, re.DOTALL)
    if key:
      specs.check_key(key[1])
    if re.match(r'--?config=', word):
      flag, _, value = word.partition('=')
      out[i] = f'{flag}={locate(value)}'
    elif re.fullmatch(r'--?config', word) and i + 1 < len(words):
      out[i + 1] = locate(words[i + 1])
  return out


def help_of(config: dict[str, Any] | None, modes: tuple[str, ...]) -> str:
  """How to call the program, and every key of a config with its value and its meaning."""
  usage = USAGE.format(modes=', '.join(modes), configs=', '.join(known_configs()))
  if config is None:
    return usage + '\n--help with a --config lists every --config.KEY with its value and meaning.'
  return f'{usage}\nkeys, with their values in this config:\n\n' + options.describe(
    specs.Spec, config, TABLES
  )


def join() -> str:
  """Joins the other processes of a cluster, in words; '' where there is none. Ends the program
  where it cannot."""
  try:
    cluster = parallel.start()
  except UserError as error:  # how many hosts there are is not known
    sys.exit(f'error: {one_line(error)}')
  return f'joined by {cluster}: {parallel.describe()}' if cluster else ''


class Terminated(KeyboardInterrupt):
  """SIGTERM came. As for Ctrl-C, no handler of errors takes it for one of its own."""


@contextlib.contextmanager
def terminable() -> Iterator[None]:
  """SIGTERM raises Terminated, so that what was begun is cleaned up. JAX has a handler of its own
  where there are several hosts, which would keep it for itself."""

  def stop(number, frame):
    raise Terminated

  before = signal.signal(signal.SIGTERM, stop)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before or signal.SIG_DFL)  # None: not a handler of Python


def last_words(error: BaseException) -> tuple[str, int]:
  """(the line that a program ends with, its exit code); raises what is no user's business."""
  if isinstance(error, UserError):
    return one_line(error), error.code
  if isinstance(error, Terminated):
    return 'stopped by SIGTERM; the same command goes on from what was kept', Stopped.code
  if isinstance(error, KeyboardInterrupt):
    return 'stopped by Ctrl-C; the same command goes on from what was kept', INTERRUPTED
  if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
    return f'cannot write {error.filename or "a file"}: {error.strerror}; free space', 1
  raise error


def one_line(error: BaseException) -> str:
  """The message of an error on one line of printable characters."""
  lines = str(error).strip().splitlines() or [type(error).__name__]
  # configs that raise come with a traceback, whose last line says what it was
  text = ' '.join(lines) if isinstance(error, UserError) else lines[-1]
  text = re.sub(r'^\s*(ValueError|TypeError): ', '', text)
  text = text if text.isprintable() else text.encode('unicode_escape').decode()
  return text if len(text) <= LONGEST else f'{text[: LONGEST - 3]}...'
