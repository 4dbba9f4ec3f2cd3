"""The real command, for tests."""

from helpers import cases

TINY = (
  '--config.net.channels=8',
  '--config.net.multipliers=(1,)',
  '--config.net.head_channels=8',
  '--config.train.batch=16',
  '--config.train.warmup=0',
)


def main(config, mode, workdir, *overrides, devices=1):
  """Runs the command: (exit code, stdout, stderr)."""
  return cases.python(
    '-m',
    'gmm_diffusion.main',
    f'--config=configs/{config}',
    f'--mode={mode}',
    f'--workdir={workdir}',
    *overrides,
    devices=devices,
  )
