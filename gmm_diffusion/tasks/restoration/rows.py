"""What an evaluation of restoration finds."""

from typing import NamedTuple

import numpy as np

from gmm_diffusion import specs
from gmm_diffusion.metrics.estimates import Estimate

DEGRADED = 'degraded'  # the row of what is restored


class Row(NamedTuple):
  """One sampler of one network.

  Attributes:
    name: as records and the page call it.
    model: the network; '' has none.
    calls: of the network for an image.
    values: metric -> Estimate; the distance to the data comes last.
    images: the first draw of each image, uint8 [N, H, W, C].
    spread: deviation of the draws [N, H, W, C] of values in [-1, 1]; None has one draw.
    curve: what rows that differ in their number of steps have in common.
    control: name of the row with noise of the same variance, for a mixture; '' has none.
  """

  name: str
  model: str
  calls: int
  values: dict[str, Estimate]
  images: np.ndarray
  spread: np.ndarray | None = None
  curve: str = ''
  control: str = ''


def named(model: str, sampler: specs.Sampler | None) -> str:
  """What a row is called."""
  return f'{model} {sampler.name} {sampler.steps}' if sampler else model
