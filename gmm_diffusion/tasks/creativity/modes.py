"""The modes of task 'creativity': networks that differ in their final layer beside score machines,
from the same noise."""

import dataclasses
import os
from typing import Any

import numpy as np

from gmm_diffusion import parallel, specs
from gmm_diffusion.data import base, sources
from gmm_diffusion.denoisers import score_machines
from gmm_diffusion.engine import build, drawing, loss, sample_sets
from gmm_diffusion.engine.runs import Run
from gmm_diffusion.errors import UserError
from gmm_diffusion.nets import cnn
from gmm_diffusion.reports import records
from gmm_diffusion.tasks.creativity import compare, locality, provenance
from gmm_diffusion.tasks.creativity import report as figures
from gmm_diffusion.tasks.creativity.machines import (
  calibrated,
  grid_of,
  stored_samples,
  time_at,
)
from gmm_diffusion.tasks.creativity.quality import early, plain, quality

PUBLISHED = (
  'Published on another data set whose details are not public: 21.64 % consistency for a CNN with '
  'top-1 attention, 25.44 % with identity attention, over 100 trials.'
)
# by padding: the machine that knows what the plain CNN knows, shown at one patch size for all noise
# levels
FIXED = {'zero': 'bbELS', 'circular': 'ELS'}


def network_spec(spec: specs.Spec, final: str) -> specs.Spec:
  """The spec of the network with this final layer."""
  return dataclasses.replace(spec, net=dataclasses.replace(spec.net, final=final))


def check(spec: specs.Spec, data: base.Data) -> None:
  """Raises UserError on a bad setting before anything slow starts."""
  wanted = spec.creativity
  for name, valid in ((wanted.networks, cnn.FINALS), (wanted.machines, score_machines.MACHINES)):
    for entry in name:
      if entry not in valid:
        raise UserError(
          f'unknown name {entry!r} in creativity.networks or creativity.machines; valid: '
          f'{", ".join(valid)}'
        )
  if not wanted.networks or not len(data.train) or not data.is_image:
    raise UserError('task creativity needs images and at least one of creativity.networks')
  if not wanted.sizes or not 1 <= wanted.probes <= wanted.pairs:
    raise UserError(
      f'creativity.sizes must not be empty and creativity.probes in 1..{wanted.pairs} (pairs), got '
      f'{wanted.sizes} and {wanted.probes}'
    )
  if spec.net.padding == 'circular' and 'bbELS' in wanted.machines:
    raise UserError(
      'machine bbELS has zeros beyond the edges, a network with net.padding=circular has none; '
      'leave it out of creativity.machines'
    )
  if wanted.pairs > spec.sample.count or wanted.pairs < 2:
    raise UserError(
      f'creativity.pairs must be in 2..{spec.sample.count} (sample.count), got {wanted.pairs}'
    )
  for size in wanted.sizes:
    score_machines.make('ELS', data.train, size, spec.net.padding)
  if spec.net.labels != 'none':
    raise UserError(
      f"task creativity compares unconditional networks; set net.labels to 'none', got "
      f'{spec.net.labels!r}'
    )
  drawing.prepare(spec, spec.sampler, data)


def train(spec: specs.Spec, data: base.Data, workdir: str) -> None:
  """--mode=train: every network, each in a folder of its own; resumes."""
  for final in spec.creativity.networks:
    print(f'network {final}', flush=True)
    os.makedirs(os.path.join(workdir, final), exist_ok=True)
    loss.train(network_spec(spec, final), data, os.path.join(workdir, final))


def run(mode: str, spec: specs.Spec, workdir: str, command: str) -> None:
  """Runs a mode: train, evaluate, or all of it."""
  data = sources.load(spec.data)
  check(spec, data)
  if mode in ('train', 'all'):
    train(spec, data, workdir)
  if mode in ('evaluate', 'all'):
    evaluate(spec, data, workdir, command)


