"""One run of the program: what its modes hand on."""

from typing import Any, NamedTuple

from gmm_diffusion import specs


class Run(NamedTuple):
  """What a mode works with.

  Attributes:
    spec: the settings.
    data: what spec.data names, loaded: a base.Data, or the scenes of segmentation.
    workdir: the folder of checkpoints, samples and results.
    command: the command line, for records.
  """

  spec: specs.Spec
  data: Any
  workdir: str
  command: str
