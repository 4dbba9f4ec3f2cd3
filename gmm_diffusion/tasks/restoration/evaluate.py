"""How good restored images are: near to the true ones, like the data, and how much draws of one
image differ."""

import dataclasses
import time

import numpy as np
from tqdm import tqdm

from gmm_diffusion import parallel, samplers, specs
from gmm_diffusion.data import base, image_sets
from gmm_diffusion.engine import quality
from gmm_diffusion.engine.runs import Run
from gmm_diffusion.errors import UserError
from gmm_diffusion.metrics import features as features_lib
from gmm_diffusion.metrics import restoration
from gmm_diffusion.metrics.estimates import INTERVAL, difference, jackknife
from gmm_diffusion.reports import records
from gmm_diffusion.tasks.restoration import inputs, models, report
from gmm_diffusion.tasks.restoration.rows import DEGRADED, Row, named

_MOST = 80.0  # dB; equal images would have infinitely many
_OWN_GRID = 'tuned', 'one_step'  # samplers that restoration.steps says nothing of


def todo(spec: specs.Spec) -> list[tuple[str, specs.Sampler | None]]:
  """(network, sampler) of each row; a mixture's control follows it."""
  names: dict[str, None] = {}
  for name in spec.evaluate.samplers:
    names |= dict.fromkeys(filter(None, (name, samplers.control_of(name))))
  settings = [
    dataclasses.replace(spec.sampler, name=name, steps=steps, times=None)
    for name in names
    for steps in dict.fromkeys(spec.restoration.steps)
  ]
  out: list[tuple[str, specs.Sampler | None]] = []
  for model in spec.restoration.models:
    out += [(model, one) for one in ([None] if model == models.REGRESSION else settings)]
  return out


def check(this: Run) -> None:
  """Raises UserError for what would fail after a training."""
  spec = this.spec
  if len(this.data.test) < 3:
    raise UserError(
      f'there are {len(this.data.test)} test images, and an evaluation needs at least 3; set '
      f'data.held_out'
    )
  if not todo(spec):
    raise UserError(
      'there is nothing to evaluate: evaluate.samplers or restoration.steps is empty, got '
      f'{spec.evaluate.samplers} and {spec.restoration.steps}'
    )
  for _, sampler in todo(spec):
    if sampler is None:
      continue
    if sampler.name in _OWN_GRID:
      raise UserError(
        f'sampler {sampler.name!r} has steps of its own; leave it out of evaluate.samplers'
      )
    models.prepared(spec, this.data, sampler)
  features_lib.check_name(spec.evaluate.features)


def evaluate(this: Run, pairs: inputs.Pairs | None) -> None:
  """--mode=evaluate: every network and sampler on the same test images and noise; results.json and
  report.html."""
  start, spec, data = time.perf_counter(), this.spec, this.data
  count = min(spec.evaluate.count, len(data.test))
  true, x_in = np.asarray(data.test[:count]), inputs.of_test(spec, data, pairs, count)
  bench = bench_of(this, count)
  degraded = base.to_image(x_in)
  rows = [Row(DEGRADED, '', 0, values_of(degraded[:, None], true, bench), degraded)]
  _say(rows[-1])
  ids, hashes = np.arange(count * spec.inverse.draws, dtype=np.uint32), {'': ''}
  wanted, restorers = todo(spec), {}
  with tqdm(total=len(wanted) * count, desc='restoring', unit='image', dynamic_ncols=True) as bar:
    for model, sampler in wanted:
      if model not in restorers:
        restorers = {model: models.Restorer(this, model)}  # one at a time in memory
        hashes[model] = restorers[model].hash
      draws = spec.inverse.draws if sampler else 1
      found, calls = restorers[model].restore(sampler, x_in.repeat(draws, 0), ids[: count * draws])
      rows.append(
        _row(model, sampler, calls, found.reshape(count, draws, *data.shape), true, bench)
      )
      bar.update(count)
      _say(rows[-1])
  if not parallel.is_main():
    return
  shared = {
    'n': count,
    'draws': spec.inverse.draws,
    'seed': spec.seed,
    'features': bench.features.name,
    'reference': bench.reference.hash,
    **records.common(spec, this.command),
  }
  records.add(this.workdir, [r for row in rows for r in _records(row, rows, hashes, shared)])
  facts = {
    'images': f'{count} test images, {spec.inverse.draws} draws each, seed {spec.seed}',
    'distance': f'{list(rows[0].values)[-1]} on features {bench.features.name}, to '
    f'{bench.reference.what}',
    'intervals': INTERVAL,
    'seconds': round(time.perf_counter() - start, 1),
    'versions': ', '.join(f'{k} {v}' for k, v in shared['versions'].items()),
  }
  path = report.write(this, rows, true, facts)
  print(f'report: {path}')


def bench_of(this: Run, count: int) -> quality.Bench:
  """Features and reference for the Frechet distance, or where images are too few for it, the kernel
  distance."""
  of = lambda name: dataclasses.replace(
    this.spec, evaluate=dataclasses.replace(this.spec.evaluate, metrics=(name,))
  )
  make = lambda name: quality.bench(of(name), this.data, this.workdir, this.data.shape, count)
  try:
    return make('frechet')
  except UserError:
    return make('kernel')


def _row(model, sampler, calls, found, true, bench):
  """The row of images [N, draws, H, W, C]."""
  spread = found.astype(np.float32).std(1, ddof=1) / 127.5 if found.shape[1] > 1 else None
  control = samplers.control_of(sampler.name) if sampler else None
  return Row(
    named(model, sampler),
    model,
    calls,
    values_of(found, true, bench),
    found[:, 0],
    spread,
    f'{model} {sampler.name}' if sampler else model,
    named(model, dataclasses.replace(sampler, name=control)) if control else '',
  )


def values_of(found, true, bench):
  """PSNR and SSIM of one draw, PSNR of the mean of the draws, their spread, and the distance of
  one draw of each image to the data."""
  draws = found.shape[1]
  each = lambda metric: np.mean([metric(found[:, d], true) for d in range(draws)], 0)
  psnr = lambda x, y: np.minimum(restoration.psnr(x, y), _MOST)
  out = {'PSNR': _of(each(psnr)), 'SSIM': _of(each(restoration.ssim))}
  if draws > 1:
    values = found.astype(np.float64)
    out['PSNR of the mean'] = _of(psnr(values.mean(1), true))
    out['spread'] = _of(values.std(1, ddof=1).mean((1, 2, 3)) / 127.5)
  near, _ = quality.measure(bench, image_sets.ArraySet(found[:, 0], 'restored images'), '')
  return out | near


def _of(values):
  """The mean over images, with the influence of each."""
  return jackknife(np.mean(values), values - np.mean(values))


def _say(row):
  print(f'{row.name:28s} ' + '  '.join(f'{key} {value}' for key, value in row.values.items()))


def _records(row, rows, hashes, shared):
  """The records of a row: each metric, and what differs from the row of the regression and from
  its control, image by image."""
  by_name = {other.name: other for other in rows}
  out = []
  for metric, value in row.values.items():
    record = {'kind': 'restoration', 'sampler': row.name, 'metric': metric, **value.record()}
    for key, other in (('minus_regression', models.REGRESSION), ('minus_control', row.control)):
      if other in by_name and other != row.name and metric in by_name[other].values:
        record[key] = difference(value, by_name[other].values[metric]).record()
    out.append({**record, 'nfe': row.calls, 'weights': hashes[row.model], **shared})
  return out
