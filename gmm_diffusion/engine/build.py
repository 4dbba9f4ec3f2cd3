"""From a Spec to the objects of a run: schedule, networks, denoiser, weights.

The weights of a run are a dict of variables: 'net', and where there are any 'autoencoder' (with the
'latent_scale' beside its parameters) and 'classifier'. Exact denoisers have the data in their
place.
"""

import dataclasses
import hashlib
import inspect
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmm_diffusion import specs
from gmm_diffusion.checkpoints import importers
from gmm_diffusion.checkpoints.store import Store
from gmm_diffusion.data import base
from gmm_diffusion.denoisers import EXACT, NAMES, NETWORK, guidance
from gmm_diffusion.denoisers.network import network
from gmm_diffusion.engine import measuring
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import grids, marginals, schedules
from gmm_diffusion.nets import NETS, quantised
from gmm_diffusion.nets.autoencoder import Autoencoder
from gmm_diffusion.nets.unet import Classifier
from gmm_diffusion.samplers import one_step, tuned
from gmm_diffusion.types import Denoiser, StepGrid

RANDOM = 'random'
FIRST_STAGE = 'autoencoder'  # of a workdir: where it lies if the network was trained on it
# what does not change the meaning of stored weights
_FREE = ('dtype', 'dropout', 'remat', 'weights', 'batch')


def schedule(spec: specs.Schedule) -> schedules.Schedule:
  """The schedule that a spec names."""
  options = schedule_options(spec)
  return schedules.SCHEDULES[spec.name](**options)


def schedule_options(spec: specs.Schedule) -> dict[str, Any]:
  """The options of the schedule that a spec names, with their values."""
  if spec.name not in schedules.SCHEDULES:
    raise UserError(f'unknown schedule {spec.name!r}; valid: {", ".join(schedules.SCHEDULES)}')
  return taken(schedules.SCHEDULES[spec.name], spec)


def grid(process: schedules.Schedule, sampler: specs.Sampler) -> StepGrid:
  """The steps of a sampler: those of its file if it is tuned, else through its own times where it
  has any."""
  if sampler.name == 'tuned':
    return tuned.grid(sampler.path or '', process)
  if sampler.name == 'one_step':
    return one_step.grid(process, level(sampler))
  if sampler.times:
    end = {'clean': process.clean, 'first': process.first}
    if sampler.end not in end:
      raise UserError(f'unknown end {sampler.end!r}; valid: clean, first')
    return grids.from_times(process, sampler.times, end[sampler.end])
  rho = {} if sampler.rho is None else {'rho': sampler.rho}
  return grids.make(process, sampler.steps, sampler.grid, sampler.end, **rho)


def level(sampler: specs.Sampler) -> float:
  """b / a where one_step calls."""
  return one_step.LEVEL if sampler.level is None else sampler.level


def taken(make: Callable[..., Any], section: Any) -> dict[str, Any]:
  """The options of a section of the spec that a function or linen module takes: what was set, else
  its own default."""
  parameters = inspect.signature(make).parameters
  out = {}
  for field in dataclasses.fields(section):
    if field.name in parameters and field.name != 'name':
      value = getattr(section, field.name)
      out[field.name] = parameters[field.name].default if value is None else value
  return out


def _module(make, section, **more):
  """A linen module with the options that it takes of a section of the spec."""
  return make(**{**taken(make, section), **more})


def autoencoder(spec: specs.Spec) -> Autoencoder | None:
  """The first stage, if the spec has one."""
  if not spec.autoencoder.name:
    return None
  codes = spec.autoencoder.codes if spec.autoencoder.name == 'vq' else 0
  return _module(Autoencoder, spec.autoencoder, codes=codes, dtype=jnp.dtype(spec.net.dtype))


def sample_shape(spec: specs.Spec, data: base.Data) -> tuple[int, ...]:
  """What is sampled: data, or their latents."""
  if not spec.autoencoder.name:
    return data.shape
  factor = 2 ** (len(spec.autoencoder.multipliers) - 1)
  if not data.is_image or data.shape[0] % factor or data.shape[1] % factor:
    raise UserError(
      f'the autoencoder halves images {len(spec.autoencoder.multipliers) - 1} times, which data of '
      f'shape {" x ".join(map(str, data.shape))} does not allow'
    )
  return data.shape[0] // factor, data.shape[1] // factor, spec.autoencoder.latent_channels


