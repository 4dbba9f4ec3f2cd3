"""A trained network of a workdir, ready to segment."""

import os
from typing import Any, NamedTuple

import numpy as np

from gmm_diffusion import specs
from gmm_diffusion.errors import UserError
from gmm_diffusion.reports import records
from gmm_diffusion.tasks.segmentation import training, weights
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

  def save(self, path: str) -> None:
    """Writes the network as one file, an .npz, to give to others; `load` and segmentation.weights
    read it."""
    about = {**training.about(self.module), 'size': self.size, 'slots': self.slots}
    weights.write(path, weights.Content(about, self.params))


def of(spec: specs.Spec, workdir: str) -> Network:
  """The network of a spec with its weights; raises UserError where the workdir does not have it."""
  own = spec.segmentation
  return Network(*training.load(spec, workdir), own.size, own.slots)


def load(network: str) -> Network:
  """A trained network.

  Args:
    network: the workdir of its training, or a file that `Network.save` wrote.

  Raises:
    UserError: no network for segmentation was trained there, or the file is damaged.
  """
  network = os.path.expanduser(network)
  if os.path.isfile(network):
    about, params = weights.read(network)
    try:
      module = Segmenter(**about['segmentation'], clicks=about['clicks'])
      out = Network(module, params, about['size'], about['slots'])
    except (KeyError, TypeError) as error:
      raise UserError(f'{network} is of another version ({error}); train it again') from error
    training.check(module, params, network)
    return out
  spec = specs.from_config(records.config_of(network))
  if spec.task != 'segmentation':
    raise UserError(
      f'{network!r} is of task {spec.task!r}; give the workdir of a training with '
      f'--config=segmentation.py'
    )
  return of(spec, network)
