"""python -m gmm_diffusion.main --config=configs/digits.py --mode=all --workdir=DIR"""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

from gmm_diffusion import parallel, specs, tasks
from gmm_diffusion.errors import UserError

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file(
  'config',
  None,
  'Settings, such as configs/digits.py or configs/digits.py:runlocal.',
  lock_config=True,
)
flags.DEFINE_enum(
  'mode',
  None,
  tasks.MODES,
  'What to do; all is train, then evaluate. fetch and convert get released weights.',
)
flags.DEFINE_string('workdir', None, 'Folder for checkpoints, samples and results.')
flags.mark_flags_as_required(['config', 'mode', 'workdir'])


def parse(argv: list[str]) -> list[str]:
  """Parses flags and loads the config; bad ones end the program with one line."""
  try:
    rest = FLAGS(argv)
    if FLAGS.config is not None:
      FLAGS.config.items()  # a missing file shows here
    return rest
  except (flags.Error, AttributeError, KeyError, TypeError, OSError) as error:
    message = str(error).strip().splitlines()[-1].strip().removeprefix('ValueError: ')
    for flag in argv[1:]:
      if flag.startswith('--config.'):
        try:
          specs.check_key(flag.removeprefix('--config.').split('=')[0])
        except UserError as unknown:
          message = str(unknown)
    sys.exit(f'error: {message}')


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {" ".join(argv[1:])}')
  logging.set_verbosity(logging.ERROR)  # libraries report their progress as info
  cluster = parallel.start()
  if cluster:
    print(f'joined by {cluster}: {parallel.describe()}', flush=True)
  try:
    tasks.run(
      FLAGS.mode,
      FLAGS.workdir,
      FLAGS.config,
      'python -m gmm_diffusion.main ' + ' '.join(sys.argv[1:]),
    )
  except UserError as error:
    sys.exit(f'error: {error}')


if __name__ == '__main__':
  app.run(main, flags_parser=parse)
