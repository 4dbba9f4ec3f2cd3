"""--mode=posterior: what a denoiser leaves of the data, for the samplers posterior_*.

Writes residuals.npz and, for images, a picture of the directions.
"""

import os
from typing import Any

import numpy as np

from gmm_diffusion import files, parallel, specs
from gmm_diffusion.data import base
from gmm_diffusion.engine import build, drawing, released
from gmm_diffusion.engine.runs import Run
from gmm_diffusion.errors import UserError
from gmm_diffusion.reports import plots
from gmm_diffusion.tasks.diffusion import tune
from gmm_diffusion.tune import posterior, tiers

FILE, PICTURE = 'residuals.npz', 'residuals.png'
_SHOWN = 8  # directions and levels in the picture


def path_of(workdir: str) -> str:
  """Where the residuals of a workdir are."""
  return os.path.join(workdir, FILE)


def measure(one: Run) -> None:
  """Measures the residuals of the denoiser of the config; raises UserError on a bad setting."""
  spec, data, own = one.spec, one.data, one.spec.posterior
  if own.reference == 'data' and spec.autoencoder.name:
    raise UserError(
      "posterior.reference 'data' needs a model of images, and this one makes latents; use 'model'"
    )
  dim = int(np.prod(build.sample_shape(spec, data)))
  if own.directions > min(dim, own.count):
    raise UserError(
      f'posterior.directions must be at most {min(dim, own.count)}, the smaller of the size of a '
      f'sample ({dim}) and posterior.count ({own.count}), got {own.directions}'
    )
  if own.reference == 'data' and len(data.train) < own.directions:
    raise UserError(
      f'posterior.directions {own.directions} need as many training items, data '
      f"{spec.data.name!r} has {len(data.train)}; use posterior.reference 'model'"
    )
  bind = build.denoiser(spec, data)
  released.ensure(spec, data, one.workdir)
  model = drawing.Model(spec, data, build.weights(spec, data, one.workdir))
  items, labels = _items(spec, data)
  subject = tune.subject_of(model, bind, labels)
  if items is None:
    items = tune.own(subject, own.count, spec, one.workdir, model.hash)
  depends = files.fingerprint(drawing.denoiser_mark(spec, model.hash), repr(own), spec.seed, items)

  def make():
    print(f'residuals of {len(items)} items at {own.levels} noise levels', flush=True)
    seed = tiers.stream(spec.seed, tiers.OWN)
    found = posterior.measure(subject, items, own.levels, own.directions, seed)
    return {**found, 'denoiser': np.array(drawing.denoiser_mark(spec, model.hash))}

  found = files.kept(path_of(one.workdir), depends, make)
  if parallel.is_main():
    print(_words(found), f'{path_of(one.workdir)}', sep='\n')
    if data.is_image and not spec.autoencoder.name:
      path = os.path.join(one.workdir, PICTURE)
      draw(path, found)
      print(path)


def _items(spec: specs.Spec, data: base.Data) -> tuple[Any, Any]:
  """(items, evenly over the training data; their labels by number), or (None, those of samples)."""
  own = spec.posterior
  if own.reference == 'model':
    return None, lambda ids: drawing.labels_of(spec, data, ids)
  index = np.unique(np.linspace(0, len(data.train) - 1, own.count).round().astype(int))
  known = drawing.takes_labels(spec, data)
  labels = data.train_labels[index] if known else np.zeros(len(index), np.int32)
  return base.to_model(data.train[index]), lambda ids: labels[np.asarray(ids)]


def _words(found: dict[str, Any]) -> str:
  """What the directions explain, for people."""
  share = found['variances'].sum(1) / np.maximum(found['total'], 1e-30)
  dim = found['vectors'].shape[2]
  lines = [
    f'log(a^2/b^2)  deviation of a residual  share of {found["variances"].shape[1]} directions'
  ]
  for n in np.unique(np.linspace(0, len(share) - 1, _SHOWN).round().astype(int)):
    deviation = np.sqrt(found['total'][n] / dim)
    lines.append(f'{found["level"][n]:12.2f}  {deviation:23.3f}  {share[n]:.2f}')
  return '\n'.join(lines)


def draw(path: str, found: dict[str, Any]) -> None:
  """The picture: at some levels, the shares of the directions, and the first of them as images."""
  rows = np.unique(np.linspace(0, len(found['level']) - 1, _SHOWN).round().astype(int))
  shown = min(_SHOWN, found['vectors'].shape[1])
  figure, axes = plots.new(len(rows), 1 + shown, (1.1 * (1 + shown), 1.1 * len(rows)))
  for line, n in zip(np.reshape(axes, (len(rows), -1)), rows, strict=True):
    line[0].plot(
      1 + np.arange(len(found['variances'][n])), found['variances'][n] / found['total'][n]
    )
    line[0].set_ylim(0, None)
    line[0].tick_params(labelsize=6)
    line[0].set_ylabel(f'{found["level"][n]:.1f}', fontsize=7)
    for k, axis in enumerate(line[1:]):
      image = found['vectors'][n, k].reshape(found['shape'])
      axis.imshow(np.squeeze(0.5 + 0.5 * image / np.abs(image).max()), cmap='gray', vmin=0, vmax=1)
      axis.set_axis_off()
      if line is axes[0]:
        axis.set_title(f'{k + 1}', fontsize=7)
  axes[0][0].set_title('share', fontsize=7)
  figure.supylabel('log(a^2 / b^2), noisy above', fontsize=8)
  plots.png(figure, path)
