"""What the experiments share. Experiments are run as `python -m experiments.NAME` from the
repository's root.

`load_run`, `draw` and `measure` are all that they know of how samples are made and measured.
"""

import argparse
import ast
import dataclasses
import importlib
import os
import platform
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from gmm_diffusion import files, metrics, parallel, specs
from gmm_diffusion.data import base, sources
from gmm_diffusion.engine import build, drawing, released
from gmm_diffusion.errors import UserError
from gmm_diffusion.metrics import features as features_lib
from gmm_diffusion.metrics.estimates import Estimate
from gmm_diffusion.reports import records
from gmm_diffusion.tasks.diffusion import evaluate

# Samples are kept as floats up to this many numbers.
SMALL = 2**27

# What the field calls a metric -> what metrics.compare calls it.
METRICS = {'fid': 'frechet', 'is': 'score', 'precision': 'precision', 'recall': 'recall'}


def parser(description: str, workdir: str) -> argparse.ArgumentParser:
  """Arguments that every experiment takes."""
  out = argparse.ArgumentParser(
    description=description, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  out.add_argument('--workdir', default=workdir, help='where results go')
  return out


def model_arguments(out: argparse.ArgumentParser, config: str = 'digits') -> None:
  """Arguments of experiments on a model: its config, with changes."""
  out.add_argument('--config', default=config, help='a name in configs/, with :variants')
  out.add_argument(
    '--set',
    nargs='*',
    default=[],
    metavar='KEY=VALUE',
    help='changes to the config, such as data.path=/data',
  )


def with_facts(value: dict) -> dict:
  """The value with the command, the versions and the machine."""
  main = sys.modules['__main__']
  return {
    'command': f'python -m {main.__spec__.name if main.__spec__ else ""} ' + ' '.join(sys.argv[1:]),
    'versions': records.versions(),
    'machine': f'{platform.machine()}, {os.cpu_count()} cores',
    **value,
  }


def save(workdir: str, name: str, value: dict) -> None:
  """Writes name.json with the command, the versions and the machine."""
  files.make_workdir(workdir)
  path = os.path.join(workdir, name + '.json')
  files.write_json(path, with_facts(value))
  print(f'written: {path}')


def spec_of(config: str, changes: Sequence[str] = ()) -> specs.Spec:
  """The Spec of configs/NAME.py:VARIANT with changes 'key=value'; raises UserError on unknown
  ones."""
  name, _, variant = config.partition(':')
  try:
    out = importlib.import_module('configs.' + name).get_config(variant)
  except (ImportError, ValueError) as error:
    raise UserError(f'config {config!r}: {error}') from error
  for change in changes:
    key, found, text = change.partition('=')
    if not found:
      raise UserError(f'a change must be KEY=VALUE, got {change!r}')
    specs.check_key(key)
    try:
      value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
      value = text  # a word without quotes
    with out.ignore_type():  # the Spec checks types, and names the key
      out.update_from_flattened_dict({key: value})
  return specs.from_config(out)


class Run(NamedTuple):
  """A model with its data, ready to be sampled and measured.

  Attributes:
    spec, data, weights, workdir: as in the loops.
    bench: features, reference and metrics.
    facts: what results depend on besides sampler, seed and count; JSON.
    compiled: functions that `draw` keeps, and the weights on the devices.
  """

  spec: specs.Spec
  data: base.Data
  weights: Any
  workdir: str
  bench: evaluate.Bench
  facts: dict[str, Any]
  compiled: dict


class Drawn(NamedTuple):
  """What a feature network says of samples; evaluations per sample, counted."""

  features: features_lib.Extracted
  nfe: int
  seconds: float


def _facts(spec, weights_hash, bench_facts):
  """Paths are left out: weights and reference stand for themselves by their hashes."""
  plain = lambda section: {
    key: value
    for key, value in dataclasses.asdict(section).items()
    if key not in ('weights', 'dropout', 'batch')
  }
  return {
    'weights': weights_hash,
    **bench_facts,
    'label': spec.sample.label,
    'neighbours': spec.evaluate.neighbours,
    **{
      name: plain(getattr(spec, name))
      for name in ('schedule', 'net', 'denoiser', 'autoencoder', 'classifier')
    },
  }


def load_run(spec: specs.Spec, workdir: str, count: int) -> Run:
  """Reads the checkpoint of a workdir (released weights are converted first) and the reference of
  the spec, for sets of `count` samples."""
  data = sources.load(spec.data)
  released.ensure(spec, data, workdir)
  weights = build.weights(spec, data, workdir)
  bench = evaluate.bench(spec, data, workdir, data.shape, count)
  facts = _facts(spec, build.tree_hash(weights), evaluate.facts_of(bench))
  return Run(spec, data, weights, workdir, bench, facts, {})


def with_denoiser(run: Run, **changes: Any) -> Run:
  """The run with other keys of spec.denoiser, such as clip."""
  spec = dataclasses.replace(run.spec, denoiser=dataclasses.replace(run.spec.denoiser, **changes))
  return run._replace(spec=spec, facts={**run.facts, 'denoiser': dataclasses.asdict(spec.denoiser)})


def draw(run: Run, sampler: specs.Sampler, count: int, seed: int) -> Drawn:
  """Features of samples 0..count-1 of a seed, those that --mode=sample gives.

  Small sets of samples without autoencoder share one compilation for all seeds, scales and etas >
  0: with thousands of cells of a small model that is most of the time. Large ones go on where they
  were when they are stopped.
  """
  start = time.perf_counter()
  spec = dataclasses.replace(
    run.spec, seed=seed, evaluate=dataclasses.replace(run.spec.evaluate, count=count, store=False)
  )
  if spec.autoencoder.name or count * np.prod(run.data.shape) > SMALL:
    source = drawing.drawer(
      drawing.fitting(spec, count), run.data, run.weights, run.facts['weights'], sampler
    )
    found, _, nfe, seconds = evaluate.features_of(
      run.bench, source, sampler, spec, run.data, run.workdir, ''
    )
    return Drawn(found, nfe, seconds)
  bind, kernel, grid, plan, _ = drawing.prepare(spec, sampler, run.data)
  shape, per_device = build.sample_shape(spec, run.data), min(spec.sample.batch, count)
  # what is a number in the plan may differ between calls of one compiled function
  form = dataclasses.replace(
    sampler,
    steps=0,
    grid='',
    end='',
    scale=0.0,
    scale_interval=(),
    offsets_seed=0,
    eta=float(bool(sampler.eta)),
  )
  key = spec.denoiser, spec.classifier, form, per_device
  if key not in run.compiled:

    def fn(shared, batch):
      weights, (grid, plan, seed) = shared
      x, nfe = drawing.sample_batch(kernel, bind(weights), grid, plan, seed, *batch, shape)
      return x, jnp.full(len(x), nfe)

    run.compiled[key] = parallel.map_batches(fn, per_device)
  if 'weights' not in run.compiled:
    run.compiled['weights'] = parallel.replicate(run.weights, local=True)
  ids = np.arange(count, dtype=np.uint32)
  shared = run.compiled['weights'], parallel.replicate((grid, plan, np.uint32(seed)), local=True)
  x, nfe = run.compiled[key](shared, (ids, drawing.labels_of(ids, run.data, spec.sample.label)))
  if not np.isfinite(x).all():
    raise UserError(
      f'samples of {sampler.name!r} with {sampler.steps} steps are not finite; check the weights'
    )
  found = run.bench.features.extract(base.to_image(x) if run.data.is_image else x)
  return Drawn(found, int(nfe[0]), time.perf_counter() - start)


def measure(run: Run, found: features_lib.Extracted, everything: bool) -> dict[str, Estimate]:
  """All metrics of samples against the run's reference, or the Frechet distance alone (the others
  take most of the time)."""
  return metrics.compare(
    found, run.bench.reference, run.bench.names if everything else ['frechet'], run.bench.neighbours
  )
