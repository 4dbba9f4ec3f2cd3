"""Gaussian mixtures in diffusion models: few-step sampling, attention, and what networks create.

The public names; each is imported when it is first used, so that `import gmm_diffusion` is light.

  load(config or workdir) -> model; model.sample(16, sampler='unipc', steps=10)
  fid(a, b): Frechet distance of two sets of images
  restore(images, workdir): degraded images, by a network that was trained to restore them
  run(mode, workdir, config, command): what the command line does
  samplers, score_machines: samplers and exact denoisers by name
  ProbabilisticAttention, Session: attention as inference, and interactive segmentation with it
  segment(image, clicks, workdir) -> mask; segment_folder: the same for saved clicks
  annotate(images, workdir): the page on which a person clicks
"""

import importlib
from typing import Any

__version__ = '0.1.0'

_PLACES = {  # name -> (module, name in it or '' for the module itself)
  'load': ('api', 'load'),
  'fid': ('api', 'fid'),
  'restore': ('api', 'restore'),
  'run': ('tasks', 'run'),
  'samplers': ('samplers', ''),
  'score_machines': ('denoisers.score_machines', ''),
  'ProbabilisticAttention': ('nets.em_attention', 'ProbabilisticAttention'),
  'Session': ('tasks.segmentation.session', 'Session'),
  'load_segmenter': ('tasks.segmentation.networks', 'load'),
  'segment': ('tasks.segmentation.use', 'segment'),
  'segment_folder': ('tasks.segmentation.use', 'segment_folder'),
  'annotate': ('tasks.segmentation.use', 'annotate'),
}
__all__ = ['__version__', *_PLACES]  # noqa: F822  (found by __getattr__)


def __getattr__(name: str) -> Any:
  if name not in _PLACES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  place, inside = _PLACES[name]
  module = importlib.import_module(f'{__name__}.{place}')
  return getattr(module, inside) if inside else module


def __dir__() -> list[str]:
  return sorted({*globals(), *_PLACES})
