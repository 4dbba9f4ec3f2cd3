"""A trained network of a workdir, ready to segment."""

import os
from typing import Any, NamedTuple

import numpy as np

from gmm_diffusion import specs
from gmm_diffusion.errors import UserError
from gmm_diffusion.reports import records
from gmm_diffusion.tasks.segmentation import training
from gmm_diffusion.tasks.segmentation.model import Segmenter
from gmm_diffusion.tasks.segmentation.session import Session


class Network(NamedTuple):
  """What sessions need.

  Attributes:
    module: the network.
    params: its weights.
    size: images with a longer side are worked on at it, in pixels.
    slots: clicks that a session holds.
  """

  module: Segmenter
  params: Any
  size: int = 240
  slots: int = 40

  def session(self, image: np.ndarray) -> Session:
    """A session on an image; see scenes.rgb for what is valid."""
    return Session(self.module, self.params, image, self.size, self.slots)


def of(spec: specs.Spec, workdir: str) -> Network:
  """The network of a spec with its weights; raises UserError where the workdir does not have it."""
  own = spec.segmentation
  return Network(*training.load(spec, workdir), own.size, own.slots)


def load(workdir: str) -> Network:
  """The network that was trained in a workdir.

  Raises:
    UserError: no network for segmentation was trained there.
  """
  workdir = os.path.expanduser(workdir)
  spec = specs.from_config(records.config_of(workdir))
  if spec.task != 'segmentation':
    raise UserError(
      f'{workdir!r} is of task {spec.task!r}; give the workdir of a training with '
      f'--config=segmentation.py'
    )
  return of(spec, workdir)
