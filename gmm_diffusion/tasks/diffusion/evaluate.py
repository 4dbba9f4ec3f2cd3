"""Evaluation against a reference: several samplers on the same seeds, with their isotropic
controls, or stored images."""

import dataclasses
import os
import time
from typing import Any, NamedTuple

import numpy as np

from gmm_diffusion import metrics, parallel, samplers, specs
from gmm_diffusion.data import base, image_sets
from gmm_diffusion.engine import build, drawing, released, sample_sets, shards
from gmm_diffusion.engine.runs import Run
from gmm_diffusion.errors import UserError
from gmm_diffusion.metrics import features as features_lib
from gmm_diffusion.metrics import references
from gmm_diffusion.metrics.estimates import INTERVAL
from gmm_diffusion.reports import images as pictures
from gmm_diffusion.reports import records
from gmm_diffusion.tasks.diffusion import report as report_page

NOTES = (
  f'Intervals: {INTERVAL}. They say nothing of the bias of Frechet distances, which falls with N: '
  f'compare equal N only.',
  'A control adds isotropic Gaussian noise of the same total variance as its mixture, step by '
  'step. Where a mixture does not beat its control, the gain over DDIM comes from added variance '
  'and not from the mixture.',
  'At eta = 0 nothing can be subtracted from tau = 0, so "ortho" and "ortho_vub" are the same '
  'kernel.',
)
OWN_FEATURES = (
  'The distances are computed on the features named above. They compare samplers on this data set '
  'and cannot be set beside numbers on Inception features.'
)
OTHERS_MOMENTS = (
  'The mean and covariance of the reference were computed by another program, whose resize and '
  'weights may differ: reference images would be safer.'
)


_AT_ONCE = 512  # images whose features are extracted in one call


class Bench(NamedTuple):
  """What samples are measured with; `shape` is theirs."""

  features: features_lib.Features
  source: references.Source
  reference: references.Reference
  names: list[str]
  neighbours: int
  shape: tuple[int, ...]


def bench(
  spec: specs.Spec, data: base.Data, workdir: str, shape: tuple[int, ...], count: int
) -> Bench:
  """Features, reference and metrics for `count` samples of a shape; raises UserError on what does
  not fit, before anything is drawn."""
  e, cache = spec.evaluate, spec.evaluate.cache or workdir
  _check_reference(spec, data)
  features = features_lib.load(e.features, data, cache, e.inception)
  if e.reference:
    source = references.find(e.reference, features, shape, spec.data.path, e.skip_unreadable)
  elif data.shape != shape:
    raise UserError(
      f'the reference, training items of data {spec.data.name!r}, has images of '
      f'{features_lib.sizes(data.shape)}, the samples are {features_lib.sizes(shape)}; set '
      f'evaluate.reference to images of the same size and number of channels'
    )
  else:
    known = data.train[: e.reference_count]
    what = f'{len(known)} training items'
    source = references.Source(what, image_sets.ArraySet(known, what))
  names, left_out = metrics.choose(e.metrics, features, source, count, e.neighbours)
  for reason in left_out:
    print(f'left out: {reason}')
  reference = references.load(source, features, metrics.kinds(names)[1], cache)
  return Bench(features, source, reference, names, e.neighbours, shape)


def _check_reference(spec, data):
  if not spec.evaluate.reference and not len(data.train):
    raise UserError(
      f'data {spec.data.name!r} has no images to compare with; set evaluate.reference to a folder '
      f'of images, an .npz or tfds:NAME:SPLIT, or data.name to a data set, valid: digits, tfds'
    )


def measure(
  found: Bench, images: image_sets.ImageSet, title: str
) -> tuple[dict[str, metrics.Estimate], int]:
  """(metrics, number) of stored images."""
  sample, _, count = features_lib.gather(
    found.features, images, title, metrics.kinds(found.names)[0]
  )
  return metrics.compare(sample, found.reference, found.names, found.neighbours), count


def facts_of(found: Bench) -> dict[str, Any]:
  """What every record says of features and reference."""
  return {
    'features': found.features.name,
    'preprocessing': features_lib.preprocessing(found.features, found.shape),
    'reference': found.reference.hash,
    'n_reference': found.reference.size,
    'reference_is': found.reference.what,
    'interval_is': INTERVAL,
  }


def samplers_with_controls(spec: specs.Spec, data: base.Data) -> list[tuple[drawing.Prepared, str]]:
  """[(sampler, name of its control or '')], controls after what needs them; each planned once.

  Mixtures that add the same variance in every step share a control.
  """
  out, seen = [], {}
  for name in spec.evaluate.samplers:
    out.append((drawing.prepare(spec, dataclasses.replace(spec.sampler, name=name), data), ''))
    control, added = samplers.control_of(name), None
    if control:
      added = drawing.prepare(spec, dataclasses.replace(spec.sampler, name=control), data)
      std = added.plan.rows.std
      control = next(
        (other for other, rows in seen.items() if np.allclose(rows, std, rtol=1e-5)), None
      )
      if control is None:
        control = added.sampler.name
        seen[control] = std
      else:
        added = None
      out[-1] = (out[-1][0], control)
    if added:
      out.append((added, ''))
  return out


