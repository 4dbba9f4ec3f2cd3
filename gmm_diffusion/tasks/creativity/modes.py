"""The modes of task 'creativity': networks that differ in their final layer beside score machines,
from the same noise."""

import os

import numpy as np

from gmm_diffusion import parallel, specs
from gmm_diffusion.data import base, sources
from gmm_diffusion.denoisers import score_machines
from gmm_diffusion.engine import drawing
from gmm_diffusion.engine.runs import Run
from gmm_diffusion.errors import UserError
from gmm_diffusion.nets import cnn
from gmm_diffusion.reports import records
from gmm_diffusion.tasks.creativity import (
  locality,
  machines,
  networks,
  provenance,
  quality,
  report,
)


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


def run(mode: str, spec: specs.Spec, workdir: str, command: str) -> None:
  """Runs a mode: train, evaluate, or all of it."""
  this = Run(spec, sources.load(spec.data), workdir, command)
  check(spec, this.data)
  if mode in ('train', 'all'):
    networks.train(this)
  if mode in ('evaluate', 'all'):
    evaluate(this)


def evaluate(this: Run) -> None:
  """--mode=evaluate: samples of all networks and machines, results.json, figures and
  report.html."""
  spec, wanted = this.spec, this.spec.creativity
  nets = {final: networks.draw(this, final) for final in wanted.networks}
  made, calibrations = machines.draw(this, nets[wanted.networks[0]])
  fixed_machine = machines.FIXED[spec.net.padding]
  fixed = {size: machines.stored_samples(this, fixed_machine, size) for size in wanted.sizes}
  numbers = quality.measure(this, nets, made, fixed)
  maps = quality.sensitivity(this, nets)
  samples = {final: network.samples for final, network in nets.items()}
  samples.update({f'machine {name}': x for name, x in made.items()})
  traces = {name: quality.trace(this, x) for name, x in samples.items()}
  if not parallel.is_main():
    return
  found = report.Found(samples, numbers, calibrations, maps, traces, fixed_machine)
  records.add(this.workdir, _records(this, found))
  report.write(this, found)
  print(f'report: {os.path.join(this.workdir, "report.html")}')


def _records(this: Run, found: report.Found) -> list[dict]:
  """The records of an evaluation, one for each kind of number."""
  reach = {
    name: [locality.reach(one) for one in found_at] for name, found_at in found.maps.of.items()
  }
  pieces = {
    name if name.startswith('machine ') else f'CNN {name}': float(np.mean(provenance.pieces(trace)))
    for name, trace in found.traces.items()
  }
  values = {
    **found.numbers,
    'patch sizes': {name: one.sizes for name, one in found.calibrations.items()},
    'cosines': {name: one.cosines.tolist() for name, one in found.calibrations.items()},
    'reach': reach,
    'pieces': pieces,
  }
  about = {
    'kind': 'creativity',
    'sampler': this.spec.sampler.name,
    'seed': this.spec.seed,
    'n': this.spec.sample.count,
    'pairs': this.spec.creativity.pairs,
    **records.common(this.spec, this.command),
  }
  return [
    {'metric': name, 'value': quality.plain(value), **about} for name, value in values.items()
  ]
