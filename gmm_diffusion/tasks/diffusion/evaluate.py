"""Evaluation against a reference: several samplers on the same seeds, with their isotropic
controls, or stored images."""

import dataclasses
import os
import time
from typing import Any

import numpy as np

from gmm_diffusion import metrics, parallel, samplers, specs
from gmm_diffusion.data import base, image_sets
from gmm_diffusion.engine import build, drawing, quality, released
from gmm_diffusion.engine.runs import Run
from gmm_diffusion.errors import UserError
from gmm_diffusion.metrics import features as features_lib
from gmm_diffusion.metrics.estimates import INTERVAL, difference
from gmm_diffusion.reports import images as pictures
from gmm_diffusion.reports import records
from gmm_diffusion.tasks.diffusion import bound, copies, jacobian, levels, suspicious, verdict
from gmm_diffusion.tasks.diffusion import report as report_page

INTERVALS = (
  f'Intervals: {INTERVAL}. They say nothing of the bias of Frechet distances, which falls with N: '
  f'compare equal N only.'
)
CONTROLS = (
  'A control adds isotropic Gaussian noise of the same total variance as its mixture, step by '
  'step. Where a mixture does not beat its control, the gain over DDIM comes from added variance '
  'and not from the mixture.'
)
SAME = (
  'Names joined by "=" drew the same samples: with these settings they are one kernel, such as '
  '"ortho" and "ortho_vub" at eta = 0, where nothing can be subtracted from tau = 0.'
)
OWN_FEATURES = (
  'The distances are computed on features of this data set, which are named below. They compare '
  'samplers, and cannot be set beside numbers on Inception features.'
)
OTHERS_MOMENTS = (
  'The mean and covariance of the reference were computed by another program, whose resize and '
  'weights may differ: reference images would be safer.'
)


def samplers_with_controls(spec: specs.Spec, data: base.Data) -> list[tuple[drawing.Prepared, str]]:
  """[(sampler, name of its control or '')], controls after what needs them; each planned once.

  Mixtures that add the same variance in every step share a control. A control that is named too is
  not drawn twice.
  """
  prepared = lambda name: drawing.prepare(spec, dataclasses.replace(spec.sampler, name=name), data)
  out, controls = [], {}
  for name in dict.fromkeys(spec.evaluate.samplers):
    if name in controls:
      continue
    made, wanted = prepared(name), samplers.control_of(name)
    if wanted is None:
      out.append((made, ''))
      if samplers.is_control(name):
        controls[name] = made
      continue
    added = controls.get(wanted) or prepared(wanted)
    alike = lambda other, rows=added.plan.rows: (
      type(other.plan.rows) is type(rows)
      and all(np.allclose(a, b, rtol=1e-5) for a, b in zip(other.plan.rows, rows, strict=True))
    )
    control = next((other for other, plan in controls.items() if alike(plan)), None)
    out.append((made, control or wanted))
    if control is None:
      controls[wanted] = added
      out.append((added, ''))
  return out


def check(spec: specs.Spec, data: base.Data) -> list[tuple[drawing.Prepared, str]]:
  """Raises UserError for settings that can be seen to be bad before a training; returns
  samplers_with_controls."""
  metrics.check_names(spec.evaluate.metrics)
  features_lib.check_name(spec.evaluate.features)
  quality.check_reference(spec, data)
  return samplers_with_controls(spec, data)


