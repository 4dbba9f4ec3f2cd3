"""What the experiments share. Experiments are run as `python -m experiments.studies.NAME` or
`python -m experiments.benchmarks.NAME` from the repository's root.

`load_subject`, `draw` and `measure` are all that they know of how samples are made and measured.
"""

import argparse
import ast
import dataclasses
import importlib
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from gmm_diffusion import files, metrics, specs
from gmm_diffusion.data import base, sources
from gmm_diffusion.engine import build, drawing, quality, released
from gmm_diffusion.engine.runs import Run
from gmm_diffusion.errors import UserError
from gmm_diffusion.metrics import features as features_lib
from gmm_diffusion.metrics import frechet
from gmm_diffusion.metrics.estimates import Estimate
from gmm_diffusion.reports import records

# Samples are kept in memory up to this many numbers.
SMALL = 2**27

# What the field calls a metric -> what metrics.compare calls it.
METRICS = {'fid': 'frechet', 'is': 'score', 'precision': 'precision', 'recall': 'recall'}


def program() -> str:
  """How the running experiment is called."""
  main = sys.modules['__main__']
  return f'python -m {main.__spec__.name}' if main.__spec__ else sys.argv[0]


def parser(description: str, workdir: str) -> argparse.ArgumentParser:
  """Arguments that every experiment takes."""
  out = argparse.ArgumentParser(
    prog=program(),
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
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
  return {
    'command': f'{program()} ' + ' '.join(sys.argv[1:]),
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


class Subject(NamedTuple):
  """A model under study, ready to be sampled and measured.

  Attributes:
    model: with its spec and data.
    workdir: where large sets of features are kept.
    bench: features, reference and metrics.
    facts: what results depend on besides sampler, seed and count; JSON.
  """

  model: drawing.Model
  workdir: str
  bench: quality.Bench
  facts: dict[str, Any]

  @property
  def spec(self) -> specs.Spec:
    return self.model.spec

  @property
  def data(self) -> base.Data:
    return self.model.data


class Drawn(NamedTuple):
  """What a feature network says of samples; evaluations per sample, counted."""

  features: features_lib.Extracted
  nfe: int
  seconds: float


def load_subject(spec: specs.Spec, workdir: str, count: int) -> Subject:
  """Reads the checkpoint of a workdir (released weights are converted first) and the reference of
  the spec, for sets of `count` samples."""
  data = sources.load(spec.data)
  released.ensure(spec, data, workdir)
  model = drawing.Model(spec, data, build.weights(spec, data, workdir))
  bench = quality.bench(spec, data, workdir, data.shape, count)
  facts = {
    **drawing.facts(spec, model.hash),
    **quality.facts_of(bench),
    'neighbours': spec.evaluate.neighbours,
  }
  return Subject(model, workdir, bench, facts)


def judges(
  names: Sequence[str], data: base.Data, workdir: str
) -> Callable[[np.ndarray], list[float]]:
  """samples in [-1, 1] -> their Frechet distances to the held-out items, on features of each
  name."""
  known = []
  for name in names:
    features = features_lib.load(name, data, workdir)
    known.append((features, frechet.statistics(features.extract(data.test).features)))
  return lambda x: [
    frechet.frechet_distance(features.extract(base.to_image(x)).features, moments).value
    for features, moments in known
  ]


def with_denoiser(subject: Subject, **changes: Any) -> Subject:
  """The subject with other keys of spec.denoiser, such as clip."""
  spec = subject.spec
  spec = dataclasses.replace(spec, denoiser=dataclasses.replace(spec.denoiser, **changes))
  facts = {**subject.facts, 'denoiser': dataclasses.asdict(spec.denoiser)}
  return subject._replace(model=subject.model.on(spec), facts=facts)


def draw(subject: Subject, sampler: specs.Sampler, count: int, seed: int) -> Drawn:
  """Features of samples 0..count-1 of a seed, those that --mode=sample gives.

  Small sets stay in memory: with thousands of cells of a small model files would take most of the
  time. Large ones go on where they were when they are stopped.
  """
  spec, start = subject.spec, time.perf_counter()
  source = subject.model.drawer(drawing.prepare(spec, sampler, subject.data), count, seed)
  if count * np.prod(subject.data.shape) > SMALL:
    settings = dataclasses.replace(spec.evaluate, count=count, store=False)
    run = Run(dataclasses.replace(spec, evaluate=settings), subject.data, subject.workdir, '')
    found, _, nfe, seconds = quality.features_of(subject.bench, source, run)
    return Drawn(found, nfe, seconds)
  out = source.draw(np.arange(count), lambda n: None)
  found = subject.bench.features.extract(out['x'])
  return Drawn(found, int(out['nfe']), time.perf_counter() - start)


def measure(
  subject: Subject, found: features_lib.Extracted, everything: bool
) -> dict[str, Estimate]:
  """All metrics of samples against the subject's reference, or the Frechet distance alone (the
  others take most of the time)."""
  return metrics.compare(
    found,
    subject.bench.reference,
    subject.bench.names if everything else ['frechet'],
    subject.bench.neighbours,
  )


def over_seeds(
  subject: Subject, sampler: specs.Sampler, count: int, seeds: Sequence[int], title: str
) -> list[dict[str, Any]]:
  """Rows with seed, metric, value and interval, of all metrics; prints them."""
  rows = []
  for seed in seeds:
    found = draw(subject, sampler, count, seed)
    for metric, value in measure(subject, found.features, True).items():
      rows.append({'seed': seed, 'metric': metric, **value.record()})
      print(f'{title}, seed {seed}: {metric} {value}', flush=True)
  return rows
