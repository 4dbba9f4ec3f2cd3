"""What the experiments share. Experiments are run as `python -m experiments.NAME` from the repository's root."""

import argparse
import os
import platform
import sys

from gmm_diffusion.reports import files, records


def parser(description: str, workdir: str) -> argparse.ArgumentParser:
  """Arguments that every experiment takes."""
  out = argparse.ArgumentParser(description=description)
  out.add_argument('--workdir', default=workdir, help='where results go')
  return out


def save(workdir: str, name: str, value: dict) -> None:
  """Writes name.json with the command, the versions and the machine."""
  main = sys.modules['__main__']
  files.make_workdir(workdir)
  path = os.path.join(workdir, name + '.json')
  files.write_json(path, {
      'command': f'python -m {main.__spec__.name} ' + ' '.join(sys.argv[1:]), 'versions': records.versions(),
      'machine': f'{platform.machine()}, {os.cpu_count()} cores', **value})
  print(f'written: {path}')