def evaluate(one: Run, todo: list[tuple[drawing.Prepared, str]] | None = None) -> None:
  """--mode=evaluate: metrics of stored images, or of every sampler in evaluate.samplers (`todo`,
  where `check` has prepared them); results.json and report.html."""
  start, e = time.perf_counter(), one.spec.evaluate
  shared = records.common(one.spec, one.command)
  about: dict[str, Any]
  if e.images:
    images = image_sets.load(e.images, one.spec.data.path, e.skip_unreadable)
    found = quality.bench(one.spec, one.data, one.workdir, images.shape, len(images))
    rows, new = _of_images(found, images, shared)
    sizes = features_lib.sizes(images.shape)
    title, about = (
      f'Images: {rows[0].name}',
      {'images': f'{new[0]["n"]} of {sizes}, hash {images.hash}'},
    )
  else:
    quality.check_reference(one.spec, one.data)  # before weights are fetched and read
    todo = todo or samplers_with_controls(one.spec, one.data)
    released.ensure(one.spec, one.data, one.workdir)
    model = drawing.Model(one.spec, one.data, build.weights(one.spec, one.data, one.workdir))
    found = quality.bench(one.spec, one.data, one.workdir, one.data.shape, e.count)
    rows, new = _of_samplers(found, todo, model, one, shared)
    title, about = _title(one.spec), _about(one.spec, one.data, new)
  if not parallel.is_main():
    return
  records.add(one.workdir, new)  # before what takes the most memory
  more, of_model = (
    ([], []) if e.images else _about_model(model, found.features, todo, rows, new, one, shared)
  )
  records.add(one.workdir, of_model)
  about |= {
    'reference': f'{found.reference.what}, hash {found.reference.hash}',
    'features': found.features.name,
    'preprocessing': features_lib.preprocessing(found.features, found.shape),
    'seconds': round(time.perf_counter() - start, 1),
    'versions': ', '.join(f'{name} {version}' for name, version in shared['versions'].items()),
  }
  path = os.path.join(one.workdir, 'report.html')
  words = report_page.write(
    path,
    title,
    one.command,
    about,
    rows,
    metrics.LOWER_IS_BETTER,
    None if e.images else _read(os.path.join(one.workdir, 'training.png')),
    shared['config'],
    _notes(found, rows),
    more,
    vectors=not one.data.is_image,
  )
  print('\n'.join([*words, f'report: {path}']))


def _about_model(model, features, todo, rows, known, one, shared):
  """(sections of the page, records) about the model and what it makes up; `known` are the records
  of metrics."""
  sections, new = [], []
  of_rows = {row.names[0] for row in rows if row.kind == 'sampler'}
  drawn = [made for made, _ in todo if made.sampler.name in of_rows]
  if copies.possible(one.spec, one.data):
    twins = copies.find(model, drawn, features, one)
    sections.append(copies.section(twins))
    new += copies.record(twins, known, shared)
  if suspicious.possible(one.spec, one.data):
    suspects = suspicious.find(model, drawn, one)
    sections.append(suspicious.section(suspects))
    new += suspicious.record(suspects, known, shared)
  for part in (levels, bound, jacobian):
    if part.possible(one.spec, one.data):
      found = part.find(model)
      sections.append(part.section(found))
      new += part.record(found, model, shared)
  return sections, new


def _notes(found, rows):
  """What has to be known to read these rows."""
  which = {
    INTERVALS: True,
    CONTROLS: any(row.control for row in rows),
    SAME: any(len(row.names) > 1 for row in rows),
    OWN_FEATURES: bool(found.features.shape),
    OTHERS_MOMENTS: bool(found.source.known) and found.source.images is None,
  }
  return [note for note, holds in which.items() if holds]


def _record(found, sampler, metric, value, **more):
  """A record of a metric; `n_reference` is None where others computed what it is compared with."""
  known = found.source.size(metrics.METRICS[metric].reference) is not None
  return {
    'kind': 'metric',
    'sampler': sampler,
    'metric': metric,
    **value.record(),
    **quality.facts_of(found),
    'n_reference': found.reference.size if known else None,
    **more,
  }


def _line(values):
  return '  '.join(f'{name} {value}' for name, value in values.items())


