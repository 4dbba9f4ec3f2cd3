"""Released weights drawn at random, in files of the released layout."""

import functools
import importlib
import os

import numpy as np

from experiments.lib import released_layout
from gmm_diffusion import specs
from gmm_diffusion.checkpoints import importers
from gmm_diffusion.data import sources
from gmm_diffusion.engine import build, released


def config_of(name, variant, **changes):
  """A released model's config at its small size, as if that were the released size."""
  module = importlib.import_module('configs.' + name)
  config, full = module.get_config(f'runlocal,{variant}'), module.get_config(variant)
  for section in ('net', 'autoencoder', 'classifier'):
    config[section].weights.update(format=full[section].weights.format, size=0, sha256='')
  config.sampler.steps = 2
  config.sample.update(count=2, batch=2)
  config.update_from_flattened_dict(changes)
  return config


def spec_of(config):
  spec = specs.from_config(config)
  return spec, sources.load(spec.data)


def tensors_of(spec, data):
  """{path's part: {name: array}} that the released files of a run hold, drawn at random."""
  out = {}
  for name, (module, template, weights) in build.parts(spec, data).items():
    recipe, _ = importers.recipe_of(
      weights.format, name, module, template, [], build.sample_shape(spec, data)[0]
    )
    values = dict(recipe.constants)
    for i, (path, part) in enumerate(sorted(recipe.parts.items())):
      for source, shape in zip(
        part.names, part.shapes
      ):  # the copies that are merged must be equal, q, k and v need not be
        random = np.random.RandomState([i, 0 if 'embedder' in source else part.names.index(source)])
        values[source] = np.float32(
          random.standard_normal(shape) / np.sqrt(max(1, np.prod(shape[1:])))
        ) + (path[-1] == 'scale')
    out[name] = values
  return out


def write(spec, data, workdir, change=lambda values: values):
  """Writes the released files to where they are looked for; returns their paths."""
  by_path = {}
  for name, values in tensors_of(spec, data).items():
    weights = getattr(spec, name).weights
    if weights.format == 'compvis' and name == 'autoencoder':  # alone in a file they have no prefix
      values = {'first_stage_model.' + key: value for key, value in values.items()}
    by_path.setdefault(released.place(weights, workdir), [weights.format, {}])[1].update(values)
  for path, (form, values) in by_path.items():
    os.makedirs(os.path.dirname(path), exist_ok=True)
    save = (
      released_layout.write_safetensors
      if path.endswith('.safetensors')
      else functools.partial(
        released_layout.write_torch, nest='state_dict' if form == 'compvis' else ''
      )
    )
    save(path, released_layout.made(change(values)))
  return sorted(by_path)
