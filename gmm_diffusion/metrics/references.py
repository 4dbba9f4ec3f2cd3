"""What samples are compared with: images, streamed once and kept as statistics, or the mean and
covariance that others published."""

import os
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from gmm_diffusion import files
from gmm_diffusion.data import image_sets, npz
from gmm_diffusion.data.image_sets import ImageSet
from gmm_diffusion.errors import UserError
from gmm_diffusion.metrics.features import Features, gather, sizes
from gmm_diffusion.metrics.frechet import Statistics


class Source(NamedTuple):
  """A reference that is found, and not yet read.

  Attributes:
    what: for people.
    images: or None, where only mean and covariance are known.
    known: field of Extracted -> Statistics that others computed and stored.
  """

  what: str
  images: ImageSet | None
  known: dict[str, Statistics] = {}

  def size(self, part: str) -> int | None:
    """Number of images behind a part of a Reference; None where it is not known."""
    stored = FIELDS.get(part) in self.known
    return len(self.images) if self.images is not None and not stored else None


FIELDS = {'moments': 'features', 'spatial': 'spatial'}  # part of Reference -> field of Extracted
STORED = {'features': ('mu', 'sigma'), 'spatial': ('mu_s', 'sigma_s')}  # names in an .npz


class Reference(NamedTuple):
  """A reference on one feature network.

  Attributes:
    moments: Statistics of the features; None where only the spatial ones were stored.
    features: float32 [M, D], where a metric needs them.
    spatial: Statistics of the spatial features, likewise.
    size: M, or None where there are no images.
    hash: of the images, of statistics that were stored, or of both.
    what: for people.
  """

  moments: Statistics | None
  features: np.ndarray | None
  spatial: Statistics | None
  size: int | None
  hash: str
  what: str


def find(
  path: str,
  features: Features,
  shape: tuple[int, ...],
  data_dir: str = '',
  skip_unreadable: bool = False,
) -> Source:
  """The reference at a path: a folder or .npz of images, tfds:NAME:SPLIT, or an .npz with mu and
  sigma.

  ADM's reference batches hold both: mu and sigma (and mu_s and sigma_s, of spatial features) of the
  whole training set, and 10,000 images. As in ADM's evaluator, Frechet distances on Inception
  features are to the stored statistics, and the images serve the other metrics. On other features
  only the images count.

  Args:
    shape: of the samples, which reference images must have too.

  Raises:
    UserError: what is there does not fit.
  """
  path, known = os.path.expanduser(path), {}
  if path.endswith('.npz') and os.path.isfile(path):
    with npz.Npz(path) as file:
      has_images = 'arr_0' in file.heads
      if features.published or not has_images:
        known = {
          field: _moments(file, names, features, field)
          for field, names in STORED.items()
          if set(names) <= set(file.heads) and field in features.dimensions
        }
    if 'features' in known and not has_images:
      return Source(f'{path} (mu, sigma)', None, known)
  images = image_sets.load(path, data_dir, skip_unreadable)
  if images.shape != shape:
    raise UserError(
      f'reference {path} has images of {sizes(images.shape)}, the samples are {sizes(shape)}; '
      'give a reference of the same size and number of channels'
    )
  what = images.what
  if known:
    names = ', '.join(name for field in known for name in STORED[field])
    what += f' (its {names} for Frechet distances, its {len(images)} images for other metrics)'
  return Source(what, images, known)


def _moments(file, names, features, field):
  """Statistics of an open .npz, for a field of the features."""
  D, heads = features.dimensions[field], [file.heads[name] for name in names]
  if [head.shape for head in heads] != [(D,), (D, D)]:
    shapes = ' and '.join(str(list(head.shape)) for head in heads)
    raise UserError(
      f'{" and ".join(names)} of {file.path} are {shapes}; '
      f'the features {features.name} need [{D}] and [{D}, {D}]'
    )
  if any(head.dtype.kind not in 'fiu' for head in heads):
    raise UserError(
      f'{" and ".join(names)} of {file.path} are {heads[0].dtype} and {heads[1].dtype}; '
      f'valid: real numbers'
    )
  mean, covariance = (np.asarray(file.array(name), np.float64) for name in names)
  largest = max(np.abs(mean).max(), np.abs(covariance).max())  # NaN if one is
  if not (
    largest < 1e12
    and np.allclose(covariance, covariance.T, atol=1e-6 * largest)
    and np.all(np.diag(covariance) >= 0)
  ):
    raise UserError(
      f'{" and ".join(names)} of {file.path} are not the finite mean and symmetric covariance that '
      f'they should be; write or download it again'
    )
  return Statistics(mean, covariance)


def load(source: Source, features: Features, kinds: Iterable[str], cache: str) -> Reference:
  """The reference on a feature network, read from the folder `cache` or extracted and kept there.

  Args:
    kinds: what metrics need beside the moments: 'features', 'spatial'.
  """
  kinds, images, known = {'moments', *kinds}, source.images, source.known
  stored = [files.fingerprint(*known[field]) for field in sorted(known)]
  if images is None or all(FIELDS.get(kind) in known for kind in kinds):
    count, hashes = (None, []) if images is None else (len(images), [images.hash])
    return Reference(
      known['features'],
      None,
      known.get('spatial'),
      count,
      '+'.join(hashes + stored),
      source.what,
    )
  wanted = {kind for kind in kinds & {'features', 'spatial'} if FIELDS.get(kind) not in known}
  skips = getattr(images, 'skip', False)
  names = {'count', 'skipped', 'features_mean', 'features_covariance'} | (wanted & {'features'})
  names |= {'spatial_mean', 'spatial_covariance'} if 'spatial' in wanted else set()

  def make():
    kept, moments, count = gather(
      features, images, 'reference', wanted & {'features'}, {'features', *(wanted & {'spatial'})}
    )
    arrays = {'count': count, 'skipped': len(images.skipped)}
    for name, (mean, covariance) in moments.items():
      arrays.update({f'{name}_mean': mean, f'{name}_covariance': covariance})
    return arrays if kept.features is None else {**arrays, 'features': kept.features}

  arrays = files.kept(
    os.path.join(cache, f'reference-{images.hash}-{features.name}.npz'),
    f'{images.hash} {features.name}',
    make,
    lambda found: names <= set(found) and (skips or not found['skipped']),
  )
  moments = {
    name: Statistics(arrays[f'{name}_mean'], arrays[f'{name}_covariance'])
    for name in ('features', 'spatial')
    if f'{name}_mean' in arrays
  } | known
  return Reference(
    moments['features'],
    arrays.get('features'),
    moments.get('spatial'),
    int(arrays['count']),
    '+'.join([images.hash] + stored),
    source.what,
  )
