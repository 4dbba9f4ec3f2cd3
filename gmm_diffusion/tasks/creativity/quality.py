"""What images of the crafted set show: consistency, novelty, and when the theme is decided."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmm_diffusion import specs
from gmm_diffusion.data import base, crafted
from gmm_diffusion.metrics.estimates import Estimate
from gmm_diffusion.tasks.creativity import compare
from gmm_diffusion.tasks.creativity.machines import time_at
from gmm_diffusion.types import Denoiser


def quality(spec: specs.Spec, data: base.Data, images: np.ndarray) -> dict[str, Estimate]:
  """Consistency and novelty of the crafted set; of any set the distance to the training images."""
  out: dict[str, Any] = {}
  if spec.data.name == 'crafted':
    reading = crafted.read(images)
    sound = crafted.consistent(reading) & reading.recognised
    out = {
      'consistent': compare.share(crafted.consistent(reading)),
      'recognised': compare.share(reading.recognised),
      'chance': crafted.chance(reading),
    }
    if len(images) >= 100:
      out['consistent of 100'] = compare.share(crafted.consistent(reading)[:100])
    if sound.any():
      out['novel'] = compare.share(crafted.novel(reading)[sound])
  return {**out, **compare.memorised(images, data.train, data.test)}


def early(spec: specs.Spec, denoiser: Denoiser, states: np.ndarray) -> dict[str, list[float]]:
  """Share of consistent x_0 predictions at each step of the crafted set, and that of independent
  cells: when the theme is decided."""
  if spec.data.name != 'crafted':
    return {}
  predict = jax.jit(lambda x, time: denoiser(x, time, jnp.zeros(len(x), jnp.int32)).x0)
  readings = [
    crafted.read(base.to_image(predict(x, time_at(spec, n)))) for n, x in enumerate(states)
  ]
  return {
    'consistent': [float(np.mean(crafted.consistent(reading))) for reading in readings],
    'chance': [crafted.chance(reading) for reading in readings],
  }


def plain(value: Any) -> Any:
  """Estimates as dicts, for JSON."""
  if isinstance(value, Estimate):
    return {'value': value.value, 'interval': [value.low, value.high]}
  if isinstance(value, dict):
    return {str(key): plain(entry) for key, entry in value.items()}
  return value