def check(spec: specs.Spec, data: base.Data) -> list[tuple[drawing.Prepared, str]]:
  """Raises UserError for settings that can be seen to be bad before a training; returns
  samplers_with_controls."""
  metrics.check_names(spec.evaluate.metrics)
  features_lib.check_name(spec.evaluate.features)
  _check_reference(spec, data)
  return samplers_with_controls(spec, data)


def evaluate(
  spec: specs.Spec,
  data: base.Data,
  workdir: str,
  command: str,
  todo: list[tuple[drawing.Prepared, str]] | None = None,
) -> None:
  """--mode=evaluate: metrics of stored images, or of every sampler in spec.evaluate.samplers (`todo`,
  where `check` has prepared them); results.json and report.html."""
  start = time.perf_counter()
  e, shared = spec.evaluate, records.common(spec, command)
  if e.images:
    images = image_sets.load(e.images, spec.data.path, e.skip_unreadable)
    found = bench(spec, data, workdir, images.shape, len(images))
    rows, new = _of_images(found, images, shared)
    title, about = (
      images.what,
      {'images': f'{new[0]["n"]} of {features_lib.sizes(images.shape)}, hash {images.hash}'},
    )
  else:
    _check_reference(spec, data)  # before weights are fetched and read
    todo = todo or samplers_with_controls(spec, data)
    released.ensure(spec, data, workdir)
    weights = build.weights(spec, data, workdir)
    found = bench(spec, data, workdir, data.shape, e.count)
    rows, new = _of_samplers(found, todo, spec, data, weights, workdir, command, shared)
    title, about = _title(spec), _about(spec, data, new[0]['weights'])
    about['sample sets'] = ', '.join(dict.fromkeys(record['set'] for record in new))
  if not parallel.is_main():
    return
  records.add(workdir, new)
  facts = {
    **about,
    'reference': f'{found.reference.what}, hash {found.reference.hash}',
    'features': found.features.name,
    'preprocessing': features_lib.preprocessing(found.features, found.shape),
    'seconds': round(time.perf_counter() - start, 1),
    'versions': ', '.join(f'{name} {version}' for name, version in shared['versions'].items()),
  }
  notes: tuple[str, ...] = NOTES[:1] if e.images else NOTES
  notes += (OWN_FEATURES,) * bool(found.features.shape) + (OTHERS_MOMENTS,) * bool(
    found.source.known
  )
  curve = None if e.images else _read(os.path.join(workdir, 'training.png'))
  report_page.write(
    os.path.join(workdir, 'report.html'),
    title,
    command,
    facts,
    rows,
    metrics.LOWER_IS_BETTER,
    curve,
    shared['config'],
    notes,
  )
  print(f'report: {os.path.join(workdir, "report.html")}')


def _record(sampler, metric, value, **more):
  return {
    'kind': 'metric',
    'sampler': sampler,
    'metric': metric,
    'value': value.value,
    'interval': [value.low, value.high],
    **more,
  }


def _line(values):
  return '  '.join(f'{name} {value}' for name, value in values.items())


def _of_images(found, images, shared):
  """(rows of the page, records) of stored images."""
  start = time.perf_counter()
  values, count = measure(found, images, 'images')
  if images.skipped:
    print(f'skipped {len(images.skipped)} unreadable images, the first is {images.skipped[0]}')
  print(f'{images.what} (N = {count})  {_line(values)}')
  seconds = time.perf_counter() - start
  new = [
    _record(
      f'images {images.what}',
      metric,
      value,
      n=count,
      seed=None,
      weights=None,
      images=images.hash,
      skipped=len(images.skipped),
      seconds=seconds,
      **facts_of(found),
      **shared,
    )
    for metric, value in values.items()
  ]
  rows = [
    report_page.Row(
      os.path.basename(images.what.rstrip('/')), 'sampler', '', 0, values, _first(images), ''
    )
  ]
  if found.source.images:
    rows.append(report_page.Row('reference', 'data', '', 0, {}, _first(found.source.images), ''))
  return rows, new


