"""The settings of --mode=quantise and of the tasks 'segmentation' and 'creativity', in the form of
options.py; specs.py has the others."""

import dataclasses

from gmm_diffusion.options import BATCH, COUNT, NUMBER, WIDTH, option


@dataclasses.dataclass(frozen=True)
class Quantise:
  """--mode=quantise: a trained network with numbers of few bits, in a workdir of its own."""

  start: str = option('', 'the workdir of the network')
  weights: int = option(8, 'bits of the weights', '[2, 8]')
  activations: int = option(
    0, 'bits of what enters each layer; 0 leaves it as it is, else at least 2', '[0, 16]'
  )
  count: int = option(256, 'samples in which the inputs of layers are looked at', COUNT)
  times: str = option(
    'uniform',
    'when: uniform over the steps of the sampler; normal, mostly in its second half; noise or '
    'clean, the first or last step alone',
    ('uniform', 'normal', 'noise', 'clean'),
  )


@dataclasses.dataclass(frozen=True)
class Segmentation:
  """Interactive segmentation (tasks.segmentation)."""

  encoder: str = option('scratch', 'of the image', ('scratch', 'efficientnet_lite0'))
  encoder_path: str = option('', 'file of its released weights; else those of the extra `encoder`')
  encoder_rate: float = option(0.1, 'learning rate of released weights over others', '[0, 1]')
  weights: str = option('', 'file of a trained network; else that of the workdir')
  channels: int = option(32, 'of the network', WIDTH)
  blocks: int = option(2, 'of the network', '[1, 1024]')
  heads: int = option(2, 'of the network', '[1, 1024]')
  head_channels: int = option(16, 'of the network', WIDTH)
  key_steps: int = option(2, 'adaptations of the keys', '[0, 1000]')
  value_steps: int = option(2, 'adaptations of the values', '[0, 1000]')
  pixels: bool = option(True, 'pixels read the network by colour and place, not by place alone')
  corrections: int = option(1, 'most clicks on its own errors, while training', '[0, 100]')
  crop: tuple[int, ...] = option((96, 128), 'height and width to train on', '[32, 16384]')
  size: int = option(240, 'images with a longer side are worked on at it', WIDTH)
  slots: int = option(40, 'clicks that a session holds', '[1, 10000]')
  clicks: int = option(20, 'clicks that the simulated annotator makes', '[1, 10000]')
  objects: int = option(200, 'how many are evaluated, one of each image first', COUNT)
  batch: int = option(8, 'objects at a time on each device', BATCH)
  baseline: bool = option(True, 'also the network that takes clicks as channels')


@dataclasses.dataclass(frozen=True)
class Annotate:
  """--mode=annotate: the page on which a person segments data.images."""

  host: str = option('127.0.0.1', 'where it is served; 127.0.0.1 is for this machine alone')
  port: int = option(0, 'of the page; 0: any that is free', '[0, 65535]')
  open: bool = option(True, 'show it in the browser of this machine')


@dataclasses.dataclass(frozen=True)
class Creativity:
  """Score machines beside networks that differ in their final layer (tasks.creativity)."""

  networks: tuple[str, ...] = option(
    ('none', 'top1', 'gumbel', 'softmax', 'identity'),
    'names in nets.cnn.FINALS; patch sizes are calibrated on the first',
  )
  machines: tuple[str, ...] = option(
    ('ELS', 'bbELS', 'LS', 'IS', 'consistent'), 'names in denoisers.score_machines.MACHINES'
  )
  sizes: tuple[int, ...] = option((3, 5, 7, 9), 'patch sizes to choose from', '[1, 1024]')
  images: int = option(0, 'training images that machines see, the first ones; 0 is all', NUMBER)
  pairs: int = option(100, "samples of machines, of the same noise as the networks' first", COUNT)
  probes: int = option(8, 'trajectories to calibrate on', COUNT)
