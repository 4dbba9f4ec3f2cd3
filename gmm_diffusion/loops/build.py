"""From a Spec to the objects of a run: schedule, network, denoiser, weights."""

import dataclasses
import hashlib
import inspect
from typing import Any, Callable

import jax
import jax.numpy as jnp
import numpy as np

from gmm_diffusion import specs
from gmm_diffusion.aliases import Denoiser, UserError
from gmm_diffusion.checkpoints.store import Store
from gmm_diffusion.data import sources
from gmm_diffusion.denoisers import exact, guidance
from gmm_diffusion.denoisers.network import network
from gmm_diffusion.maths import schedules
from gmm_diffusion.nets import NETS


def schedule(spec: specs.Schedule) -> schedules.Schedule:
  """The schedule that a spec names, with the numbers it takes."""
  if spec.name not in schedules.SCHEDULES:
    raise UserError(f'unknown schedule {spec.name!r}; valid: {", ".join(schedules.SCHEDULES)}')
  make = schedules.SCHEDULES[spec.name]
  taken = inspect.signature(make).parameters
  return make(**{key: value for key, value in dataclasses.asdict(spec).items() if key in taken})


def net(spec: specs.Spec, data: sources.Data) -> Any:
  """The network of a spec; one label more than there are classes stands for "no class"."""
  if not data.is_image:
    raise UserError(f'data {spec.data.name!r} has no network to train; use --config.denoiser.name=mixture or empirical')
  if spec.net.name not in NETS:
    raise UserError(f'unknown net {spec.net.name!r}; valid: {", ".join(NETS)}')
  options = dataclasses.asdict(spec.net)
  del options['name'], options['learn_sigma']
  H, W, C = data.shape
  factor = 2 ** (len(spec.net.multipliers) - 1)
  if H % factor or W % factor:
    raise UserError(f'images of {H} x {W} cannot be halved {len(spec.net.multipliers) - 1} times; '
                    f'use fewer net.multipliers, got {spec.net.multipliers}')
  options['dtype'] = jnp.dtype(options['dtype'])
  return NETS[spec.net.name](out_channels=C * (1 + spec.net.learn_sigma), classes=data.classes + 1, **options)


def init(module: Any, shape: tuple[int, ...], seed: int) -> Any:
  """Parameters of a network for samples of the given shape."""
  x, t, labels = jnp.zeros((1,) + shape), jnp.zeros((1,)), jnp.zeros((1,), jnp.int32)
  return module.init(jax.random.key(seed), x, t, labels)


def about(spec: specs.Spec, data: sources.Data) -> dict[str, Any]:
  """What weights belong to; stored beside them and compared when they are read."""
  return {'net': dataclasses.asdict(spec.net), 'schedule': dataclasses.asdict(spec.schedule),
          'prediction': spec.denoiser.prediction, 'shape': list(data.shape), 'classes': data.classes}


def weights(spec: specs.Spec, data: sources.Data, workdir: str) -> Any:
  """The arrays a denoiser needs: a checkpoint's, or the data themselves for exact denoisers."""
  if spec.denoiser.name == 'mixture':
    return data.mixture
  if spec.denoiser.name == 'empirical':
    return sources.to_model(data.train)
  store = Store(workdir)
  found, wanted = store.about(), about(spec, data)
  for key, value in wanted.items():
    stored = found.get(key)
    if _plain(stored) != _plain(value):
      differs = value
      if isinstance(value, dict) and isinstance(stored, dict):
        name = next(k for k in value if _plain(stored.get(k)) != _plain(value[k]))
        key, stored, differs = f'{key}.{name}', stored.get(name), value[name]
      raise UserError(f'the checkpoint in {store.path} was trained with {key} = {stored}, the config says {differs}; '
                      'use its config, or another --workdir')
  module = net(spec, data)
  template = jax.eval_shape(lambda: init(module, data.shape, 0))
  out = store.weights(template, jnp.dtype(spec.net.dtype))
  store.close()
  return out


def _plain(value):
  return list(value) if isinstance(value, tuple) else {k: _plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def denoiser(spec: specs.Spec, data: sources.Data) -> Callable[[Any], Denoiser]:
  """weights -> Denoiser, guided and clipped as the spec says."""
  if spec.denoiser.guidance != 1 and spec.denoiser.name != 'network':
    raise UserError(f'guidance {spec.denoiser.guidance:g} needs a conditional network; valid for '
                    f'denoiser {spec.denoiser.name!r}: 1')
  if spec.denoiser.name == 'mixture' and data.mixture is None:
    raise UserError(f'data {spec.data.name!r} has no known mixture; valid denoisers here: network, empirical')
  if spec.denoiser.name == 'network':
    module, process = net(spec, data), schedule(spec.schedule)

  def bind(arrays):
    if spec.denoiser.name == 'mixture':
      out = exact.mixture(*arrays)
    elif spec.denoiser.name == 'empirical':
      out = exact.empirical(arrays)
    else:
      out = network(lambda x, t, labels: module.apply(arrays, x, t, labels), process, spec.denoiser.prediction)
      if spec.denoiser.guidance != 1:
        out = guidance.classifier_free(out, spec.denoiser.guidance, data.classes)
    return guidance.clip_x0(out) if spec.denoiser.clip and data.is_image else out

  return bind


def tree_hash(tree: Any) -> str:
  """Twelve hexadecimal digits of the SHA-256 of all leaves, in order."""
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves(tree):
    digest.update(np.ascontiguousarray(leaf))
  return digest.hexdigest()[:12]
