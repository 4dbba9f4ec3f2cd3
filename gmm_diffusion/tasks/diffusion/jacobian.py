"""The geometry of a trained model against the noise level: for the page of --mode=evaluate."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from gmm_diffusion import specs
from gmm_diffusion.data import base
from gmm_diffusion.denoisers import geometry
from gmm_diffusion.engine import build, drawing
from gmm_diffusion.maths import grids, marginals, noise
from gmm_diffusion.metrics.estimates import Estimate, of_mean, of_ratio
from gmm_diffusion.reports import page, plots
from gmm_diffusion.types import Time

COUNT = 32  # images, held-out ones where there are any
RATIOS = np.geomspace(0.05, 20, 6)  # b / a
_PROBES = 1  # seed of the probes; 0 is that of the noise
HOW = (
  'The derivatives of the predicted clean image with respect to the noisy one, K, at noisy images '
  'of the data. Asymmetry: of an exact model 0, since its score is a gradient; 1 is a pure '
  'rotation. Dimension: a tr K, which for small noise is the number of directions in which images '
  'may be changed. Largest singular value of K: how much an error of the noisy image grows.'
)


class Level(NamedTuple):
  """At one noise level b / a: what geometry.Geometry measures."""

  ratio: float
  asymmetry: Estimate
  dimension: Estimate
  largest: Estimate


def possible(spec: specs.Spec, data: base.Data) -> bool:
  """Whether there is a network of images, and images to ask it about."""
  own = spec.denoiser.name == 'network' and not spec.autoencoder.name
  return own and data.is_image and max(len(data.test), len(data.train)) >= COUNT


def find(model: drawing.Model) -> list[Level]:
  """The geometry at each level, from noisy to clean images of the data."""
  spec, data = model.spec, model.data
  plain = dataclasses.replace(spec, denoiser=dataclasses.replace(spec.denoiser, clip=False))
  model, bind, schedule = (
    model.on(plain),
    build.denoiser(plain, data),
    build.schedule(spec.schedule),
  )
  held_out = len(data.test) >= COUNT
  items, labels = (data.test, data.test_labels) if held_out else (data.train, data.train_labels)
  index = np.linspace(0, len(items) - 1, COUNT).astype(int)  # folders are sorted by class
  x0, ids = base.to_model(items[index]), np.arange(COUNT, dtype=np.uint32)
  known = labels[index] if drawing.takes_labels(spec, data) else np.zeros(COUNT, np.int32)

  def measure(denoiser, x0, ids, cond, *time):
    eps = noise.at_step(noise.sample_keys(0, ids), 0, x0.shape[1:], x0.dtype).normal
    x = marginals.diffuse(x0, eps, Time(*time))
    return geometry.measure(denoiser, x, Time(*time), ids, cond, _PROBES)

  out = []
  times = grids.nearest(schedule, RATIOS)
  for t in tqdm(times, desc='geometry of the model', unit='level', dynamic_ncols=True):
    time = schedule.at(t)
    each = [np.full(COUNT, part, np.float32) for part in time]
    found = model.ask('geometry', bind, measure, (x0, ids, known, *each))
    out.append(level(time, geometry.Geometry(*found)))
  return out


def level(time: Time, found: geometry.Geometry) -> Level:
  """What was found of several images at a time."""
  rest = of_mean(found.dimension), of_mean(found.largest)
  return Level(float(time.b / time.a), of_ratio(found.skew, found.size), *rest)


def section(levels: Sequence[Level]) -> page.Section:
  """The section of the page."""
  names = 'asymmetry', 'dimension', 'largest singular value'
  figure, axes = plots.new(columns=3, size=(10.5, 3))
  for panel, name, field in zip(axes[0], names, Level._fields[1:]):
    found = [getattr(level, field) for level in levels]
    low, high = np.array([[v.value - v.low, v.high - v.value] for v in found]).T
    panel.errorbar(
      [level.ratio for level in levels],
      [v.value for v in found], (low, high), marker='o', markersize=3, capsize=2,
    )  # fmt: skip
    panel.set(xscale='log', xlabel='noise level b / a', title=name, ylim=(0, None))
    panel.grid(alpha=0.3)
  rows = [[f'{level.ratio:.3g}', *level[1:]] for level in levels]
  table = page.folded('Table', page.table(['b / a', *names], rows))
  return 'Geometry of the model', [HOW, page.figure(plots.png(figure), smooth=True), table]


def record(
  levels: Sequence[Level], model: drawing.Model, shared: dict[str, Any]
) -> list[dict[str, Any]]:
  """Records of all levels."""
  return [
    {
      'kind': 'geometry',
      'sampler': '',  # of the model
      'metric': f'{name} at b / a = {level.ratio:.3g}',
      'ratio': level.ratio,
      **getattr(level, name).record(),
      'n': COUNT,
      'weights': model.hash,
      **shared,
    }
    for level in levels
    for name in Level._fields[1:]
  ]
