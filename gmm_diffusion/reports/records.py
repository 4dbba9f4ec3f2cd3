"""Every number that leaves the program: a record in results.json."""

import dataclasses
import importlib.metadata
import os
import platform
from typing import Any

from gmm_diffusion import files, parallel, specs
from gmm_diffusion.errors import UserError


def versions() -> dict[str, str]:
  """Versions of what computes, and the devices."""
  names = ('gmm_diffusion', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
  found = {}
  for name in names:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
      found[name] = 'not installed'
  return {**found, 'python': platform.python_version(), 'devices': parallel.describe()}


def common(spec: specs.Spec, command: str) -> dict[str, Any]:
  """What all records of a run share."""
  return {'command': command, 'config': dataclasses.asdict(spec), 'versions': versions()}


def add(workdir: str, records: list[dict[str, Any]]) -> None:
  """Adds records to results.json; a new one replaces that of the same kind, sampler, metric
  and set of samples, and comes last.

  Numbers that are not finite, which JSON does not have, become null; the record names them under
  'undefined'.
  """
  path = os.path.join(workdir, 'results.json')
  names = ('kind', 'sampler', 'metric', 'set')
  key = lambda record: tuple(record.get(name) for name in names)
  with files.locked(path):
    kept = {key(record): record for record in files.read_json(path, [], _are_records)}
    for record in records:
      plain, undefined = files.finite(record)
      kept.pop(key(record), None)
      kept[key(record)] = {**plain, 'undefined': undefined} if undefined else plain
    files.write_json(path, list(kept.values()))


def remember(workdir: str, spec: specs.Spec, anew: bool) -> None:
  """Stores the settings of a run in its workdir, as config.json; those that are there stay unless
  the run made the weights `anew`."""
  path = os.path.join(workdir, 'config.json')
  if anew or not os.path.exists(path):
    files.write_json(path, dataclasses.asdict(spec))


def config_of(workdir: str) -> dict[str, Any]:
  """The settings that a workdir was made with: those of config.json, or else of its last record.

  Raises:
    UserError: it holds neither.
  """
  config = files.read_json(os.path.join(workdir, 'config.json'), {})
  if config:
    return config
  found = files.read_json(os.path.join(workdir, 'results.json'), [], _are_records)
  for record in reversed(found):
    if isinstance(record.get('config'), dict):
      return record['config']
  raise UserError(
    f'{workdir} holds no finished run: neither config.json nor results.json is there; give the '
    f'config too, as load(CONFIG, workdir={workdir!r}), or run --mode=train'
  )


def _are_records(found):
  names = ('kind', 'sampler', 'metric', 'set')
  return all(
    isinstance(record, dict)
    and {'kind', 'sampler'} <= set(record)
    and all(isinstance(record.get(name), str | None) for name in names)
    for record in found
  )