def label_count(spec: specs.Spec, data: base.Data) -> int:
  """How many labels the network knows, one of them for "no class" where net.labels is 'null'."""
  return {'null': data.classes + 1, 'plain': data.classes, 'none': 0}[spec.net.labels]


def net_options(spec: specs.Net) -> dict[str, Any]:
  """The options of the network that a spec names, with their values."""
  if spec.name not in NETS:
    raise UserError(f'unknown net {spec.name!r}; valid: {", ".join(NETS)}')
  return taken(NETS[spec.name], spec)


def net(spec: specs.Spec, data: base.Data, channels: int = 0) -> Any:
  """The network of a spec; it has as many output channels as samples, or `channels`."""
  if not data.is_image:
    raise UserError(
      f'data {spec.data.name!r} has no network to train; use --config.denoiser.name=mixture or '
      f'empirical'
    )
  net_options(spec.net)
  if spec.denoiser.prediction not in marginals.PREDICTIONS:
    raise UserError(
      f'unknown denoiser.prediction {spec.denoiser.prediction!r}; valid: '
      f'{", ".join(marginals.PREDICTIONS)}'
    )
  if spec.net.context_dim and not label_count(spec, data):
    raise UserError(
      f'net.context_dim {spec.net.context_dim} needs labels to make the context from; set it to 0, '
      f'or net.labels to '
      "'null' or 'plain' with classes (a context of one's own enters in Python, see nets/unet.py)"
    )
  if spec.net.name == 'dit' and not label_count(spec, data):
    raise UserError("net 'dit' needs classes, with net.labels 'null' or 'plain'; use unet without")
  shape = sample_shape(spec, data)
  _check_halves(shape, net_options(spec.net).get('multipliers', (1,)), 'net')
  C = shape[-1]
  return _module(
    NETS[spec.net.name],
    spec.net,
    out_channels=channels or C * (1 + spec.net.learn_sigma),
    classes=label_count(spec, data),
    dtype=jnp.dtype(spec.net.dtype),
  )


def _check_halves(shape, levels, section):
  H, W = shape[:2]
  if H % 2 ** (len(levels) - 1) or W % 2 ** (len(levels) - 1):
    raise UserError(
      f'images of {H} x {W} cannot be halved {len(levels) - 1} times; '
      f'use fewer {section}.multipliers, got {levels}'
    )


def classifier(spec: specs.Spec, data: base.Data) -> Classifier:
  """The classifier of noisy images, which guides where classifier.scale is not 0."""
  if spec.autoencoder.name or not data.is_image or data.classes < 2:
    raise UserError(
      'classifier guidance needs a model of images with classes; set classifier.scale to 0, and '
      "train.what to 'denoiser'"
    )
  own = spec.classifier
  if own.scale and not (own.trained or own.weights.format):
    raise UserError(
      f'classifier.scale {own.scale:g} needs a classifier; set classifier.trained to the workdir '
      f'of one (--mode=train with train.what=classifier)'
    )
  _check_halves(data.shape, own.multipliers, 'classifier')
  return _module(
    Classifier, spec.classifier, out_channels=data.classes, dtype=jnp.dtype(spec.net.dtype)
  )


def init(module: Any, shape: tuple[int, ...], seed: int) -> Any:
  """Parameters of a network for samples of the given shape."""
  x, t, labels = jnp.zeros((1,) + shape), jnp.zeros((1,)), jnp.zeros((1,), jnp.int32)
  return module.init(jax.random.key(seed), x, t, labels)


def parts(spec: specs.Spec, data: base.Data) -> dict[str, tuple[Any, Any, specs.Weights]]:
  """{'net' | 'autoencoder' | 'classifier': (module, abstract variables, where its weights come
  from)}; without a classifier that was trained here, which has a workdir of its own."""
  out, released = {}, spec.classifier.scale and not spec.classifier.trained
  for name, module, shape in (
    ('net', net(spec, data), sample_shape(spec, data)),
    ('autoencoder', autoencoder(spec), data.shape),
    ('classifier', classifier(spec, data) if released else None, data.shape),
  ):
    if module is not None:
      out[name] = module, importers.abstract(module, shape), getattr(spec, name).weights
  return out


