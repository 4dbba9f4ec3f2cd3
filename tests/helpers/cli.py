"""The real command, for tests: in a process of its own, or in this one."""

import contextlib
import io
import os
import sys
from unittest import mock

from absl import flags

from gmm_diffusion import main as command
from helpers import cases

TINY = (
  '--config.net.channels=8',
  '--config.net.multipliers=(1,)',
  '--config.net.head_channels=8',
  '--config.train.batch=16',
  '--config.train.warmup=0',
)
CNN = (  # compiles in less time
  '--config.net.name=cnn',
  '--config.net.channels=8',
  '--config.net.blocks=1',
  '--config.train.batch=16',
  '--config.train.warmup=0',
)


def words(config, mode, workdir, *overrides):
  return f'--config=configs/{config}', f'--mode={mode}', f'--workdir={workdir}', *overrides


def main(*settings, **how):
  """Runs the command (config, mode, workdir, *overrides): (exit code, stdout, stderr)."""
  return cases.python('-m', 'gmm_diffusion.main', *words(*settings), **how)


def here(*settings):
  """As main(), in this process, where a start of Python and its imports would show no more."""
  code, out, error = typed(*words(*settings))
  return (1, out, f'{error}{code}\n') if isinstance(code, str) else (code, out, error)


def typed(*arguments):
  """Parses and runs a command line in this process: (what it exits with, stdout, stderr)."""
  argv, out, error = ['gmm-diffusion', *arguments], io.StringIO(), io.StringIO()
  sys.modules.pop('config_config', None)  # the config before; the next would be run into its names
  with (
    mock.patch.object(command, 'FLAGS', flags.FlagValues()),
    mock.patch.object(sys, 'argv', argv),
    mock.patch.object(sys, 'unraisablehook', sys.unraisablehook),
    contextlib.redirect_stdout(out),
    contextlib.redirect_stderr(error),
  ):
    try:
      command.main(command.parse(argv))
    except SystemExit as end:
      return end.code, out.getvalue(), error.getvalue()
  return 0, out.getvalue(), error.getvalue()


def trained(folder):
  """The workdir of a tiny network of the digits, trained for two steps below a folder."""
  workdir = os.path.join(folder, 'start')
  code, _, error = here('digits.py:runlocal', 'train', workdir, *CNN, '--config.train.steps=2')
  assert not code, error
  return workdir
