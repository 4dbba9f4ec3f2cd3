"""What samples are compared with: images, streamed once and kept as statistics, or the mean and
covariance that others published."""

import os
import zipfile
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from gmm_diffusion import files, parallel
from gmm_diffusion.data import image_sets
from gmm_diffusion.data.image_sets import ImageSet, fingerprint
from gmm_diffusion.errors import UserError
from gmm_diffusion.metrics.features import Features, gather, sizes
from gmm_diffusion.metrics.frechet import Statistics


class Source(NamedTuple):
  """A reference that is found, and not yet read.

  Attributes:
    what: for people.
    images: or None, where only mean and covariance are known.
    known: Statistics of the features in that case.
  """

  what: str
  images: ImageSet | None
  known: Statistics | None = None

  @property
  def count(self) -> int | None:
    """Number of images, None where it is not known."""
    return len(self.images) if self.images else None


class Reference(NamedTuple):
  """A reference on one feature network.

  Attributes:
    moments: Statistics of the features.
    features: float32 [M, D], where a metric needs them.
    spatial: Statistics of the spatial features, likewise.
    count: M, or None where it is not known.
    hash: of the images, or of mean and covariance.
    what: for people.
  """

  moments: Statistics
  features: np.ndarray | None
  spatial: Statistics | None
  count: int | None
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

  Of an .npz with images and statistics, such as ADM's, only the images count, so that resize and
  network are those of the samples.

  Args:
    shape: of the samples, which reference images must have too.

  Raises:
    UserError: what is there does not fit.
  """
  if path.endswith('.npz') and os.path.isfile(path := os.path.expanduser(path)):
    known = _read_moments(path, features)
    if known:
      return Source(f'{path} (mu, sigma)', None, known)
  images = image_sets.load(path, data_dir, skip_unreadable)
  if images.shape != shape:
    raise UserError(
      f'reference {path} has images of {sizes(images.shape)}, the samples are {sizes(shape)}; '
      'give a reference of the same size and number of channels'
    )
  return Source(images.what, images)


def _read_moments(path, features):
  """Statistics of an .npz with mu and sigma and no images, else None."""
  try:
    with open(path, 'rb') as content, np.load(content, allow_pickle=False) as file:
      if 'arr_0' in file or not {'mu', 'sigma'} <= set(file):
        return None
      mean, covariance = (np.asarray(file[name], np.float64) for name in ('mu', 'sigma'))
  except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
    raise UserError(f'cannot read {path}: {error}; write or download it again') from error
  D = features.dimensions['features']
  if mean.shape != (D,) or covariance.shape != (D, D):
    raise UserError(
      f'mu and sigma of {path} are {list(mean.shape)} and {list(covariance.shape)}; '
      f'the features {features.name} need [{D}] and [{D}, {D}]'
    )
  finite = np.all(np.isfinite(mean)) and np.all(np.isfinite(covariance))
  if not (finite and np.allclose(covariance, covariance.T, atol=1e-6 * np.abs(covariance).max())):
    raise UserError(
      f'mu and sigma of {path} are not the finite mean and symmetric covariance that they should '
      f'be; write or download it again'
    )
  return Statistics(mean, covariance)


def load(source: Source, features: Features, kinds: Iterable[str], cache: str) -> Reference:
  """The reference on a feature network, read from the folder `cache` or extracted and kept there.

  Args:
    kinds: what metrics need beside the moments: 'features', 'spatial'.
  """
  if source.known:
    return Reference(source.known, None, None, None, fingerprint(*source.known), source.what)
  images, wanted = source.images, set(kinds) & {'features', 'spatial'}
  path = os.path.join(cache, f'reference-{images.hash}-{features.name}.npz')
  arrays = _read(path, features, wanted)
  if arrays is None or arrays['skipped'] and not getattr(images, 'skip', False):
    kept, moments, count = gather(
      features, images, 'reference', wanted & {'features'}, {'features', *(wanted & {'spatial'})}
    )
    arrays = {'count': count, 'skipped': len(images.skipped)}
    for name, (mean, covariance) in moments.items():
      arrays.update({f'{name}_mean': mean, f'{name}_covariance': covariance})
    if kept.features is not None:
      arrays['features'] = kept.features
    if parallel.is_main():
      os.makedirs(cache, exist_ok=True)
      files.write(path, lambda name: np.savez(name, **arrays))
  moments = {
    name: Statistics(arrays[f'{name}_mean'], arrays[f'{name}_covariance'])
    for name in ('features', 'spatial')
    if f'{name}_mean' in arrays
  }
  return Reference(
    moments['features'],
    arrays.get('features'),
    moments.get('spatial'),
    int(arrays['count']),
    images.hash,
    images.what,
  )


def _read(path, features, wanted):
  """The arrays of a cached reference; None where there are none, where one that is wanted is not
  among them, or where it is damaged."""
  if not os.path.exists(path):
    return None
  names = ['count', 'skipped', 'features_mean', 'features_covariance']
  names += ['features'] * ('features' in wanted) + ['spatial_mean', 'spatial_covariance'] * (
    'spatial' in wanted
  )
  try:
    with open(path, 'rb') as content, np.load(content, allow_pickle=False) as file:
      if not set(names) <= set(file):
        return None
      arrays = {name: file[name] for name in names}
  except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
    print(f'the cached reference {path} is damaged ({error}): computing it again', flush=True)
    return None
  return arrays
