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
  ids: np.ndarray


def drawn(spec: specs.Spec, data: base.Data) -> int:
  """How many samples are drawn so that sample.count of them stay.

  Raises:
    UserError: the measure does not know these samples.
  """
  own = spec.sample
  if not own.drop:
    return own.count
  if spec.autoencoder.name or spec.inverse.operator or own.gif or not data.is_image:
    what = (
      ('latents', spec.autoencoder.name),
      ('images restored from measurements', spec.inverse.operator),
      ('vectors', not data.is_image),
      ('a sample.gif of what is then left out', True),
    )
    name = next(name for name, there in what if there)
    raise UserError(f'sample.drop does not work with {name}; set it to 0')
  return math.ceil(own.count / (1 - own.drop))


def keep(
  run: Run, model: drawing.Model, made: drawing.Prepared, stored: sample_sets.Stored, count: int
) -> Steady:
  """Of `count` samples the run.spec.sample.count that are steadiest, in files beside theirs: .npz
  with their ids as the last array, .png, and .json with what was left out."""
  spec, data, most = run.spec, run.data, run.spec.sample.count
  whole = stored.path.removesuffix('.npz')
  path = f'{whole}-steady{most}'
  parts, moves = shards.ranges(count, spec.sample.shard), []
  for ids in tqdm(parts, desc='how steady', unit='part', dynamic_ncols=True):
    labels = drawing.labels_of(spec, data, np.asarray(ids))
    x = stored.part(ids)['x']
    moves.append(model.unsteadiness(made.bind, x, labels, ids.start))
  found = np.concatenate(moves)
  order = np.argsort(found, kind='stable')
  kept, left = np.sort(order[:most]), order[most:][::-1]

  shown: list[np.ndarray] = []

  def blocks():
    for ids in parts:
      own = kept[(kept >= ids.start) & (kept < ids.stop)]
      x = stored.part(ids)['x'][own - ids.start]
      shown.extend(x[: _SHOWN - len(shown)])
      yield x

  arrays: dict[str, Any] = {'arr_0': ((most, *data.shape), np.uint8, blocks())}
  extra = [kept]
  if drawing.takes_labels(spec, data):
    extra.insert(0, drawing.labels_of(spec, data, kept))
  for number, array in enumerate(extra, 1):
    arrays[f'arr_{number}'] = (array.shape, array.dtype, [array])
  files.write_npz(path + '.npz', arrays)
  images.save(path + '.png', images.picture(np.stack(shown), data.train))
  record = {
    'kind': 'steady',
    'sampler': made.sampler.name,
    'set': os.path.basename(path),
    'n': most,
    'drawn': count,
    'left_out': left.tolist(),  # the least steady first
    'unsteadiness': {'limit': float(found[order[most - 1]]), 'median': float(np.median(found))},
    'weights': model.hash,
    **records.common(spec, run.command),
  }
  files.write_json(path + '.json', record)
  records.add(run.workdir, [record])
  return Steady(path + '.npz', kept)