def evaluate(spec: specs.Spec, data: base.Data, workdir: str, command: str) -> None:
  """--mode=evaluate: samples of all networks and machines, results.json, figures and
  report.html."""
  wanted, pairs = spec.creativity, spec.creativity.pairs
  networks, denoisers, states = {}, {}, {}
  for final in wanted.networks:
    one, folder = network_spec(spec, final), os.path.join(workdir, final)
    weights = build.weights(one, data, folder)
    model, made = drawing.Model(one, data, weights), drawing.prepare(one, one.sampler, data)
    source = model.drawer(made, spec.sample.count)
    stored = sample_sets.write(Run(one, data, folder, command), source, spec.sample.count)
    with np.load(stored.path) as file:
      networks[final] = file['arr_0']
    states[final] = model.states(made, pairs)
    denoisers[final] = build.denoiser(one, data)(weights)
  first = wanted.networks[0]
  calibrations, machines = {}, {}
  for name in wanted.machines:
    size: Any = wanted.sizes[0]
    if name not in score_machines.WHOLE:
      calibrations[name] = calibrated(
        spec, data, denoisers[first], states[first][:, : wanted.probes], name
      )
      size = calibrations[name].sizes
      print(f'{name}: patch sizes ' + ', '.join(f'{k} to b = {b:.3g}' for b, k in size), flush=True)
    machines[name] = stored_samples(spec, data, name, size, workdir)
  fixed = {
    size: stored_samples(spec, data, FIXED[spec.net.padding], size, workdir)
    for size in wanted.sizes
  }
  result = {
    'quality': {
      **{name: quality(spec, data, x) for name, x in networks.items()},
      **{f'machine {name}': quality(spec, data, x) for name, x in machines.items()},
    },
    'agreement': {
      final: {name: compare.agreement(made, x[:pairs]) for name, made in machines.items()}
      for final, x in networks.items()
    },
    'baselines': {final: compare.baselines(x[:pairs], data.train) for final, x in networks.items()},
    'fixed': {size: quality(spec, data, x) for size, x in fixed.items()},
    'early': {final: early(spec, denoiser, states[final]) for final, denoiser in denoisers.items()},
  }
  middle = np.argsort(grid_of(spec).b_t)[[len(grid_of(spec).b_t) // 4, len(grid_of(spec).b_t) // 2]]
  maps = {}
  for final, denoiser in denoisers.items():
    sensitivity, probes = locality.sensitivity(denoiser), states[final][:, : wanted.probes]
    maps[final] = [
      sensitivity(probes[n], time_at(spec, n), np.zeros(wanted.probes, np.int32)) for n in middle
    ]
  known = data.train[: wanted.images or None]
  size = min(wanted.sizes)
  traces = {
    name: (
      x[:6],
      provenance.trace(base.to_model(x[:6]), base.to_model(known), size, spec.net.padding, 'all'),
    )
    for name, x in {
      **{f'CNN {final}': x for final, x in networks.items()},
      **{f'machine {name}': x for name, x in machines.items()},
    }.items()
  }
  if not parallel.is_main():
    return
  shared = records.common(spec, command)
  records.add(
    workdir,
    [
      {
        'kind': 'creativity',
        'sampler': spec.sampler.name,
        'metric': metric,
        'value': plain(value),
        'seed': spec.seed,
        'n': spec.sample.count,
        'pairs': pairs,
        **shared,
      }
      for metric, value in {
        **result,
        'patch sizes': {name: found.sizes for name, found in calibrations.items()},
        'cosines': {name: found.cosines.tolist() for name, found in calibrations.items()},
        'reach': {name: [locality.reach(part) for part in found] for name, found in maps.items()},
        'pieces': {
          name: float(np.mean(provenance.pieces(found))) for name, (_, found) in traces.items()
        },
      }.items()
    ],
  )
  figures.write(
    workdir,
    spec,
    command,
    shared['config'],
    figures.Found(
      networks,
      machines,
      fixed,
      result,
      calibrations,
      maps,
      [float(grid_of(spec).b_t[n]) for n in middle],
      traces,
      known,
      np.asarray(grid_of(spec).b_t),
      FIXED[spec.net.padding],
      PUBLISHED,
    ),
  )
  print(f'report: {os.path.join(workdir, "report.html")}')
