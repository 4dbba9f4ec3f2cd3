"""Sets of samples in files, named by what they are: nothing that took work is replaced.

A set's name is its sampler, its steps, what differs from the sampler's defaults, and a hash of all
that the samples depend on, such as unipc-10-order3-3f9a1c2b. In samples/ of a workdir there are

  NAME/                parts by range of ids (engine/shards.py), which any count of samples shares;
                       may be deleted when all is done
  NAME-n100.npz        100 samples: arr_0, and arr_1 with their classes where the model takes any
  NAME-n100.png        the first of them
  NAME-n100.json       what they are
  NAME-n100-images/    one PNG file for each, if asked for
  NAME-n100.gif        x_0 on the way, if asked for
  NAME-n100-steady90.* 90 of them, where sample.drop leaves out the least steady ones
  NAME-n100-restored.png  true, measured and restored images, where inverse.operator is set
"""

import os
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import numpy as np

from gmm_diffusion import files
from gmm_diffusion.engine import drawing, shards
from gmm_diffusion.engine.runs import Run
from gmm_diffusion.errors import UserError
from gmm_diffusion.reports import images, records

_GIF = 16  # samples in a .gif


class Stored(NamedTuple):
  """Samples in files.

  Attributes:
    path: of the .npz.
    part: ids of a file -> what Drawer.draw gives for them.
    nfe, seconds: as in drawing.Samples; seconds are those of all processes together.
  """

  path: str
  part: Callable[[range], shards.Arrays]
  nfe: int
  seconds: float


def first(run: Run, source: drawing.Drawer, count: int, most: int) -> np.ndarray:
  """The first `most` of what `write` has, as in drawing.Samples."""
  stored = write(run, source, count)
  parts = [ids for ids in shards.ranges(count, run.spec.sample.shard) if ids.start < most]
  return np.concatenate([stored.part(ids)['x'] for ids in parts])[:most]


def write(run: Run, source: drawing.Drawer, count: int) -> Stored:
  """Samples with ids 0..count-1 to files, with a record.

  What is there is not drawn again; any number of processes may do this at the same time.
  """
  folder = os.path.join(run.workdir, 'samples', source.name)
  path = f'{folder}-n{count}'
  record = finished(path, source.mark, count)
  if record is None:
    title = f'sampling {source.sampler}'
    shards.fill(folder, source.mark, count, run.spec.sample.shard, source.draw, title)
    with files.locked(folder):
      record = finished(path, source.mark, count)
      if record is None:
        record = _gather(run, source, folder, count)
        records.add(run.workdir, [record])

  def part(ids):  # drawn again where it was deleted
    return shards.load(folder, source.mark, ids) or source.draw(ids, lambda n: None)

  return Stored(path + '.npz', part, record['nfe'], record['seconds'])


def finished(path: str, mark: str, count: int) -> dict[str, Any] | None:
  """The record of samples that are complete and whole."""
  record = files.read_json(path + '.json', {})
  found = record.get('fingerprint'), record.get('n')
  return record if found == (mark, count) and files.is_whole(path + '.npz') else None


def _gather(run, source, folder, count):
  """Makes the .npz and the .png of the parts; returns the record, which marks them as finished."""
  data, path = run.data, f'{folder}-n{count}'
  first, seconds = None, 0.0

  def blocks():
    nonlocal first, seconds
    for part in shards.read(folder, source.mark, count, run.spec.sample.shard):
      first = part if first is None else first
      seconds += float(part['seconds'])
      yield part['x']

  dtype = np.uint8 if data.is_image else np.float32
  arrays = {'arr_0': ((count, *data.shape), dtype, blocks())}
  if source.labels:
    labels = source.labels(np.arange(count))
    arrays['arr_1'] = (labels.shape, labels.dtype, [labels])
  files.write_npz(path + '.npz', arrays)
  images.save(path + '.png', images.picture(first['x'], data.train))
  record = {
    'kind': 'samples',
    'sampler': source.sampler,
    'set': os.path.basename(path),
    'n': count,
    'seed': source.seed,
    'nfe': int(first['nfe']),
    'settings': source.settings,
    'fingerprint': source.mark,
    'weights': source.weights,
    'seconds': seconds,
    'report': source.report,
    **records.common(run.spec, run.command),
  }
  files.write_json(path + '.json', record)
  return record


def check_pictures(run: Run) -> None:
  """Raises UserError where sample.png or sample.gif is asked for and samples are no images."""
  for key in ('png', 'gif'):
    if getattr(run.spec.sample, key) and not run.data.is_image:
      raise UserError(
        f'sample.{key} needs images, but data {run.spec.data.name!r} are vectors; set it to False'
      )


def write_images(
  run: Run, stored: Stored, count: int, ids: Collection[int] = (), path: str = ''
) -> str:
  """One PNG file for each of `count` samples, or of some `ids` among them: 00000000.png and so on;
  those that are there stay. Returns the folder, which is named after the .npz at `path`, or else
  after that of all samples."""
  folder = (path or stored.path).removesuffix('.npz') + '-images'
  wanted = set(ids or range(count))
  for part in shards.ranges(count, run.spec.sample.shard):
    missing = [i for i in part if i in wanted and not os.path.exists(_image(folder, i))]
    x = stored.part(part)['x'] if missing else ()
    for i in missing:
      images.save(_image(folder, i), images.single(x[i - part.start]))
  return folder


def _image(folder, i):
  return os.path.join(folder, f'{i:08d}.png')


def write_gif(model: drawing.Model, made: drawing.Prepared, stored: Stored, count: int) -> str:
  """An animation: x_0 of the first ids as predicted in each step. Returns its path."""
  path = stored.path.removesuffix('.npz') + '.gif'
  with files.locked(path):
    if not os.path.exists(path):
      found = model.predictions(made, min(_GIF, count))
      images.save_gif(path, [images.grid(x, 4, 64) for x in found])
  return path


# of the moment report
_COLUMNS = (
  *('step', 't', 'largest scale', 'scale used', '', 'tau', 'b_s'),
  *('mean resid.', 'cov. resid.', 'added var.'),
)
_WIDTHS = (4, 9, 14, 11, 8, 10, 10, 12, 12, 11)


def format_report(report: list[dict[str, Any]]) -> str:
  """The moment report as a text table; a Gaussian kernel has none."""
  if not report:
    return ''
  line = lambda cells: ' '.join(f'{cell:>{width}s}' for width, cell in zip(_WIDTHS, cells))
  lines = [line(_COLUMNS)]
  for row in report:
    largest = 'any' if row['largest_scale'] is None else f'{row["largest_scale"]:.4g}'
    values = [f'{row[name]:.4g}' for name in ('scale', 'tau', 'b_s')]
    last = ('mean_residual', 'covariance_residual', 'added_variance')
    residuals = [f'{row[name]:.3g}' for name in last]
    cells = str(row['step']), f'{row["t"]:.4g}', largest, values[0], row['infeasible'], *values[1:]
    lines.append(line([*cells, *residuals]))
  words = [row['infeasible'] for row in report if row['infeasible']]
  if words:
    word = words[0]
    lines.append(
      f'{len(words)} of {len(report)} steps are {word}: '
      + (
        'their second moment does not match; the kernel adds a kick of about `scale`.'
        if word == 'clipped'
        else 'their scale was reduced to the largest feasible one.'
      )
    )
  return '\n'.join(lines)
