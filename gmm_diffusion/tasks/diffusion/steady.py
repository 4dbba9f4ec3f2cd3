"""--mode=sample with sample.drop: more samples are drawn than are wanted, and those whose
prediction is the least steady (metrics.hallucination) are left out [2406.09358]. Ids stay what they
are."""

import math
import os
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from gmm_diffusion import files, specs
from gmm_diffusion.data import base
from gmm_diffusion.engine import drawing, sample_sets, shards
from gmm_diffusion.engine.runs import Run
from gmm_diffusion.errors import UserError
from gmm_diffusion.reports import images, records

_SHOWN = 100  # images in the .png


class Steady(NamedTuple):
  """path: of the .npz of what is kept. ids: of the samples in it, rising."""

  path: str
  ids: list[int]


def needed(count: int, share: float) -> int:
  """How many samples are drawn so that `count` stay when a share of them is left out."""
  return math.ceil(round(count / (1 - share), 6))  # 10 / (1 - 0.9) is a little above 100


def drawn(spec: specs.Spec, data: base.Data) -> int:
  """How many samples --mode=sample draws.

  Raises:
    UserError: the measure does not know these samples.
  """
  own = spec.sample
  if not own.drop:
    return own.count
  unknown = {
    'latents': spec.autoencoder.name,
    'images restored from measurements': spec.inverse.operator,
    'vectors': not data.is_image,
    'a sample.gif, which may show what is left out': own.gif,
  }
  for what, there in unknown.items():
    if there:
      raise UserError(f'sample.drop does not work with {what}; set it to 0')
  return needed(own.count, own.drop)


def keep(
  run: Run,
  model: drawing.Model,
  made: drawing.Prepared,
  source: drawing.Drawer,
  stored: sample_sets.Stored,
  count: int,
) -> Steady:
  """Of `count` samples the run.spec.sample.count that are steadiest, in files beside theirs: .npz
  with their ids as the last array, .png, and .json with what was left out. What is there is not
  measured again."""
  most = run.spec.sample.count
  path = f'{stored.path.removesuffix(".npz")}-steady{most}'
  with files.locked(path):
    record = sample_sets.finished(path, source.mark, most)
    if record is None:
      record = _measure(run, model, made, source, stored, count, path)
      files.write_json(path + '.json', record)
      records.add(run.workdir, [record])
  files.remove_lock(path)
  return Steady(path + '.npz', sorted(set(range(count)) - set(record['left_out'])))


def _measure(run, model, made, source, stored, count, path) -> dict[str, Any]:
  """Writes the .npz and the .png; the record, which marks them as finished."""
  spec, data, most = run.spec, run.data, run.spec.sample.count
  parts, moves = shards.ranges(count, spec.sample.shard), []
  for ids in tqdm(parts, desc='how steady', unit='part', dynamic_ncols=True):
    labels = drawing.labels_of(spec, data, np.asarray(ids))
    moves.append(model.unsteadiness(made.bind, stored.part(ids)['x'], labels, ids.start))
  found = np.concatenate(moves)
  order = np.argsort(found, kind='stable')
  kept, shown = np.sort(order[:most]), []

  def blocks():
    for ids in parts:
      own = kept[(kept >= ids.start) & (kept < ids.stop)]
      x = stored.part(ids)['x'][own - ids.start]
      shown.extend(x[: _SHOWN - len(shown)])
      yield x

  arrays: dict[str, Any] = {'arr_0': ((most, *data.shape), np.uint8, blocks())}
  classes = [drawing.labels_of(spec, data, kept)] * drawing.takes_labels(spec, data)
  for number, array in enumerate([*classes, kept], 1):
    arrays[f'arr_{number}'] = (array.shape, array.dtype, [array])
  files.write_npz(path + '.npz', arrays)
  images.save(path + '.png', images.picture(np.stack(shown), data.train))
  return {
    'kind': 'steady',
    'sampler': made.sampler.name,
    'set': os.path.basename(path),
    'n': most,
    'drawn': count,
    'left_out': order[most:][::-1].tolist(),  # the least steady first
    'limit': float(found[order[most - 1]]),
    'median': float(np.median(found)),
    'fingerprint': source.mark,
    'weights': model.hash,
    **records.common(spec, run.command),
  }
