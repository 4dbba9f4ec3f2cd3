"""Denoising networks by name: (out_channels, classes, options) -> a linen module called as net(x,
t, cond, train=...)."""

import inspect
from typing import Any

from gmm_diffusion.nets.cnn import CNN
from gmm_diffusion.nets.dit import DiT
from gmm_diffusion.nets.unet import UNet

NETS = {'unet': UNet, 'dit': DiT, 'cnn': CNN}


def has_schedule(module: Any) -> bool:
  """Whether a network takes its progress in training, in [0, 1], as nets.cnn does."""
  return 'progress' in inspect.signature(type(module).__call__).parameters


def draws(module: Any) -> bool:
  """Whether a network draws random numbers while it trains: dropout, or Gumbel noise."""
  return getattr(module, 'dropout', 0) > 0 or getattr(module, 'final', '') == 'gumbel'
