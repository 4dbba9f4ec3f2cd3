"""The result page of masked diffusion: bits, samples against the number of calls, and what was
filled in."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from gmm_diffusion import metrics, specs
from gmm_diffusion.data import base
from gmm_diffusion.discrete import pixels
from gmm_diffusion.engine import measuring
from gmm_diffusion.engine.runs import Run
from gmm_diffusion.metrics.estimates import Estimate
from gmm_diffusion.reports import images, page, plots

_SHOWN = 12  # images in a strip
HOW = (
  'What a call reveals at once does not know of itself: with one call for each pixel nothing is '
  'lost, and all that fewer calls cost is this. "First hitting" reveals as many pixels in each '
  'call, "ancestral" each pixel at a time of its own. "Best counts" are those that lose least, '
  'found from what the predictor says of training images. Lost: the divergence from samples of one '
  'pixel a call, in nats an image, as far as the predictor can tell.'
)


def hide(spec: specs.Spec, data: base.Data, x: np.ndarray) -> np.ndarray:
  """Tokens of images [N, L], with masks where inverse.hidden says."""
  seen = np.broadcast_to(measuring.known(spec.inverse.hidden, data.shape), data.shape)
  return np.where(seen.reshape(1, -1), pixels.tokens(x, spec.masked.levels), spec.masked.levels)


def write(
  path: str,
  this: Run,
  bits: dict[str, Estimate],
  rows: Sequence[Any],
  filled: tuple[np.ndarray, np.ndarray, np.ndarray],
  facts: dict[str, Any],
) -> None:
  """Writes the page.

  Args:
    path: of the file.
    this: the run.
    bits: of a token, by what knows more and more.
    rows: evaluate.Row of all orders and calls.
    filled: true images, tokens of what is seen of them, restored images.
    facts: how it was made.
  """
  spec, data = this.spec, this.data
  true, given, made = filled
  strip = lambda name, x: page.strip(
    name, images.png(images.grid(x[:_SHOWN], columns=_SHOWN, least=64))
  )
  of_first = [row for row in rows if row.scheme == 'first hitting']
  calls = lambda n: f'{n} call' + 's' * (n > 1)
  samples = [
    strip('data', np.asarray(data.train[:_SHOWN])),
    *[strip(calls(row.calls), row.images) for row in of_first],
  ]
  names = list(rows[0].values)
  lost = lambda row: '' if row.lost is None else f'{abs(round(row.lost, 1)):g}'
  cells = [[f'{row.scheme}, {calls(row.calls)}', lost(row), *row.values.values()] for row in rows]
  sections: list[page.Section] = [
    ('Samples, first hitting', samples),
    ('Quality against the number of calls', [page.figure(_curve(rows), smooth=True), HOW]),
    ('Table', [page.table(['', 'lost', *names], cells)]),
    ('Bits of a token', [page.table(['what knows', 'bits'], [[k, v] for k, v in bits.items()])]),
    (
      f'What is hidden, {spec.inverse.hidden}',
      [
        strip('true', true),
        strip('seen', pixels.pictures(given, spec.masked.levels, data.shape)),
        strip('filled in', made),
      ],
    ),
  ]
  title = f'Masked diffusion of {spec.data.title}'
  page.document(
    path, title, lead(bits, rows), sections, this.command, facts, dataclasses.asdict(spec)
  )


def lead(bits: dict[str, Estimate], rows: Sequence[Any]) -> list[str]:
  """The result in words."""
  *less, last = bits.items()
  best = min(less, key=lambda one: one[1].value)
  out = [
    f'{last[0].capitalize()}: {last[1]} bits for each token of held-out images; with less '
    f'knowledge, {best[0]}: {best[1]}.'
  ]
  name = next(iter(rows[0].values))
  of_first = [row for row in rows if row.scheme == 'first hitting']
  most, least = max(of_first, key=lambda row: row.calls), min(of_first, key=lambda row: row.calls)
  shown = f'{name} of samples: {most.values[name]} in {most.calls} calls'
  return [*out, f'{shown}, {least.values[name]} in {least.calls}.']


def _curve(rows):
  name = next(iter(rows[0].values))
  figure, axes = plots.new(size=(6, 3.6))
  for scheme in dict.fromkeys(row.scheme for row in rows):
    mine = [row for row in rows if row.scheme == scheme]
    values = [row.values[name] for row in mine]
    axes[0, 0].errorbar(
      [row.calls for row in mine], [v.value for v in values], [v.half for v in values],
      label=scheme, marker='o', markersize=3, capsize=2,
    )  # fmt: skip
  better = 'lower' if metrics.LOWER_IS_BETTER[name] else 'higher'
  axes[0, 0].set(ylabel=f'{name} ({better} is better)')
  axes[0, 0].legend()
  plots.over_calls(axes[0, 0], [row.calls for row in rows])
  return plots.png(figure)
