"""The modes of task 'segmentation': train, evaluate, all."""

import dataclasses
import os
import time

from gmm_diffusion import parallel, specs
from gmm_diffusion.engine import build
from gmm_diffusion.reports import records
from gmm_diffusion.tasks.segmentation import benchmark, grabcut, metrics, report, training
from gmm_diffusion.tasks.segmentation.benchmark import Objects, milliseconds, predictor
from gmm_diffusion.tasks.segmentation.model import ARMS

BASELINE = 'clicks as channels, dot-product attention'


def evaluate(spec: specs.Spec, workdir: str, command: str) -> None:
  """--mode=evaluate: the arms and baselines on the same objects; results.json, curve.png and
  report.html."""
  start = time.perf_counter()
  section, objects = spec.segmentation, Objects(spec)
  module, params = training.load(spec, workdir)
  weights = build.tree_hash(params)
  runs = [
    (
      list(ARMS),
      weights,
      lambda: predictor(objects, module, params, list(ARMS.values()), section.batch),
      'arms',
    )
  ]
  if section.baseline:
    other = training.load(spec, workdir, 'channels')
    runs.append(
      (
        [BASELINE],
        build.tree_hash(other[1]),
        lambda: predictor(objects, *other, [(False, False)], section.batch),
        'baseline',
      )
    )
  if grabcut.available():
    runs.append((['GrabCut'], '', lambda: grabcut.predictor(objects), 'GrabCut'))
  rows, shown = {}, {}
  for run in runs:
    curves, ends = benchmark._run(spec, workdir, objects, *run)
    rows.update(curves)
    shown.update(ends)
  speed = milliseconds(objects, module, params, shown['both'][1])
  if not parallel.is_main():
    return
  shared = records.common(spec, command)
  table = {name: metrics.summary(row, objects.images) for name, row in rows.items()}
  table.update(
    {
      f'{name} minus none': metrics.differences(rows[name], rows['none'], objects.images)
      for name in rows
      if name != 'none'
    }
  )
  new = [
    {
      'kind': 'segmentation',
      'sampler': name,
      'metric': metric,
      'value': value.value,
      'interval': [value.low, value.high],
      'n': len(objects.scenes),
      'images': len(set(objects.images)),
      'seed': spec.seed,
      'split': spec.data.split,
      'weights': weights,
      **shared,
    }
    for name, row in table.items()
    for metric, value in row.items()
  ]
  new.append(
    {
      'kind': 'segmentation',
      'sampler': 'both',
      'metric': 'milliseconds per click',
      'value': speed,
      'interval': None,
      'n': len(objects.scenes),
      'seed': spec.seed,
      'split': spec.data.split,
      'weights': weights,
      **shared,
    }
  )
  records.add(workdir, new)
  for name, row in table.items():
    print(f'{name:44s} ' + '  '.join(f'{metric} {value}' for metric, value in row.items()))
  shown_speed = 'not measured' if speed is None else f'{speed:.0f}'
  print(f'milliseconds per click: {shown_speed}')
  facts = {
    'objects': f'{len(objects.scenes)} of {len(set(objects.images))} images, {spec.data.split} '
    f'split, seed {spec.seed}',
    'milliseconds per click': f'{shown_speed} (both adaptations, after the first click)',
    'weights': weights,
    'seconds': round(time.perf_counter() - start, 1),
    'versions': ', '.join(f'{k} {v}' for k, v in shared['versions'].items()),
  }
  report.write(workdir, command, facts, table, rows, shown, objects, dataclasses.asdict(spec))
  print(f'report: {os.path.join(workdir, "report.html")}')


def run(mode: str, spec: specs.Spec, workdir: str, command: str) -> None:
  """Runs a mode: train, evaluate, or all of it."""
  if mode == 'all':
    Objects(spec)  # bad data show before the training
  if mode in ('train', 'all'):
    training.train(spec, workdir)
  if mode in ('evaluate', 'all'):
    evaluate(spec, workdir, command)
