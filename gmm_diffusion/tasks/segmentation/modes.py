"""The modes of task 'segmentation': fetch, train, evaluate, all, annotate."""

import os
import time

import jax

from gmm_diffusion import parallel, specs, task_specs
from gmm_diffusion.checkpoints.importers import efficientnet
from gmm_diffusion.engine.runs import Run
from gmm_diffusion.errors import UserError
from gmm_diffusion.metrics.estimates import Estimate
from gmm_diffusion.reports import records
from gmm_diffusion.tasks.segmentation import (
  benchmark,
  metrics,
  networks,
  report,
  scenes,
  training,
  use,
)
from gmm_diffusion.tasks.segmentation.benchmark import Objects


def run(mode: str, spec: specs.Spec, workdir: str, command: str) -> None:
  """Runs a mode: fetch, train, evaluate, all (train, then evaluate), or annotate."""
  if mode == 'annotate':
    return annotate(spec, workdir)
  if mode == 'fetch':
    return fetch(spec.segmentation)
  # what is not evaluated is there to learn from
  learn, shown = ('train', 'val')[: 1 + (spec.data.split == 'test')], (spec.data.split,)
  splits = {'train': learn, 'evaluate': shown, 'all': learn + shown}
  this = Run(spec, scenes.load(spec.data, splits[mode]), workdir, command)
  if mode in ('train', 'all'):
    training.train(spec, [scene for name in learn for scene in getattr(this.data, name)], workdir)
  if mode in ('evaluate', 'all'):
    evaluate(this)


def fetch(own: task_specs.Segmentation) -> None:
  """--mode=fetch: finds and reads the released weights of the encoder, before a long training does.

  Raises:
    UserError: there are none to find, or the file is not theirs.
  """
  if own.encoder == 'scratch':
    raise UserError(
      "segmentation.encoder 'scratch' has no released weights to fetch; valid: "
      + ', '.join(efficientnet.RELEASED)
    )
  path = efficientnet.file_of(own.encoder, own.encoder_path)
  count = sum(leaf.size for leaf in jax.tree.leaves(efficientnet.load(own.encoder, path)))
  print(f'{own.encoder}: {count:,} parameters in {path}')


def annotate(spec: specs.Spec, workdir: str) -> None:
  """--mode=annotate: serves the page on which a person segments data.images, until Ctrl-C.

  Raises:
    UserError: there is no network or no image, or the page cannot be served.
  """
  if not spec.data.images:
    raise UserError('--mode=annotate needs data.images: give a folder of images')
  network = networks.of(spec, workdir)
  own = spec.annotate
  with use.page(spec.data.images, workdir, network, own.host, own.port) as page:
    print(f'{page.about}\nopen {page.url} in a browser; Ctrl-C ends it', flush=True)
    if own.open:
      page.show()
    page.run()
  print(f'\nall clicks are in {page.folder}; the same command goes on from there')


def evaluate(run_: Run) -> None:
  """--mode=evaluate: arms and baselines on the same objects; results.json, curve.png and
  report.html."""
  spec, workdir, start = run_.spec, run_.workdir, time.perf_counter()
  objects = Objects(spec, getattr(run_.data, spec.data.split))
  methods, found = benchmark.methods(spec, workdir, objects), {}
  for method in methods:
    found.update(benchmark.courses(spec, workdir, objects, method))
  speed = benchmark.milliseconds(objects, *training.load(spec, workdir), found['both'].clicks)
  if not parallel.is_main():
    return
  table = metrics.table({name: course.curves for name, course in found.items()}, objects.images)
  weights = {name: method.weights for method in methods for name in method.rows}
  shared = records.common(spec, run_.command)
  records.add(workdir, _records(run_, objects, table, weights, speed, shared))
  for name, row in table.items():
    print(f'{name:44s} ' + '  '.join(f'{metric} {value}' for metric, value in row.items()))
  shown_speed = 'not measured' if speed is None else f'{speed:.0f}'
  print(f'milliseconds per click: {shown_speed}')
  facts = {
    'milliseconds per click': f'{shown_speed} (both adaptations, after the first click)',
    **{f'weights of {method.title}': method.weights for method in methods if method.weights},
    'seconds': round(time.perf_counter() - start, 1),
    'versions': ', '.join(f'{k} {v}' for k, v in shared['versions'].items()),
  }
  report.write(run_, objects, found, table, facts)
  print(f'report: {os.path.join(workdir, "report.html")}')


def _records(
  run_: Run,
  objects: Objects,
  table: dict[str, dict[str, Estimate]],
  weights: dict[str, str | None],
  speed: float | None,
  shared: dict,
) -> list[dict]:
  """The records of an evaluation; each has the hash of its own network, GrabCut none."""
  about = {
    'kind': 'segmentation',
    'n': len(objects),
    'images': len(set(objects.images)),
    'seed': run_.spec.seed,
    'split': run_.spec.data.split,
    **shared,
  }
  out = [
    {
      'sampler': name,
      'metric': metric,
      **value.record(),
      'weights': weights[name.removesuffix(metrics.DIFFERENCE)],
      **about,
    }
    for name, row in table.items()
    for metric, value in row.items()
  ]
  clicking = {'metric': 'milliseconds per click', 'value': speed, 'interval': None}
  return [*out, {'sampler': 'both', **clicking, 'weights': weights['both'], **about}]
