"""Checkpoints with orbax: weights to sample from, kept apart from the state of training.

A step is written under a temporary name and renamed when complete, so a killed run leaves either
the whole step or nothing. Sampling reads the networks that it uses and nothing else, in the
dtype asked for.
"""

import functools
import json
import os
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import type_handlers

from gmm_diffusion.errors import UserError

FORMAT = 'gmm_diffusion/2'
PARTS = ('net', 'autoencoder', 'classifier')


class Store:
  """The checkpoints of a workdir. `about` is a small JSON description of the network."""

  def __init__(self, workdir: str, create: bool = False, copy: bool = True):
    """copy: save works on copies, so that the arrays may change at once; without, they must stay
    until close()."""
    self.path = os.path.abspath(os.path.join(workdir, 'checkpoints'))
    self._manager = None
    if create or os.path.isdir(self.path):
      options = ocp.CheckpointManagerOptions(
        max_to_keep=2, create=create, enable_async_checkpointing=True
      )
      numpy = type_handlers.NumpyHandler(deepcopy_host_arrays=copy)
      # nothing here is a jax.Array, but orbax warns where they have no handler
      registry = type_handlers.create_type_handler_registry(
        (np.ndarray, numpy), (jax.Array, type_handlers.ArrayHandler())
      )
      # weights hardly compress, and doing so would hold all of them a second time
      handler = lambda: ocp.PyTreeCheckpointHandler(
        type_handler_registry=registry, use_compression=False
      )
      self._manager = ocp.CheckpointManager(
        self.path,
        options=options,
        item_names=(*PARTS, 'train', 'about'),
        item_handlers={name: handler() for name in PARTS},
      )

  def latest(self) -> int | None:
    """The last complete step, or None."""
    return self._manager.latest_step() if self._manager else None

  def save(self, step: int, weights: dict[str, Any], train: Any, about: dict[str, Any]) -> None:
    """Writes a step in the background: weights by the names in PARTS; train is None where nothing
    is trained."""
    items = {
      name: ocp.args.PyTreeSave(jax.tree.map(np.asarray, part)) for name, part in weights.items()
    }
    items['about'] = ocp.args.JsonSave(dict(about, format=FORMAT))
    if train is not None:
      items['train'] = ocp.args.StandardSave(train)
    self._manager.save(step, args=ocp.args.Composite(**items))

  def close(self) -> None:
    """Waits until everything is on disk."""
    if self._manager:
      try:
        self._manager.wait_until_finished()
      finally:
        self._manager.close()

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
    if about.get('format') != FORMAT:
      raise UserError(
        f'checkpoint {self.path} has format {about.get("format")!r}; valid: {FORMAT!r}'
      )
    return about

  def difference(self, about: dict[str, Any]) -> tuple[str, Any, Any] | None:
    """(key, stored, wanted) of the first entry of `about` that the latest step was not made with.

    Options that the step does not know are younger than it. But the address of released weights is
    missing where none were used.
    """
    stored = self.about()
    for key, wanted in json.loads(json.dumps(about)).items():
      if not (isinstance(wanted, dict) and isinstance(stored.get(key), dict)):
        if stored.get(key) != wanted:
          return key, stored.get(key), wanted
        continue
      for name, value in wanted.items():
        found = stored[key].get(name)
        if found != value and (name in stored[key] or name == 'weights'):
          return f'{key}.{name}', found, value
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

  def training(self, template: Any) -> Any:
    """The training state, exactly as saved."""
    keep = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_device())
    return self._restore(
      self.latest(), 'train', ocp.args.StandardRestore(jax.tree.map(keep, template))
    )

  def _restore(self, step, item, args):
    try:
      return self._manager.restore(step, args=ocp.args.Composite(**{item: args}))[item]
    except Exception as error:  # orbax raises many kinds
      lines = str(error).strip().splitlines()
      reason = lines[0][:200] if lines else type(error).__name__
      raise UserError(
        f'cannot read {item!r} of checkpoint {os.path.join(self.path, str(step))}: {reason}; it is '
        f'damaged or belongs to other software: use another --workdir, or remove that folder'
      ) from error


def _device():
  return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
