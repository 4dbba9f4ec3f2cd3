"""gmm-diffusion --config=digits.py --mode=all --workdir=DIR, or python -m gmm_diffusion.main ..."""

import re
import sys
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from gmm_diffusion import command_line, parallel, tasks
from gmm_diffusion.errors import UserError

FLAGS = flags.FLAGS
HELP = re.compile(r'--?(h|help|helpfull|helpshort|\?)$')


def define(argv: list[str]) -> None:
  """Defines the flags; those of the keys of a config depend on what was typed."""
  where: Any = dict(flag_values=FLAGS)
  config_flags.DEFINE_config_file('config', None, 'Settings.', sys_argv=argv, **where)
  flags.DEFINE_enum('mode', None, tasks.MODES, 'What to do.', **where)
  flags.DEFINE_string('workdir', None, 'Folder for all files.', **where)


def parse(argv: list[str]) -> list[str]:
  """Parses flags and loads the config; bad ones end the program with one line, help with a text."""
  try:
    words = [word for word in argv if not HELP.match(word)]
    words[1:] = command_line.prepared(words[1:])
    define(words)
    rest = FLAGS(words)
    config = dict(FLAGS.config.items()) if FLAGS.config is not None else None
    if len(words) < len(argv):  # help was asked for
      print(command_line.help_of(config, tasks.MODES))
      sys.exit()
    missing = [name for name in ('config', 'mode', 'workdir') if not getattr(FLAGS, name)]
    if missing or len(rest) > 1:
      raise UserError(
        f'unexpected argument {rest[1]!r}; options begin with --'
        if len(rest) > 1
        else f'--{missing[0]} is missing; --help says what there is'
      )
    return rest
  except Exception as error:  # a config is code of the user and raises what it likes
    sys.exit(f'error: {command_line.one_line(error)}')


def _show(unraisable: Any) -> None:
  """Shows what is raised where nobody can catch it, but for what tensorstore has still to say after
  orbax has ended with an error, which is shown."""
  if str(unraisable.exc_value) != 'Event loop is closed':
    sys.__unraisablehook__(unraisable)


def main(argv: list[str]) -> None:
  del argv
  # libraries report their progress as info, and as errors, with tracebacks, what they raise anyway
  logging.set_verbosity(logging.FATAL)
  sys.unraisablehook = _show
  joined = command_line.join()
  command = 'python -m gmm_diffusion.main ' + ' '.join(sys.argv[1:])
  given = tuple(config_flags.get_override_values(FLAGS['config']))
  try:
    with command_line.terminable():
      if joined:
        print(joined, flush=True)
      tasks.run(FLAGS.mode, FLAGS.workdir, FLAGS.config, command, given)
  except (UserError, OSError, KeyboardInterrupt) as error:
    parallel.end(*command_line.last_words(error))


def start() -> None:
  """The command gmm-diffusion."""
  app.run(main, flags_parser=parse)


if __name__ == '__main__':
  start()