def layers(spec: specs.Spec, data: base.Data) -> list[str]:
  """Paths of the convolutions and dense layers of the network."""
  module = net(spec, data)
  return quantised.layers(lambda: init(module, sample_shape(spec, data), 0))


def template(
  spec: specs.Spec, data: base.Data, few_bits: dict[str, Any] | None = None
) -> dict[str, Any]:
  """The abstract weights of a run in the dtype of the computation; codes and the latent scale stay
  float32. few_bits: how the network is quantised, as its checkpoint says."""
  out = {name: _cast(variables, spec) for name, (_, variables, _) in parts(spec, data).items()}
  if spec.autoencoder.name:
    out['autoencoder'] = dict(
      out['autoencoder'], latent_scale=jax.ShapeDtypeStruct((), jnp.float32)
    )
  if few_bits:
    bits, inputs = few_bits['weights'], bool(few_bits['activations'])
    out['net'] = quantised.template(out['net'], layers(spec, data), bits, inputs)
  return out


def _cast(variables, spec):
  def one(path, leaf):
    codes = any(key.key == 'quantize.embedding' for key in path)
    return jax.ShapeDtypeStruct(leaf.shape, jnp.float32 if codes else jnp.dtype(spec.net.dtype))

  return jax.tree_util.tree_map_with_path(one, variables)


def random_weights(abstract: Any, seed: int) -> Any:
  """Every parameter drawn, also those that training starts from zero: kernels N(0, 1 / fan-in),
  others near 0 or 1."""
  random = np.random.Generator(np.random.SFC64(seed))

  def draw(path, leaf):
    z = random.standard_normal(leaf.shape, np.float32)
    if len(leaf.shape) >= 2:
      z = z / np.float32(np.sqrt(np.prod(leaf.shape[:-1])))
    else:
      z = np.float32(0.1) * z + (path[-1].key in ('scale', 'latent_scale'))
    return z.astype(leaf.dtype)

  return jax.tree_util.tree_map_with_path(draw, abstract)


def about(spec: specs.Spec, data: base.Data) -> dict[str, Any]:
  """What weights belong to; stored beside them and compared when they are read. Where released ones
  came from is added when they are converted (released.py)."""
  out: dict[str, Any] = {
    'net': {
      **{name: getattr(spec.net, name) for name in ('name', 'labels', 'learn_sigma')},
      **{name: v for name, v in net_options(spec.net).items() if name not in _FREE},
    },
    'schedule': {'name': spec.schedule.name, **schedule_options(spec.schedule)},
    'prediction': spec.denoiser.prediction,
    'shape': list(data.shape),
    'classes': data.classes,
  }
  if spec.autoencoder.name:
    out['autoencoder'] = _size(spec.autoencoder)
  if spec.classifier.scale and not spec.classifier.trained:
    out['classifier'] = _size(spec.classifier)
  return out


def about_classifier(spec: specs.Spec, data: base.Data) -> dict[str, Any]:
  """The same of a classifier that is trained here."""
  known = about(spec, data)
  kept = {key: known[key] for key in ('schedule', 'shape', 'classes')}
  return {'classifier': _size(spec.classifier), **kept}


def _size(section):
  """What of a section weights depend on."""
  free = (*_FREE, 'scale', 'trained') if isinstance(section, specs.Classifier) else _FREE
  return {key: value for key, value in dataclasses.asdict(section).items() if key not in free}


