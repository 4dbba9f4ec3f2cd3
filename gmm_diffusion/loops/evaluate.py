"""Evaluation: several samplers on the same seeds against the data, with their isotropic controls."""

import dataclasses
import os
import time
from typing import Any

import numpy as np

from gmm_diffusion import metrics, parallel, samplers, specs
from gmm_diffusion.aliases import UserError
from gmm_diffusion.data import sources
from gmm_diffusion.loops import build, pretrained
from gmm_diffusion.loops import sample as sample_loop
from gmm_diffusion.metrics import features as features_lib
from gmm_diffusion.reports import images, page, records

NOTES = (
    'Intervals are 95 %, from a bootstrap over the generated samples; the reference set is fixed.',
    'The distances are computed on the features named above. They compare samplers on this data set and cannot be set '
    'beside numbers on Inception features.',
    'A control adds isotropic Gaussian noise of the same total variance as its mixture, step by step. Where a mixture does '
    'not beat its control, the gain over DDIM comes from added variance and not from the mixture.',
    'At eta = 0 nothing can be subtracted from tau = 0, so "ortho" and "ortho_vub" are the same kernel.',
)


def samplers_with_controls(spec: specs.Spec, data: sources.Data) -> list[tuple[specs.Sampler, str]]:
  """[(sampler, name of its control or '')], controls after what needs them.

  Mixtures that add the same variance in every step share a control.
  """
  out, seen = [], {}
  for name in spec.evaluate.samplers:
    sampler = dataclasses.replace(spec.sampler, name=name)
    control, added = samplers.control_of(name), None
    if control:
      added = dataclasses.replace(spec.sampler, name=control)
      std = np.asarray(sample_loop.prepare(spec, added, data).plan.rows.std)
      control = next((other for other, rows in seen.items() if np.allclose(rows, std, rtol=1e-5)), None)
      if control is None:
        control = added.name
        seen[control] = std
      else:
        added = None
    else:
      sample_loop.prepare(spec, sampler, data)
    out.append((sampler, control or ''))
    if added:
      out.append((added, ''))
  return out


def evaluate(spec: specs.Spec, data: sources.Data, workdir: str, command: str) -> None:
  """--mode=evaluate: metrics of every sampler in spec.evaluate.samplers, results.json and report.html."""
  start = time.perf_counter()
  if not len(data.train):
    raise UserError(f'data {spec.data.name!r} has no images to compare with; set data.name to a data set, valid: digits, tfds')
  todo = samplers_with_controls(spec, data)
  pretrained.ensure(spec, data, workdir)
  weights = build.weights(spec, data, workdir)
  features = features_lib.load(spec.evaluate.features, data, spec.evaluate.cache or workdir)
  known, held_out = data.train[:spec.evaluate.reference], data.test[:spec.evaluate.count]
  reference, _ = features.extract(known)
  reference_hash = features_lib.fingerprint(known)
  weights_hash = build.tree_hash(weights)
  shared = records.common(spec, command)
  rows, new = [], []
  found, logits = features.extract(held_out)
  real = metrics.compare(found, reference, logits, spec.evaluate.neighbours, spec.evaluate.bootstrap)
  rows.append(page.Row(f'held-out data (N = {len(held_out)})', 'data', '', 0, real, images.png(_strip(held_out, data)), ''))
  for sampler, control in todo:
    out = sample_loop.write(spec, data, weights, weights_hash, sampler, spec.evaluate.count, workdir, command)
    x = np.concatenate(list(out.blocks()))
    found, logits = features.extract(x)
    values = metrics.compare(found, reference, logits, spec.evaluate.neighbours, spec.evaluate.bootstrap)
    print(f'{sampler.name:26s} ' + '  '.join(f'{name} {value}' for name, value in values.items()))
    report = sample_loop.format_report(out.report)
    kind = 'control' if any(sampler.name == other for _, other in todo) else 'sampler'
    rows.append(page.Row(sampler.name, kind, control, out.nfe, values, images.png(_strip(x, data)), report))
    for metric, value in values.items():
      new.append({
          'kind': 'metric', 'sampler': sampler.name, 'metric': metric, 'value': value.value,
          'interval': [value.low, value.high], 'n': spec.evaluate.count, 'seed': spec.seed, 'nfe': out.nfe,
          'control': control, 'settings': dataclasses.asdict(sampler), 'features': features.name,
          'weights': weights_hash, 'reference': reference_hash, 'n_reference': len(known),
          'seconds': out.seconds, **shared})
  if not parallel.is_main():
    return
  records.add(workdir, new)
  curve = os.path.join(workdir, 'training.png')
  page.write(
      os.path.join(workdir, 'report.html'), f'{spec.data.dataset or spec.data.name}: {spec.sampler.steps} steps, eta {spec.sampler.eta:g}',
      command, _facts(spec, data, features.name, weights_hash, shared, time.perf_counter() - start), rows,
      metrics.LOWER_IS_BETTER, _read(curve), shared['config'], NOTES)
  print(f"report: {os.path.join(workdir, 'report.html')}")


def _strip(x: np.ndarray, data: sources.Data):
  """The first sixteen ids in one row; for vectors a scatter plot."""
  return images.picture(x, data.train, columns=16, most=16)


def _facts(spec, data, features, weights, shared, seconds) -> dict[str, Any]:
  s = spec.sampler
  return {
      'data': ', '.join(f'{name} {value}' for name, value in sources.summary(data).items()),
      'reference': f'{min(len(data.train), spec.evaluate.reference)} training items',
      'samples': f'{spec.evaluate.count} per sampler, seed {spec.seed}, the same noise for every sampler',
      'mixture': f'K = {s.components}, scale {s.scale:g}, infeasible: {s.infeasible}',
      'features': features, 'weights': weights, 'seconds': round(seconds, 1),
      'versions': ', '.join(f'{name} {version}' for name, version in shared['versions'].items()),
  }


def _read(path: str) -> bytes | None:
  if not os.path.exists(path):
    return None
  with open(path, 'rb') as file:
    return file.read()
