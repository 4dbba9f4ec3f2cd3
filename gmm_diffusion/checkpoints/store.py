"""Checkpoints with orbax: weights to sample from, kept apart from the state of training.

A step is written under a temporary name and renamed when complete, so a killed run leaves either
the whole step or nothing. Beside the arrays lie checksums of their files, which are verified before
a file is read; steps without them are read as they are. Sampling reads the networks that it uses
and nothing else, in the dtype asked for.
"""

import functools
import glob
import json
import os
import shutil
import zlib
from concurrent import futures
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as managers
from orbax.checkpoint import type_handlers

from gmm_diffusion import files, parallel
from gmm_diffusion.errors import UserError

FORMAT = 'gmm_diffusion/2'
AVERAGES = ('average_1', 'average_2', 'average_3')  # further ones of the weights in 'net'
PARTS = ('net', 'autoencoder', 'classifier', *AVERAGES)
_CHECKSUMS = 'checksums.json'
_UNFINISHED = '.orbax-checkpoint-tmp'
_PIECE = 1 << 24  # bytes read at a time


class Store:
  """The checkpoints of a workdir, closed at the end of a `with` block. `about` is a small JSON
  description of the network."""

  def __init__(
    self,
    workdir: str,
    create: bool = False,
    copy: bool = True,
    keep: tuple[int, int] = (2, 0),
    step: int = 0,
  ):
    """Opens the checkpoints.

    Args:
      workdir: where they are.
      create: makes the folder.
      copy: save works on copies, so that the arrays may change at once; without, they must stay
        until close().
      keep: (how many of the last ones stay, every how many steps one stays for good; 0 none).
      step: the one to read; 0 is the latest.
    """
    self.path = os.path.abspath(os.path.join(workdir, 'checkpoints'))
    self._manager: Any = None
    self._saving: int | None = None
    if os.path.exists(self.path) and not os.path.isdir(self.path):
      raise UserError(f'{self.path} is not a folder; remove it, or give another --workdir')
    if create or os.path.isdir(self.path):
      try:
        self._manager = self._open(create, copy, keep)
      except Exception as error:  # orbax raises many kinds
        raise UserError(
          f'cannot open {self.path}: {_reason(error)}; give another --workdir'
        ) from error
    self._step = step
    if step and self._manager and step not in self._manager.all_steps():
      known = ', '.join(map(str, sorted(self._manager.all_steps()))) or 'none'
      self.close()
      raise UserError(f'there is no checkpoint {step} in {self.path}; there are: {known}')

  def _open(self, create, copy, keep):
    numpy = type_handlers.NumpyHandler(deepcopy_host_arrays=copy)
    # nothing here is a jax.Array, but orbax warns where they have no handler
    registry = type_handlers.create_type_handler_registry(
      (np.ndarray, numpy), (jax.Array, type_handlers.ArrayHandler())
    )
    # weights hardly compress, and doing so would hold all of them a second time
    handler = lambda: ocp.PyTreeCheckpointHandler(
      type_handler_registry=registry, use_compression=False
    )
    stay = [managers.LatestN(keep[0])] + [managers.EveryNSteps(keep[1])] * bool(keep[1])
    options = ocp.CheckpointManagerOptions(
      preservation_policy=managers.AnyPreservationPolicy(stay),
      create=create,
      enable_async_checkpointing=True,
      async_options=ocp.AsyncOptions(post_finalization_callback=self._write_checksums),
    )
    return ocp.CheckpointManager(
      self.path,
      options=options,
      item_names=(*PARTS, 'train', 'about'),
      item_handlers={name: handler() for name in PARTS},
    )

  def __enter__(self) -> 'Store':
    return self

  def __exit__(self, *error: Any) -> None:
    self.close()

  def latest(self) -> int | None:
    """The last complete step, or the one that was asked for; None where there is none."""
    return (self._step or self._manager.latest_step()) if self._manager else None

  def save(self, step: int, weights: dict[str, Any], train: Any, about: dict[str, Any]) -> None:
    """Writes a step in the background: weights by the names in PARTS; train is None where nothing
    is trained.

    Raises:
      UserError: this step, or the one before, cannot be written.
    """
    items = {
      name: ocp.args.PyTreeSave(jax.tree.map(np.asarray, part)) for name, part in weights.items()
    }
    items['about'] = ocp.args.JsonSave(dict(about, format=FORMAT))
    if train is not None:
      items['train'] = ocp.args.StandardSave(train)
    self._wait()
    self._saving = step
    try:
      self._manager.save(step, args=ocp.args.Composite(**items))
    except Exception as error:  # orbax and tensorstore raise many kinds
      raise self._cannot_write(error) from error

  def close(self) -> None:
    """Waits until everything is on disk; raises UserError if it cannot be written."""
    if self._manager:
      try:
        self._wait()
      finally:
        self._manager.close()

  def _wait(self):
    try:
      self._manager.wait_until_finished()
    except Exception as error:  # orbax and tensorstore raise many kinds
      raise self._cannot_write(error) from error

  def _cannot_write(self, error):
    gone = '; if another machine is gone, start the command again on all of them'
    return UserError(
      f'cannot write the checkpoint to {self.path}: {_reason(error)}; free space there, or give '
      f'another --workdir{gone * (parallel.hosts() > 1)}'
    )

  def remove_unfinished(self) -> None:
    """Removes steps that nobody finishes any more; call it where no other process can be saving."""
    for left in glob.glob(os.path.join(glob.escape(self.path), '*' + _UNFINISHED + '*')):
      shutil.rmtree(left, ignore_errors=True)

  def _write_checksums(self):
    """Called in the background when all files of a step are complete, before it is renamed."""
    if parallel.is_main():
      unfinished = os.path.join(glob.escape(self.path), f'{self._saving}{_UNFINISHED}*')
      for step in glob.glob(unfinished):
        names = [
          os.path.relpath(os.path.join(folder, name), step).replace(os.sep, '/')
          for folder, _, names in os.walk(step)
          for name in names
        ]
        files.write_json(os.path.join(step, _CHECKSUMS), _checksums(step, names))

  def _verify(self, step, item):
    """Raises UserError where a file of an item is not as it was written."""
    step = os.path.join(self.path, str(step))
    known = files.read_json(os.path.join(step, _CHECKSUMS), {})
    known = {name: value for name, value in known.items() if name.startswith(item + '/')}
    for name, found in _checksums(step, known).items():
      if found != known[name]:
        raise UserError(
          f'cannot read {item!r} of checkpoint {step}: {name} is not as it was written; it is '
          f'damaged: use another --workdir, or remove that folder'
        )

  def about(self) -> dict[str, Any]:
    """The description of the latest step.

    Raises:
      UserError: if there is none, or it is not ours.
    """
    step = self.latest()
    if step is None:
      raise UserError(
        f'no checkpoint in {self.path}; train one first with --mode=train or --mode=all, or '
        f'--mode=convert released weights'
      )
    about = self._restore(step, 'about', ocp.args.JsonRestore())
    found = about.get('format') if isinstance(about, dict) else about
    if found != FORMAT:
      raise UserError(f'checkpoint {self.path} has format {found!r:.80}; valid: {FORMAT!r}')
    return about

  def difference(self, about: dict[str, Any]) -> tuple[str, Any, Any] | None:
    """(key, stored, wanted) of the first entry of `about` that the latest step was not made with.

    Options that the step does not know are younger than it.
    """
    stored = self.about()
    for key, wanted in json.loads(json.dumps(about)).items():
      if not (isinstance(wanted, dict) and isinstance(stored.get(key), dict)):
        if stored.get(key) != wanted:
          return key, stored.get(key), wanted
        continue
      for name, value in wanted.items():
        if name in stored[key] and stored[key][name] != value:
          return f'{key}.{name}', stored[key][name], value
    return None

  def weights(self, template: dict[str, Any]) -> dict[str, Any]:
    """The parts in the template with its shapes and dtypes, as host arrays."""
    # a host array as template, though without memory of its own, keeps a second copy off the device
    cast = lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape)
    out = {}
    for name, part in template.items():
      part = jax.tree.map(cast, part)
      args = ocp.args.PyTreeRestore(
        part, restore_args=ocp.checkpoint_utils.construct_restore_args(part)
      )
      out[name] = self._restore(self.latest(), name, args)
    for name, part in template.items():  # orbax does not compare the shapes of host arrays
      for path, leaf in jax.tree_util.tree_leaves_with_path(part):
        found = functools.reduce(lambda node, key: node[key.key], path, out[name])
        if found.shape != leaf.shape:
          raise UserError(
            f'cannot read {name!r} of checkpoint {self.path}: {jax.tree_util.keystr(path)} has '
            f'shape {found.shape}, the config says {leaf.shape}; use its config, or another '
            f'--workdir'
          )
    return out

  def average(self, number: int) -> str:
    """The part that holds an average of the weights: 0, then those of train.averages.

    Raises:
      UserError: it is not there.
    """
    if not number:
      return 'net'
    step = os.path.join(self.path, str(self.latest()))
    there = [n for n, name in enumerate(AVERAGES, 1) if os.path.isdir(os.path.join(step, name))]
    if number not in there:
      raise UserError(
        f'net.average {number} is not in checkpoint {step}, which was trained without; valid: '
        f'{", ".join(map(str, [0, *there]))}'
      )
    return AVERAGES[number - 1]

  def training(self, template: Any) -> Any:
    """The training state, exactly as saved; raises UserError where it is of another optimiser."""
    keep = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_device())
    args = ocp.args.StandardRestore(jax.tree.map(keep, template))
    try:
      return self._restore(self.latest(), 'train', args)
    except UserError as error:
      if 'structures do not match' not in str(error):
        raise
      raise UserError(
        f'the checkpoint in {self.path} was trained by another optimiser or with other averages; '
        f'set train.optimiser, train.warmup, train.decay and train.averages as they were, or give '
        f'another --workdir'
      ) from error

  def _restore(self, step, item, args):
    if item != 'about':
      self._verify(step, item)
    try:
      return self._manager.restore(step, args=ocp.args.Composite(**{item: args}))[item]
    except Exception as error:  # orbax raises many kinds
      raise UserError(
        f'cannot read {item!r} of checkpoint {os.path.join(self.path, str(step))}: '
        f'{_reason(error)}; it is damaged or belongs to other software: use another --workdir, or '
        f'remove that folder'
      ) from error


def _reason(error):
  """The first line of an error of others."""
  return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _checksums(folder, names):
  """{name: CRC-32 of the file in hexadecimal digits, or '' where it cannot be read}."""

  def crc(name):
    value = 0
    try:
      with open(os.path.join(folder, name), 'rb') as file:
        while piece := file.read(_PIECE):
          value = zlib.crc32(piece, value)
    except OSError:
      return ''
    return f'{value:08x}'

  with futures.ThreadPoolExecutor() as pool:
    return dict(zip(names, pool.map(crc, names)))


def _device():
  return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
