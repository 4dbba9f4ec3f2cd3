"""How near samples are to a reference: features, metrics and intervals, on stored images or on what
a sampler draws."""

import os
from typing import Any, NamedTuple

import numpy as np

from gmm_diffusion import metrics, specs
from gmm_diffusion.data import base, image_sets
from gmm_diffusion.engine import drawing, sample_sets, shards
from gmm_diffusion.engine.runs import Run
from gmm_diffusion.errors import UserError
from gmm_diffusion.metrics import features as features_lib
from gmm_diffusion.metrics import references
from gmm_diffusion.metrics.estimates import INTERVAL

_AT_ONCE = 512  # images whose features are extracted in one call


class Bench(NamedTuple):
  """What samples are measured with; `shape` is theirs."""

  features: features_lib.Features
  source: references.Source
  reference: references.Reference
  names: list[str]
  neighbours: int
  shape: tuple[int, ...]


def cache_of(spec: specs.Spec, workdir: str) -> str:
  """The folder of what is computed or downloaded for features and references."""
  return os.path.expanduser(spec.evaluate.cache) or workdir


def bench(
  spec: specs.Spec, data: base.Data, workdir: str, shape: tuple[int, ...], count: int
) -> Bench:
  """Features, reference and metrics for `count` samples of a shape; raises UserError on what does
  not fit, before anything is drawn."""
  e, cache = spec.evaluate, cache_of(spec, workdir)
  check_reference(spec, data)
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


def check_reference(spec: specs.Spec, data: base.Data) -> None:
  """Raises UserError unless there is something to compare with."""
  if not spec.evaluate.reference and not len(data.train):
    raise UserError(
      f'data {spec.data.name!r} has no images to compare with; set evaluate.reference to a folder '
      f'of images, an .npz or tfds:NAME:SPLIT, or data.name to a data set, valid: digits, folder, '
      f'npz, tfds'
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


def features_of(
  found: Bench, source: drawing.Drawer, run: Run
) -> tuple[features_lib.Extracted, np.ndarray, int, float]:
  """(Extracted, the first samples, evaluations, seconds) of a sampler; kept in files by range of
  ids, as the samples are if asked for."""
  e, kept = run.spec.evaluate, sorted(metrics.kinds(found.names)[0])
  title, stored = source.sampler, None
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
    os.path.join(run.workdir, 'features', found.features.name, source.name),
    f'{source.mark} {found.features.name} {kept}',
    e.count,
    run.spec.sample.shard,
  )
  shards.fill(*where, make, f'{"features of" if stored else "sampling"} {title}')
  out = {name: np.empty((e.count, found.features.dimensions[name]), np.float32) for name in kept}
  first: shards.Arrays = {}
  seconds, done = 0.0, 0
  for part in shards.read(*where):
    first, seconds = first or part, seconds + float(part['seconds'])
    for name in kept:
      out[name][done : done + len(part[name])] = part[name]
    done += len(part[kept[0]])
  return features_lib.Extracted(**out), first['first'], int(first['nfe']), seconds
