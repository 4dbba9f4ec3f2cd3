"""One form for every setting: its type, default, help and valid values stand in one place.

  steps: int = option(1000, 'optimiser updates', '[1, 100000000]')

`valid` is an interval, '[' and ']' with their end and '(' and ')' without it, or a tuple of
choices; of a tuple it holds for each entry. A default of None means that the code which takes the
option has the default; such an option is passed on only where it was set.
"""

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any

from gmm_diffusion.errors import UserError

SHOWN = 80  # characters of a bad value in a message
# What is counted in training or drawn: far above what anyone has run, far below what hangs.
COUNT, BATCH, WIDTH = '[1, 10000000]', '[1, 65536]', '[1, 16384]'
SEED, NUMBER = '[0, 4294967295]', '[0, 10000000]'


def option(default: Any, help: str, valid: str | tuple[str, ...] = ()) -> Any:
  """A field of a dataclass of settings."""
  return dataclasses.field(default=default, metadata={'help': help, 'valid': valid})


@functools.cache  # reading annotations takes most of the time
def kind_of(cls: type, name: str) -> Any:
  """The type of a field without the None of `float | None`."""
  kind = typing.get_type_hints(cls)[name]
  if isinstance(kind, types.UnionType):
    kind = next(part for part in typing.get_args(kind) if part is not types.NoneType)
  return kind


def leaves(cls: Any, path: str = '') -> Iterator[tuple[str, Any, dataclasses.Field]]:
  """(dotted key, type, field) of every setting in a dataclass and in those that it holds."""
  for field in dataclasses.fields(cls):
    kind = kind_of(cls, field.name)
    if dataclasses.is_dataclass(kind):
      yield from leaves(kind, f'{path}{field.name}.')
    else:
      yield path + field.name, kind, field


def shown(value: Any) -> str:
  """A value in a message: on one line, printable, and not too long."""
  try:
    text = repr(value)
  except ValueError:  # Python refuses to print a number of thousands of digits
    text = 'a number of more than 4300 digits'
  text = text if text.isprintable() else text.encode('unicode_escape').decode()
  return text if len(text) <= SHOWN else f'{text[:SHOWN]}...'


def check(settings: Any, path: str = '') -> None:
  """Raises UserError unless every value of a dataclass of settings is valid; path is its key and a
  dot."""
  for field in dataclasses.fields(settings):
    value, key = getattr(settings, field.name), path + field.name
    if dataclasses.is_dataclass(value):
      check(value, key + '.')
    elif value is not None:
      for entry in value if isinstance(value, tuple) else (value,):
        _check_entry(entry, key, field.metadata.get('valid', ()))


def _check_entry(value, key, valid):
  if isinstance(value, str) and not value.isprintable():
    raise UserError(f'{key} must be printable text, got {shown(value)}')
  if isinstance(value, float) and not math.isfinite(value):
    raise UserError(f'{key} must be a finite number, got {value}')
  if isinstance(valid, tuple):
    if valid and value not in valid:
      raise UserError(f'unknown {key} {shown(value)}; valid: {", ".join(valid)}')
  elif not _inside(value, valid):
    raise UserError(f'{key} must be in {valid}, got {shown(value)}')


def _inside(value: float, interval: str) -> bool:
  low, high = map(float, interval[1:-1].split(','))
  above = low <= value if interval[0] == '[' else low < value
  return above and (value <= high if interval[-1] == ']' else value < high)


def read(cls: type, values: Any, path: str = '') -> Any:
  """The dataclass of a nested mapping; keys left out have their defaults.

  Raises:
    UserError: on an unknown key, or a value of the wrong type.
  """
  if not hasattr(values, 'items'):
    raise UserError(f'config key {path[:-1]!r} is a section, got {shown(values)}')
  out = {}
  for name, value in values.items():
    find(cls, name, path)
    out[name] = _value(kind_of(cls, name), value, path + name, _default(cls, name))
  return cls(**out)


def find(cls: type, name: str, path: str) -> Any:
  """The type of a field; raises UserError where there is none."""
  names = [field.name for field in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []
  if name not in names:
    raise UserError(
      f'unknown config key {shown(path + str(name))}; valid: '
      f'{", ".join(path + other for other in names) or "no keys below"}'
    )
  return kind_of(cls, name)


def _default(cls, name):
  return cls.__dataclass_fields__[name].default


def _value(kind, value, key, default):
  if dataclasses.is_dataclass(kind):
    return read(kind, value, key + '.')
  if value is None and default is None:
    return None
  if typing.get_origin(kind) is tuple:
    if not isinstance(value, (tuple, list)):
      raise UserError(f'config key {key!r} must be a tuple, got {shown(value)}')
    return tuple(_value(typing.get_args(kind)[0], entry, key, ()) for entry in value)
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    try:
      return float(value)
    except OverflowError:
      raise UserError(f'{key} must be a finite number, got {shown(value)}') from None
  if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
    raise UserError(f'config key {key!r} must be of type {kind.__name__}, got {shown(value)}')
  return value


def describe(cls: type, values: Any, names: dict[str, Iterable[str]]) -> str:
  """A text of all keys with their values in a nested mapping, their meaning and what is valid;
  names: those that are known elsewhere."""
  out = []
  for key, kind, field in leaves(cls):
    value, name = values, getattr(kind, '__name__', '')
    if typing.get_origin(kind) is tuple:
      name = f'tuple of {typing.get_args(kind)[0].__name__}'
    for part in key.split('.'):
      value = value[part] if value is not None and part in value else None
    valid = field.metadata['valid'] or tuple(names.get(key, ()))
    valid = f', in {valid}' if isinstance(valid, str) else f': {", ".join(map(repr, valid))}'
    head = f'--config.{key}' + ('' if value is None else f'={value!r}')
    out.append(
      f'  {head}\n      {field.metadata["help"]} ({name}{valid if len(valid) > 2 else ""})'
    )
  return '\n'.join(out)