def _of_images(found, images, shared):
  """(rows of the page, records) of stored images."""
  start = time.perf_counter()
  values, count = quality.measure(found, images, 'images')
  if images.skipped:
    print(f'skipped {len(images.skipped)} unreadable images, the first is {images.skipped[0]}')
  print(f'{images.what} (N = {count})  {_line(values)}')
  about = {
    'n': count,
    'seed': None,
    'weights': None,
    'images': images.hash,
    'skipped': len(images.skipped),
    'seconds': time.perf_counter() - start,
    **shared,
  }
  new = [
    _record(found, f'images {images.what}', metric, value, **about)
    for metric, value in values.items()
  ]
  name = os.path.basename(images.what.rstrip('/'))
  rows = [verdict.Row((name,), 'sampler', '', 0, values, _first(images))]
  if found.source.images:
    rows.append(verdict.Row(('reference',), 'data', '', 0, {}, _first(found.source.images)))
  return rows, new


def _of_samplers(found, todo, model, one, shared):
  """(rows of the page, records) of samplers and their controls, and of held-out data."""
  rows, firsts, new, count = [], [], [], one.spec.evaluate.count
  for made, control in todo:
    source, name = model.drawer(made, count), made.sampler.name
    sample, first, nfe, seconds = quality.features_of(found, source, one)
    values = metrics.compare(sample, found.reference, found.names, found.neighbours)
    print(f'{name:26s} {_line(values)}')
    kind = 'control' if any(name == other for _, other in todo) else 'sampler'
    row = verdict.Row((name,), kind, control, nfe, values, _strip(first, one.data), made.report)
    same = next((i for i, other in enumerate(rows) if _alike(row, first, other, firsts[i])), None)
    if same is None:
      rows.append(row)
      firsts.append(first)
    else:
      rows[same] = verdict.merged(rows[same], row)
    about = {
      'n': count,
      'seed': one.spec.seed,
      'nfe': nfe,
      'control': control,
      'settings': dataclasses.asdict(made.sampler),
      'weights': model.hash,
      'set': source.name,
      'seconds': seconds,
      **shared,
    }
    new += [_record(found, name, metric, value, **about) for metric, value in values.items()]
  for record in new:
    row = next(row for row in rows if record['sampler'] in row.names)
    control = verdict.control_of(row, rows) if record['control'] else None
    if control:
      away = difference(*(both.metrics[record['metric']] for both in (row, control)))
      record['minus_control'] = away.record()
  return _held_out(found, one) + rows, new


def _alike(row, first, other, other_first):
  """Whether two samplers drew the same samples, up to rounding."""
  values, others = ([v.value for v in one.metrics.values()] for one in (row, other))
  return np.allclose(values, others, rtol=1e-4) and np.allclose(first, other_first, atol=1e-4)


def _held_out(found, one):
  """The row of held-out data, where there are enough of them."""
  held_out = image_sets.ArraySet(one.data.test[: one.spec.evaluate.count], 'held-out data')
  possible = [name for name in found.names if _possible(name, found, len(held_out))]
  if not possible or one.spec.evaluate.reference:
    return []
  values, n = quality.measure(found._replace(names=possible), held_out, 'held-out data')
  picture = _strip(held_out.images, one.data)
  return [verdict.Row((f'held-out data (N = {n})',), 'data', '', 0, values, picture)]


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


def _strip(x: np.ndarray, data: base.Data) -> bytes:
  """PNG of the first sixteen ids in one row; for vectors a scatter plot."""
  return pictures.png(pictures.picture(x, data.train, columns=16, most=16))


def _title(spec):
  eta = samplers.resolve('ddim', spec.sampler.options())[1]['eta']
  return f'{spec.data.title}: {spec.sampler.steps} steps, eta {eta:g}'


def _about(spec, data, new) -> dict[str, Any]:
  _, mixture = samplers.resolve('ddim_gmm', spec.sampler.options())
  return {
    'data': ', '.join(f'{name} {value}' for name, value in base.summary(data).items()),
    'samples': f'{spec.evaluate.count} per sampler, seed {spec.seed}',
    'sample sets': ', '.join(dict.fromkeys(record['set'] for record in new)),
    'mixture': 'K = {components}, scale {scale:g}, infeasible: {infeasible}'.format(**mixture),
    'weights': new[0]['weights'],
  }


def _read(path: str) -> bytes | None:
  if not os.path.exists(path):
    return None
  with open(path, 'rb') as file:
    return file.read()
