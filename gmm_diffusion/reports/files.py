"""Files that are whole or absent: written under a temporary name, then renamed."""

import json
import os
from typing import Any, Callable

import numpy as np

from gmm_diffusion.aliases import UserError


def write(path: str, save: Callable[[str], None]) -> None:
  """Calls save(temporary name with the same extension), then renames to path."""
  root, extension = os.path.splitext(path)
  temporary = f'{root}.partial{extension}'
  try:
    save(temporary)
    os.replace(temporary, path)
  finally:
    if os.path.exists(temporary):
      os.remove(temporary)


def write_text(path: str, text: str) -> None:
  def save(name):
    with open(name, 'w', encoding='utf-8') as file:
      file.write(text)

  write(path, save)


def write_json(path: str, value: Any) -> None:
  write_text(path, json.dumps(value, indent=1, allow_nan=False, default=_plain) + '\n')


def _plain(value):
  return value.item() if isinstance(value, np.generic) else list(value)


def read_json(path: str, default: Any) -> Any:
  """The content of a JSON file, or `default` where there is none."""
  if not os.path.exists(path):
    return default
  try:
    with open(path, encoding='utf-8') as file:
      return json.load(file)
  except (ValueError, OSError) as error:
    raise UserError(f'cannot read {path}: {error}; remove the file to start it anew') from error


def make_workdir(path: str) -> None:
  """Creates the folder; raises UserError if files cannot be written there."""
  try:
    os.makedirs(path, exist_ok=True)
    write_text(os.path.join(path, 'writable'), '')
    os.remove(os.path.join(path, 'writable'))
  except OSError as error:
    raise UserError(f'cannot write to --workdir {path!r}: {error.strerror}; give a folder that can be written') from error
