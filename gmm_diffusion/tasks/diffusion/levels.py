"""The error of a trained network against the noise level, on images it was trained on and on
others: for the page of --mode=evaluate."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from gmm_diffusion import specs
from gmm_diffusion.data import base
from gmm_diffusion.engine import build, drawing
from gmm_diffusion.maths import grids, marginals, noise
from gmm_diffusion.metrics.estimates import Estimate, of_mean
from gmm_diffusion.reports import page, plots
from gmm_diffusion.types import Time

COUNT = 256  # images of each set
RATIOS = np.geomspace(0.02, 50, 10)  # b / a
PARTS = 'training images', 'held-out images'
HOW = (
  'The mean square error of the predicted noise, which is 1 where the network knows nothing. Where '
  'held-out images lie above training images, the network has learnt these by heart: train for '
  'fewer steps, on more images, or with net.dropout and data.flip.'
)


class Level(NamedTuple):
  """At a noise level b / a: the error on each of PARTS."""

  ratio: float
  errors: tuple[Estimate, Estimate]


def possible(spec: specs.Spec, data: base.Data) -> bool:
  """Whether there is a network of images, and enough of both kinds of images."""
  own = spec.denoiser.name == 'network' and not spec.autoencoder.name
  return own and data.is_image and min(len(data.test), len(data.train)) >= COUNT


def find(model: drawing.Model) -> list[Level]:
  """The errors at each level, with the same noise on all of them."""
  spec, data = model.spec, model.data
  own = dataclasses.replace(spec.denoiser, clip=False, guidance=1.0, guidance_interval=())
  plain = dataclasses.replace(spec, denoiser=own, classifier=specs.Classifier())
  model, bind = model.on(plain), build.denoiser(plain, data)
  schedule, takes = build.schedule(spec.schedule), drawing.takes_labels(spec, data)
  items = []
  for images, labels in ((data.train, data.train_labels), (data.test, data.test_labels)):
    index = np.linspace(0, len(images) - 1, COUNT).astype(int)  # folders are sorted by class
    items.append((base.to_model(images[index]), labels[index] if takes else 0 * labels[index]))
  x0, known = (np.concatenate(parts) for parts in zip(*items))
  ids = np.arange(len(x0), dtype=np.uint32)

  def measure(denoiser, x0, ids, cond, *time):
    eps = noise.at_step(noise.sample_keys(0, ids), 0, x0.shape[1:], x0.dtype).normal
    found = denoiser(marginals.diffuse(x0, eps, Time(*time)), Time(*time), cond).eps
    return jnp.mean((found - eps) ** 2, tuple(range(1, x0.ndim)))

  out = []
  times = grids.nearest(schedule, RATIOS)
  for t in tqdm(times, desc='error by noise level', unit='level', dynamic_ncols=True):
    time = schedule.at(t)
    each = [np.full(len(x0), part, np.float32) for part in time]
    error = model.ask('error', bind, measure, (x0, ids, known, *each))
    both = of_mean(error[:COUNT]), of_mean(error[COUNT:])
    out.append(Level(float(time.b / time.a), both))
  return out


def section(levels: Sequence[Level]) -> page.Section:
  """The section of the page."""
  figure, axes = plots.new(size=(6, 3.4))
  for name, values in zip(PARTS, zip(*(level.errors for level in levels))):
    axes[0, 0].errorbar(
      [level.ratio for level in levels], [v.value for v in values], [v.half for v in values],
      label=name, marker='o', markersize=3, capsize=2,
    )  # fmt: skip
  axes[0, 0].set(
    xscale='log', yscale='log', xlabel='noise level b / a', ylabel='error of the noise'
  )
  axes[0, 0].grid(alpha=0.3)
  axes[0, 0].legend()
  rows = [[f'{level.ratio:.3g}', *level.errors] for level in levels]
  table = page.folded('Table', page.table(['b / a', *PARTS], rows))
  words = [worst(levels), HOW, page.figure(plots.png(figure), smooth=True), table]
  return 'Error against the noise level', words


def worst(levels: Sequence[Level]) -> str:
  """Where held-out images differ most from training images, in words."""
  ratio = lambda level: level.errors[1].value / max(level.errors[0].value, 1e-30)
  most = max(levels, key=ratio)
  train, held_out = most.errors
  if held_out.low <= train.high:
    return 'Held-out images are denoised as well as training images, within the intervals.'
  return (
    f'The error on held-out images is up to {ratio(most):.3g} times that on '
    f'training images, at b / a = {most.ratio:.2g}.'
  )


def record(
  levels: Sequence[Level], model: drawing.Model, shared: dict[str, Any]
) -> list[dict[str, Any]]:
  """Records of all levels."""
  return [
    {
      'kind': 'error',
      'sampler': '',  # of the model
      'metric': f'error of the noise at b / a = {level.ratio:.3g}',
      'set': part,
      'ratio': level.ratio,
      **value.record(),
      'n': COUNT,
      'weights': model.hash,
      **shared,
    }
    for level in levels
    for part, value in zip(PARTS, level.errors)
  ]