def _of_samplers(found, todo, spec, data, weights, workdir, command, shared):
  """(rows of the page, records) of samplers and their controls, and of held-out data."""
  rows, new, model = [], [], drawing.Model(spec, data, weights)
  held_out = image_sets.ArraySet(data.test[: spec.evaluate.count], 'held-out data')
  possible = [name for name in found.names if _possible(name, found, len(held_out))]
  if possible and not spec.evaluate.reference:
    values, n = measure(found._replace(names=possible), held_out, 'held-out data')
    rows.append(
      report_page.Row(
        f'held-out data (N = {n})',
        'data',
        '',
        0,
        values,
        pictures.png(_strip(held_out.images, data)),
        '',
      )
    )
  for made, control in todo:
    source, sampler = model.drawer(made, spec.evaluate.count), made.sampler
    sample, first, nfe, seconds = features_of(found, source, Run(spec, data, workdir, command))
    values = metrics.compare(sample, found.reference, found.names, found.neighbours)
    print(f'{sampler.name:26s} {_line(values)}')
    report = sample_sets.format_report(made.report)
    kind = 'control' if any(sampler.name == other for _, other in todo) else 'sampler'
    rows.append(
      report_page.Row(
        sampler.name, kind, control, nfe, values, pictures.png(_strip(first, data)), report
      )
    )
    new += [
      _record(
        sampler.name,
        metric,
        value,
        n=spec.evaluate.count,
        seed=spec.seed,
        nfe=nfe,
        control=control,
        settings=dataclasses.asdict(sampler),
        weights=model.hash,
        set=sample_sets.name_of(source),
        seconds=seconds,
        **facts_of(found),
        **shared,
      )
      for metric, value in values.items()
    ]
  return rows, new


def features_of(
  found: Bench, source: drawing.Drawer, run: Run
) -> tuple[features_lib.Extracted, np.ndarray, int, float]:
  """(Extracted, the first samples, evaluations, seconds) of a sampler; kept in files by range of
  ids, as the samples are if asked for."""
  e, kept = run.spec.evaluate, sorted(metrics.kinds(found.names)[0])
  title, stored = source.made.sampler.name, None
  if e.store:
    stored = sample_sets.write(run, source, e.count)

  def make(ids, advance):
    part = stored.part(ids) if stored else source.draw(ids, advance)
    blocks = []
    for start in range(0, len(ids), _AT_ONCE):
      blocks.append(found.features.extract(part['x'][start : start + _AT_ONCE]))
      features_lib.check_finite(blocks[-1], f'samples of {title}', ids.start + start)
      if stored:
        advance(len(blocks[-1].features))
    return {
      'first': part['x'][: 16 if run.data.is_image else 2000],
      'nfe': part['nfe'],
      'seconds': part['seconds'],
      **{name: np.concatenate([getattr(block, name) for block in blocks]) for name in kept},
    }

  where = (
    os.path.join(run.workdir, 'features', found.features.name, sample_sets.name_of(source)),
    f'{source.mark} {found.features.name} {kept}',
    e.count,
    run.spec.sample.shard,
  )
  shards.fill(*where, make, f'{"features of" if stored else "sampling"} {title}')
  out = {name: np.empty((e.count, found.features.dimensions[name]), np.float32) for name in kept}
  first: Any = None
  seconds, done = 0.0, 0
  for part in shards.read(*where):
    first, seconds = (part if first is None else first), seconds + float(part['seconds'])
    for name in kept:
      out[name][done : done + len(part[name])] = part[name]
    done += len(part[kept[0]])
  return features_lib.Extracted(**out), first['first'], int(first['nfe']), seconds


def _possible(name, found, count):
  try:
    metrics.check(name, found.features, found.source, count, found.neighbours)
    return count > 2
  except UserError:
    return False


def _first(stored: image_sets.ImageSet) -> bytes:
  """PNG of the first sixteen."""
  first = next(stored.batches(16))
  return pictures.png(pictures.picture(first, first, columns=16, most=16))


def _strip(x: np.ndarray, data: base.Data):
  """The first sixteen ids in one row; for vectors a scatter plot."""
  return pictures.picture(x, data.train, columns=16, most=16)


def _title(spec):
  eta = samplers.resolve('ddim', spec.sampler.options())[1]['eta']
  return f'{spec.data.dataset or spec.data.name}: {spec.sampler.steps} steps, eta {eta:g}'


def _about(spec, data, weights) -> dict[str, Any]:
  _, mixture = samplers.resolve('ddim_gmm', spec.sampler.options())
  return {
    'data': ', '.join(f'{name} {value}' for name, value in base.summary(data).items()),
    'samples': f'{spec.evaluate.count} per sampler, seed {spec.seed}, the same noise for every '
    f'sampler',
    'mixture': 'K = {components}, scale {scale:g}, infeasible: {infeasible}'.format(**mixture),
    'weights': weights,
  }


def _read(path: str) -> bytes | None:
  if not os.path.exists(path):
    return None
  with open(path, 'rb') as file:
    return file.read()