def weights(spec: specs.Spec, data: base.Data, workdir: str) -> Any:
  """The arrays a denoiser needs: a checkpoint's, or the data themselves for exact denoisers."""
  if spec.denoiser.name in EXACT:
    return exact_data(spec, data)
  guides = judge(spec, data)
  if spec.net.weights.format == RANDOM:
    print('the weights are random: images will be noise', flush=True)
    return random_weights(template(spec, data), spec.seed) | guides
  with Store(workdir, step=spec.net.checkpoint) as store:
    known = store.about()
    if 'net' not in known and 'classifier' in known:
      raise UserError(
        f'{workdir} holds a classifier and no denoiser; set --workdir to that of a denoiser, and '
        f'classifier.trained to this one'
      )
    check_about(store, about(spec, data))
    _check_distilled(known.get('distilled'), spec)
    start, wanted = time.perf_counter(), template(spec, data, known.get('quantised'))
    apart = {'autoencoder': wanted.pop('autoencoder')} if 'latents' in known else {}
    part = store.average(spec.net.average)
    wanted[part] = wanted.pop('net')
    out = store.weights(wanted)
    out['net'] = out.pop(part)
  if apart:
    with Store(os.path.join(workdir, FIRST_STAGE)) as store:
      check_about(store, {'hash': known['latents']})
      out |= store.weights(apart)
  out |= guides
  count = sum(leaf.size for leaf in jax.tree.leaves(out))
  print(
    f'read {count:,} parameters as {spec.net.dtype} in {time.perf_counter() - start:.1f} s',
    flush=True,
  )
  return out


def own_classifier(spec: specs.Spec, data: base.Data, workdir: str) -> Any:
  """The weights of the classifier that was trained in a workdir."""
  wanted = _cast(importers.abstract(classifier(spec, data), data.shape), spec)
  with Store(workdir) as store:
    if 'classifier' not in store.about():
      raise UserError(
        f'{workdir} (classifier.trained) holds no classifier; make one with --mode=train '
        f'--config.train.what=classifier'
      )
    check_about(store, about_classifier(spec, data))
    part = 'classifier' if 'net' in store.about() else 'net'  # beside a released denoiser, or alone
    return store.weights({part: wanted})[part]


def judge(spec: specs.Spec, data: base.Data) -> dict[str, Any]:
  """The part 'classifier' of the weights, where one guides that was trained here; else nothing.

  Raises:
    UserError: the classifier is not there, or is another one.
  """
  own = spec.classifier
  if not (own.scale and own.trained):
    return {}
  return {'classifier': own_classifier(spec, data, own.trained)}


def _check_distilled(known: dict[str, Any] | None, spec: specs.Spec) -> None:
  """Raises UserError where a network that draws in one call would be asked as it was not taught."""
  if not known:
    return
  if spec.denoiser.guidance != 1:
    raise UserError(
      f'the network was distilled with guidance {known["guidance"]:g}, which it has in it; set '
      f'denoiser.guidance to 1, got {spec.denoiser.guidance:g}'
    )
  asked, found = 'one_step' in (spec.sampler.name, *spec.evaluate.samplers), level(spec.sampler)
  if asked and found != known['level']:
    raise UserError(
      f'the network was distilled for sampler.level {known["level"]:g}, got {found:g}'
    )


def denoisers_for(data: base.Data) -> list[str]:
  """Names of the denoisers that data have what they need for."""
  has = {
    'mixture': data.mixture is not None,
    'items': len(data.train) > 0,
    'images': len(data.train) > 0 and data.is_image,
  }
  return [NETWORK] * data.is_image + [name for name, one in EXACT.items() if has[one.data]]


def exact_data(spec: specs.Spec, data: base.Data) -> Any:
  """What an exact denoiser is made of; raises UserError where the data do not have it."""
  name = spec.denoiser.name
  if name not in denoisers_for(data):
    lacks = {'mixture': 'known mixture', 'items': 'items', 'images': 'images'}[EXACT[name].data]
    raise UserError(
      f'data {spec.data.name!r} has no {lacks}, which denoiser {name!r} needs; valid denoisers '
      f'here: {", ".join(denoisers_for(data))}'
    )
  return data.mixture if EXACT[name].data == 'mixture' else base.to_model(data.train)


def exact_denoiser(spec: specs.Denoiser, arrays: Any) -> Denoiser:
  """The exact denoiser that a spec names, with the options that were set."""
  chosen = {key: getattr(spec, key) for key in EXACT[spec.name].options}
  return EXACT[spec.name].make(arrays, **{k: v for k, v in chosen.items() if v is not None})


