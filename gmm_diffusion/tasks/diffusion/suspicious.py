"""Samples that may be made up, beside the training images: for the page of --mode=evaluate."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from gmm_diffusion import specs
from gmm_diffusion.data import base
from gmm_diffusion.engine import drawing, sample_sets
from gmm_diffusion.engine.runs import Run
from gmm_diffusion.metrics.estimates import Estimate, of_share
from gmm_diffusion.reports import images, page
from gmm_diffusion.samplers.watch import WINDOW

COUNT = 256  # samples, and training images that they are compared with
RANGE = 0.95  # of the training images are in their own range
SHOWN = 16
HOW = (
  f'A little noise is added to an image, with b / a from {WINDOW[0]:g} to {WINDOW[1]:g}, and the '
  f'network predicts the clean image. For images like those of the training the prediction hardly '
  f'moves; for one between two of them it does. Of the training images, {100 * (1 - RANGE):.0f} % '
  f'move more than what counts as usual here. The pictures are those that move most.'
)


class Suspects(NamedTuple):
  """Of a sampler or of held-out data: the name, the share of images that move more than is usual,
  of how many, and a PNG of those that move most."""

  name: str
  share: Estimate
  compared: int
  strip: bytes


def possible(spec: specs.Spec, data: base.Data) -> bool:
  """Whether there are samples at hand, and training images to compare them with."""
  own = spec.denoiser.name == 'network' and not spec.autoencoder.name
  return own and spec.evaluate.store and data.is_image and len(data.train) >= COUNT


def find(model: drawing.Model, drawn: Sequence[drawing.Prepared], one: Run) -> list[Suspects]:
  """The suspects of held-out data, and of each sampler; all have drawn spec.evaluate.count."""
  data, count, out = one.data, one.spec.evaluate.count, []
  moves = lambda made, x, labels: model.unsteadiness(made.bind, x, labels)
  labelled = drawing.takes_labels(one.spec, data)

  def spread(x, labels):  # folders are sorted by class
    index = np.unique(np.linspace(0, len(x) - 1, COUNT).astype(int))
    return x[index], labels[index] if labelled else np.zeros(len(index), np.int32)

  def add(name, x, found):
    most = x[np.argsort(-found)[:SHOWN]]
    strip = images.png(images.picture(most, data.train, columns=SHOWN, most=SHOWN))
    out.append(Suspects(name, of_share(found > usual), len(x), strip))

  usual = np.quantile(moves(drawn[0], *spread(data.train, data.train_labels)), RANGE)
  if len(data.test) >= SHOWN:
    held_out, labels = spread(data.test, data.test_labels)
    add('held-out data', held_out, moves(drawn[0], held_out, labels))
  for made in tqdm(drawn, desc='made-up samples', unit='sampler', dynamic_ncols=True):
    x = sample_sets.first(one, model.drawer(made, count), count, COUNT)
    labels = drawing.labels_of(one.spec, data, np.arange(len(x)))
    add(made.sampler.name, x, moves(made, x, labels))
  return out


def section(suspects: Sequence[Suspects]) -> page.Section:
  """The section of the page."""
  shares = page.table(['', 'move more than is usual'], [one[:2] for one in suspects])
  strips = [page.strip(one.name, one.strip) for one in suspects]
  first, rest = (page.Html(''.join(part)) for part in (strips[:3], strips[3:]))
  more = [page.folded(f'{len(strips) - 3} more', rest)] * bool(rest)
  return 'Samples that may be made up', [HOW, shares, first, *more]


def record(
  suspects: Sequence[Suspects], known: Sequence[dict[str, Any]], shared: dict[str, Any]
) -> list[dict[str, Any]]:
  """Records of how much moves more than is usual; `known` are those of metrics."""
  of = {one['sampler']: one for one in known}
  return [
    {
      'kind': 'unsteady',
      'sampler': one.name,
      **one.share.record(),
      'n': one.compared,
      **{key: of[one.name][key] for key in ('seed', 'settings', 'weights', 'set')},
      **shared,
    }
    for one in suspects
    if one.name in of  # held-out data are in the page alone
  ]
