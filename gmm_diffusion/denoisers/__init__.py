"""Exact denoisers by name. To add one: its file, and one line in EXACT."""

from collections.abc import Callable
from typing import Any, NamedTuple

from gmm_diffusion.denoisers import exact, score_machines
from gmm_diffusion.types import Denoiser

NETWORK = 'network'  # the one that has to be trained


class Exact(NamedTuple):
  """A denoiser without parameters.

  Attributes:
    data: what it is made of: 'mixture' (data.mixture), 'items' (all training items, as the model
      sees them) or 'images' (items that are images).
    make: (data, **options) -> Denoiser.
    options: the names of its options, keys of the section denoiser.
  """

  data: str
  make: Callable[..., Denoiser]
  options: tuple[str, ...] = ()


def _machine(name: str, *taken: str) -> Exact:
  def make(images: Any, **options: Any) -> Denoiser:
    return score_machines.make(name, images, **options)

  return Exact('images', make, taken)


EXACT = {
  'mixture': Exact('mixture', lambda known: exact.mixture(*known)),
  'empirical': Exact('items', exact.empirical),
  'IS': _machine('IS'),
  'ES': _machine('ES'),
  'LS': _machine('LS', 'size', 'padding'),
  'ELS': _machine('ELS', 'size', 'padding', 'places'),
  'bbELS': _machine('bbELS', 'size'),
  'consistent': _machine('consistent', 'size', 'padding'),
}
NAMES = (NETWORK, *EXACT)
