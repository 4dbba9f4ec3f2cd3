"""Samples beside the training images that they are nearest to: for the page of --mode=evaluate."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from gmm_diffusion import specs
from gmm_diffusion.data import base
from gmm_diffusion.engine import drawing, sample_sets
from gmm_diffusion.engine.runs import Run
from gmm_diffusion.metrics import copies
from gmm_diffusion.metrics.estimates import Estimate
from gmm_diffusion.metrics.features import Features
from gmm_diffusion.reports import images, page

COUNT = 1000  # samples, and held-out images, at most
LEAST = 16  # held-out images
SHOWN = 12
_AT_ONCE = 512  # images whose features are extracted in one call
HOW = (
  'How often a sample is nearer to its nearest training image than a held-out image is to its own, '
  'on the features named below: 0.5 for new images, 1 for copies, 0 for what is unlike all '
  'training images. Blurred samples are near to much, and can be above 0.5 without being copies: '
  'look at the pictures, which are the samples that are nearest, and below each its training image.'
)


class Copies(NamedTuple):
  """Of a sampler: its name, how often its samples are nearer, how many were compared, and a PNG of
  the nearest, above their training images."""

  name: str
  nearer: Estimate
  compared: int
  strip: bytes


def possible(spec: specs.Spec, data: base.Data) -> bool:
  """Whether there are samples at hand, training images, and new images to compare with."""
  enough = len(data.train) > 1 and len(data.test) >= LEAST
  return spec.evaluate.store and data.is_image and enough


def find(
  model: drawing.Model, drawn: Sequence[drawing.Prepared], features: Features, one: Run
) -> list[Copies]:
  """What there is to say of each sampler; all have drawn spec.evaluate.count. The training images
  are the first evaluate.reference_count, with data.flip their mirror images too."""
  data, count, out = one.data, one.spec.evaluate.count, []
  train = data.train[: one.spec.evaluate.reference_count]
  of_train = _features(features, train)
  if one.spec.data.flip:
    of_train = np.concatenate([of_train, _features(features, train, mirrored=True)])
  spread = np.unique(np.linspace(0, len(data.test) - 1, COUNT).astype(int))  # folders are sorted
  new, _ = copies.nearest(_features(features, data.test, spread), of_train)
  for made in tqdm(drawn, desc='nearest training images', unit='sampler', dynamic_ncols=True):
    x = sample_sets.first(one, model.drawer(made, count), count, COUNT)
    distance, index = copies.nearest(_features(features, x), of_train)
    most = np.argsort(distance)[:SHOWN]
    twins = [train[i % len(train)][:, :: 1 if i < len(train) else -1] for i in index[most].tolist()]
    both = np.concatenate([x[most], np.stack(twins)])
    strip = images.png(images.picture(both, train, columns=len(most), most=2 * SHOWN))
    out.append(Copies(made.sampler.name, copies.nearer(distance, new), len(x), strip))
  return out


def _features(features, x, index=None, mirrored=False):
  """Features [N, D] of images, or of those with the numbers `index`."""
  index, found = np.arange(len(x)) if index is None else index, []
  for start in range(0, len(index), _AT_ONCE):
    part = np.asarray(x[index[start : start + _AT_ONCE]])
    found.append(features.extract(part[:, :, ::-1] if mirrored else part).features)
  return np.concatenate(found)


def section(found: Sequence[Copies]) -> page.Section:
  """The section of the page."""
  table = page.table(['', 'nearer than held-out images'], [one[:2] for one in found])
  strips = [page.strip(one.name, one.strip) for one in found]
  first, rest = (page.Html(''.join(part)) for part in (strips[:2], strips[2:]))
  more = [page.folded(f'{len(strips) - 2} more', rest)] * bool(rest)
  return 'Copies of training images', [HOW, table, first, *more]


def record(
  found: Sequence[Copies], known: Sequence[dict[str, Any]], shared: dict[str, Any]
) -> list[dict[str, Any]]:
  """Records of how often samples are nearer; `known` are those of metrics."""
  of = {one['sampler']: one for one in known}
  return [
    {
      'kind': 'copies',
      'sampler': one.name,
      **one.nearer.record(),
      'n': one.compared,
      **{key: of[one.name][key] for key in ('seed', 'settings', 'weights', 'set', 'features')},
      **shared,
    }
    for one in found
  ]