def check_about(store: Store, wanted: dict[str, Any]) -> None:
  """Raises UserError unless a checkpoint is there and was made with what is wanted, such as
  `about`."""
  found = store.difference(wanted)
  if found:
    key, stored, asked = found
    raise UserError(
      f'the checkpoint in {store.path} was made with {key} = {stored}, the config says '
      f'{asked}; use its config, or another --workdir'
    )


def denoiser(spec: specs.Spec, data: base.Data) -> Callable[[Any], Denoiser]:
  """weights -> Denoiser, guided and clipped as the spec says; one that restores takes (labels,
  measurements) in the place of labels."""
  if spec.denoiser.name not in NAMES:
    raise UserError(f'unknown denoiser {spec.denoiser.name!r}; valid: {", ".join(NAMES)}')
  if spec.denoiser.guidance != 1:
    if spec.denoiser.name != NETWORK:
      raise UserError(
        f'guidance {spec.denoiser.guidance:g} needs a conditional network; valid for '
        f'denoiser {spec.denoiser.name!r}: 1'
      )
    if spec.net.labels != 'null' or not data.classes:
      raise UserError(
        f'guidance {spec.denoiser.guidance:g} needs a conditional network that knows "no class"; '
        f'with net.labels {spec.net.labels!r} and {data.classes} classes the only valid value is 1'
      )
  if spec.denoiser.clip and spec.autoencoder.name:
    raise UserError(
      'denoiser.clip is for pixels, and these are latents; set --config.denoiser.clip=False'
    )
  if spec.denoiser.name in EXACT:  # bad options show before anything slow
    exact_denoiser(spec.denoiser, exact_data(spec, data._replace(train=data.train[:1])))
  else:
    module, process = net(spec, data), schedule(spec.schedule)
    guide = classifier(spec, data) if spec.classifier.scale else None
  clip = guidance.clip_x0 if spec.denoiser.clip and data.is_image else lambda out: out
  if spec.inverse.operator:
    return _restoring(spec, data, clip)

  def bind(arrays):
    if spec.denoiser.name in EXACT:
      return clip(exact_denoiser(spec.denoiser, arrays))
    out = network(
      lambda x, t, labels: quantised.apply(module, arrays['net'], x, t, labels),
      process,
      spec.denoiser.prediction,
    )
    if spec.denoiser.guidance != 1:
      out = guidance.classifier_free(
        out,
        spec.denoiser.guidance,
        data.classes,
        spec.denoiser.guidance_channels,
        spec.denoiser.guidance_interval or None,
      )
    out = clip(out)
    if guide is None:
      return out

    def log_prob(x, time, labels):
      inputs, t = process.network_input(x, time)
      logits = guide.apply(
        arrays['classifier'], inputs, jnp.broadcast_to(jnp.asarray(t, x.dtype), (len(x),))
      )
      return guidance.log_prob_of(logits, labels)

    # the source clips x_0 before it adds the gradient and not again
    return guidance.classifier(out, log_prob, spec.classifier.scale)

  return bind


def _restoring(spec, data, clip):
  """weights -> Denoiser guided by measurements; x_0 is clipped after that, not before."""
  measuring.check(spec, data)
  without = dataclasses.replace(
    spec, inverse=specs.Inverse(), denoiser=dataclasses.replace(spec.denoiser, clip=False)
  )
  guided = measuring.guided(spec, data, denoiser(without, data))
  return lambda arrays: clip(guided(arrays))


def decoder(spec: specs.Spec) -> Callable[[Any, Any], Any] | None:
  """(weights of the autoencoder, latents) -> images in [-1, 1], if there is one."""
  module = autoencoder(spec)
  if module is None:
    return None

  def decode(arrays, z):
    return module.apply(
      {'params': arrays['params']}, z / arrays['latent_scale'].astype(z.dtype), method='decode'
    )

  return decode


def tree_hash(tree: Any) -> str:
  """Twelve hexadecimal digits of the SHA-256 of all leaves, in order."""
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves(tree):
    digest.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
  return digest.hexdigest()[:12]
