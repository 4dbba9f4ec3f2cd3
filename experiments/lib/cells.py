"""Cells: the metrics of one sampler with one seed on one model, each in a file of its own, computed
once.

A cell is keyed by everything it depends on, so that sweeps of one workdir share cells, a changed
setting computes its own, and a run that was killed goes on where it was. One host; all its devices
are used.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

from tqdm import tqdm

from experiments.lib import common
from gmm_diffusion import files, metrics, specs
from gmm_diffusion.engine import drawing
from gmm_diffusion.metrics.estimates import Estimate

FOLDER = 'cells'
CHOOSE, REPORT = (
  1,
  0,
)  # seeds: best scales are chosen on one and reported on another, so that choosing is no gain


class Cells:
  """The cells of a subject in workdir/cells with `count` samples each, with all metrics or the
  Frechet distance alone."""

  def __init__(self, subject: common.Subject, workdir: str, count: int, everything: bool = False):
    self.subject, self.count, self.everything = subject, count, everything
    self._folder = os.path.join(workdir, FOLDER)
    os.makedirs(self._folder, exist_ok=True)

  def key(self, sampler: specs.Sampler, seed: int) -> dict[str, Any]:
    return {
      'sampler': drawing.settings(sampler),
      'seed': seed,
      'n': self.count,
      'everything': self.everything,
      **self.subject.facts,
    }

  def _place(self, sampler, seed):
    key = self.key(sampler, seed)
    return key, place(self._folder, key)

  def has(self, sampler: specs.Sampler, seed: int) -> bool:
    key, path = self._place(sampler, seed)
    return files.load(path, key) is not None

  def get(self, sampler: specs.Sampler, seed: int) -> dict[str, Any]:
    """The cell {'nfe', 'seconds', 'metrics': {name: [value, low, high]}, ...}, computed where it is
    not there yet."""
    key, path = self._place(sampler, seed)

    def make():
      drawn = common.draw(self.subject, sampler, self.count, seed)
      values = common.measure(self.subject, drawn.features, self.everything)
      return common.with_facts(
        {
          'nfe': drawn.nfe,
          'seconds': round(drawn.seconds, 2),
          'metrics': {name: tuple(value) for name, value in values.items()},
        }
      )

    return files.kept(path, key, make)

  def estimate(self, sampler: specs.Sampler, seed: int, metric: str = 'frechet') -> Estimate:
    return Estimate(*self.get(sampler, seed)['metrics'][metric])

  def value(self, sampler: specs.Sampler, seed: int, metric: str = 'frechet') -> float:
    return self.estimate(sampler, seed, metric).value

  def best(
    self, options: Sequence[specs.Sampler], metric: str, seed: int = CHOOSE
  ) -> specs.Sampler:
    """The sampler with the best metric on the choosing seed; a single one needs no sampling."""
    if len(options) == 1:
      return options[0]
    sign = 1 if metrics.LOWER_IS_BETTER[metric] else -1
    return min(options, key=lambda sampler: sign * self.value(sampler, seed, metric))

  def fill(self, todo: Iterable[tuple[specs.Sampler, int]], title: str = 'cells') -> None:
    """Computes the cells (sampler, seed) that are not there, with a progress bar weighted by their
    evaluations."""
    todo = list({place('', self.key(*cell)): cell for cell in todo}.values())
    total = sum(sampler.steps * self.count for sampler, _ in todo)
    ready = [cell for cell in todo if self.has(*cell)]
    with tqdm(
      total=total,
      initial=sum(sampler.steps * self.count for sampler, _ in ready),
      desc=f'{title} {len(ready)}/{len(todo)}',
      unit='eval',
      unit_scale=True,
      dynamic_ncols=True,
    ) as bar:
      done = len(ready)
      for cell in todo:
        if not self.has(*cell):
          self.get(*cell)
          done += 1
          bar.set_description(f'{title} {done}/{len(todo)}')
          bar.update(cell[0].steps * self.count)


def place(folder: str, key: dict[str, Any]) -> str:
  """The file of a cell."""
  mark = hashlib.sha256(json.dumps(key, sort_keys=True, default=list).encode()).hexdigest()[:16]
  return os.path.join(folder, f'{key["sampler"]["name"]}-{key["sampler"]["steps"]}-{mark}.json')


def with_scales(sampler: specs.Sampler, scales: Sequence[float]) -> list[specs.Sampler]:
  """The sampler with each scale; alone where it has none."""
  if 'scale' not in drawing.settings(sampler):
    return [sampler]
  return [dataclasses.replace(sampler, scale=scale) for scale in scales]
