"""How well masked images are known, in bits, and what several pixels in one call cost."""

import itertools
import os
import time
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from gmm_diffusion import metrics, parallel
from gmm_diffusion.discrete import counts, pixels, predictors, process
from gmm_diffusion.engine import quality
from gmm_diffusion.engine.runs import Run
from gmm_diffusion.errors import UserError
from gmm_diffusion.metrics import features as features_lib
from gmm_diffusion.metrics.estimates import INTERVAL, Estimate, of_mean
from gmm_diffusion.reports import records
from gmm_diffusion.tasks.masked import models, report

_MOST = 2**28  # one-hot values of training images, for the exact predictor beside a network
_MOST_TOKENS = 1024  # of an image, up to which the best counts are found
_BLOCK = 4096  # images at a time
_SHOWN = 12  # images that are filled in


class Row(NamedTuple):
  """Samples: by which of models.SCHEMES, in how many calls, what metrics say, the first ones, the
  name of the set, and what the counts lose, in nats an image (None where they are drawn)."""

  scheme: str
  calls: int
  values: dict[str, Estimate]
  images: np.ndarray
  set: str
  lost: float | None


def check(this: Run) -> None:
  """Raises UserError for what would fail after a training."""
  if len(this.data.test) < 3:
    raise UserError(
      f'there are {len(this.data.test)} test images, and an evaluation needs at least 3; set '
      f'data.held_out'
    )
  metrics.check_names(this.spec.evaluate.metrics)
  features_lib.check_name(this.spec.evaluate.features)


def evaluate(this: Run) -> None:
  """--mode=evaluate: bits of test images, and samples by all orders and calls; results.json and
  report.html."""
  start, spec, data = time.perf_counter(), this.spec, this.data
  model, count = models.Model(this), spec.evaluate.count
  bench = quality.bench(spec, data, this.workdir, data.shape, count)
  bits = bits_of(this, model)
  rows, tokens = [], int(np.prod(data.shape))
  every = dict.fromkeys(min(calls, tokens) for calls in spec.masked.compared)
  schemes = dict(models.SCHEMES)
  if tokens > _MOST_TOKENS:
    print(f'left out: best counts, for which {tokens} calls of the predictor are too many')
    del schemes['first hitting, best counts']
  for scheme, calls in itertools.product(schemes, every):
    order, name = models.SCHEMES[scheme]
    each, lost = model.counts(name, calls), None
    if name != 'uniform' and (each == model.counts('uniform', calls)).all():
      continue
    if order == 'first_hitting' and tokens <= _MOST_TOKENS:
      lost = counts.total(model.cost, each)
    source = model.drawer(order, calls, count, None, name)
    sample, first, _, _ = quality.features_of(bench, source, this)
    values = metrics.compare(sample, bench.reference, bench.names, bench.neighbours)
    rows.append(Row(scheme, calls, values, first, f'{source.name}-n{count}', lost))
    shown = '  '.join(f'{name} {value}' for name, value in values.items())
    print(f'{scheme}, {calls} calls: {shown}', flush=True)
  true = np.asarray(data.test[:_SHOWN])
  given = report.hide(spec, data, true)
  fill = model.drawer('first_hitting', 0, len(true), given, 'uniform', data.test_labels[:_SHOWN])
  filled = fill.draw(np.arange(len(true)), lambda n: None)['x']
  if not parallel.is_main():
    return
  shared = {'seed': spec.seed, 'weights': model.hash, **records.common(spec, this.command)}
  facts = {'n': count, **quality.facts_of(bench), **shared}
  new = [
    {'kind': 'metric', 'sampler': row.scheme, 'metric': name, 'set': row.set, 'nfe': row.calls,
     'nats_lost': row.lost,
     **value.record(), **facts}
    for row in rows
    for name, value in row.values.items()
  ]  # fmt: skip
  new += [
    {'kind': 'bits', 'sampler': name, 'metric': 'bits per token', 'n': len(data.test),
     'draws': spec.masked.draws, **value.record(), **shared}
    for name, value in bits.items()
  ]  # fmt: skip
  records.add(this.workdir, new)
  said = {
    'bits': f'{len(data.test)} test images of {tokens} tokens with {spec.masked.levels} levels, '
    f'{spec.masked.draws} draws of the masks each',
    'samples': f'{count} of each, seed {spec.seed}',
    'reference': f'{bench.reference.what}, hash {bench.reference.hash}',
    'features': bench.features.name,
    'intervals': INTERVAL,
    'seconds': round(time.perf_counter() - start, 1),
    'versions': ', '.join(f'{k} {v}' for k, v in shared['versions'].items()),
  }
  path = os.path.join(this.workdir, 'report.html')
  report.write(path, this, bits, rows, (true, given, filled), said)
  print(f'report: {path}')


def bits_of(this: Run, model: models.Model) -> dict[str, Estimate]:
  """Bits of a token of the test images, by what knows more and more; that of a network is an upper
  bound."""
  spec, data, levels = this.spec, this.data, this.spec.masked.levels
  test = np.asarray(data.test)
  tokens = np.asarray(pixels.tokens(test, levels))
  L = tokens.shape[1]
  estimate = lambda nats: of_mean(process.bits_per_token(nats, L))
  out = {
    'nothing': Estimate(*[float(np.log2(levels))] * 3),
    'each pixel by itself': estimate(independent(levels_of(data.train, levels), tokens)),
  }
  if len(data.train) * L * levels <= _MOST:
    own, known = spec.masked, pixels.tokens(np.asarray(data.train), levels)
    exact = predictors.exact(known, levels, own.epsilon, own.width)
    out['training images, smoothed'] = estimate(-np.asarray(exact.log_prob(tokens)))
  if spec.masked.predictor == 'network':
    with tqdm(total=len(test), desc='bits', unit='image', dynamic_ncols=True) as bar:
      out['network'] = of_mean(model.bits(test, data.test_labels[:], bar.update))
  for name, value in out.items():
    print(f'bits of a token, {name}: {value}')
  return out


def levels_of(images: Any, levels: int) -> np.ndarray:
  """How often each place of the images has each level, [L, V]."""
  out = np.zeros((int(np.prod(images.shape[1:])), levels))
  for start in range(0, len(images), _BLOCK):
    x = np.asarray(pixels.tokens(np.asarray(images[start : start + _BLOCK]), levels))
    np.add.at(out, (np.arange(x.shape[1])[None], x), 1)
  return out


def independent(counted: np.ndarray, test: np.ndarray) -> np.ndarray:
  """-log p [N] of tokens [N, L] that do not know of each other, of `levels_of` of the training
  images with one added to each number."""
  p = (counted + 1) / (counted + 1).sum(1, keepdims=True)
  return -np.log(p[np.arange(test.shape[1])[None], test]).sum(1)
