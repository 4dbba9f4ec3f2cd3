"""The simulated annotator clicks on every object: arms and baselines on the same objects."""

import dataclasses
import hashlib
import os
import time
import zipfile
from typing import Any

import numpy as np
from tqdm import tqdm

from gmm_diffusion import files, parallel, specs
from gmm_diffusion.tasks.segmentation import annotator, metrics, session
from gmm_diffusion.tasks.segmentation import scenes as data
from gmm_diffusion.tasks.segmentation.model import Clicks, Segmenter


class Objects:
  """What is evaluated, images of one working shape in a group: one object of each image, then
  another of each, until there are enough."""

  def __init__(self, spec: specs.Spec):
    scenes = getattr(data.load(spec.data), spec.data.split)
    random = np.random.RandomState(spec.seed)
    order = (
      random.permutation(len(scenes))[: spec.segmentation.objects]
      if len(scenes) > spec.segmentation.objects
      else np.arange(len(scenes))
    )
    left, chosen = {i: list(range(len(scenes[i].objects))) for i in order}, []
    while any(left.values()) and len(chosen) < spec.segmentation.objects:
      more = [i for i in order if left[i]][: spec.segmentation.objects - len(chosen)]
      chosen += [(i, left[i].pop(random.randint(len(left[i])))) for i in more]
    self.images = np.array([i for i, _ in chosen])
    self.scenes = [scenes[i] for i in self.images]
    self.masks = [scenes[i].mask(number) for i, number in chosen]
    self.size, self.slots = spec.segmentation.size, spec.segmentation.slots
    self.inputs = [session.to_network(scene.image, self.size) for scene in self.scenes]
    self.groups = {}
    for i, image in enumerate(self.inputs):
      self.groups.setdefault(image.shape, []).append(i)


def click_through(
  objects: Objects, predict, count: int, most: int, title: str
) -> tuple[np.ndarray, list, list]:
  """Clicks on every object until there are `most`: IoU curves [count, N, most], masks and clicks at
  the end, [count, N].

  predict(clicks [count, N], advance): bool masks [count, N]; advance(n) counts. `count` runs go
  side by side (arms).
  """
  N = len(objects.scenes)
  curves = np.zeros((count, N, most))
  masks = [[np.zeros(mask.shape, bool) for mask in objects.masks] for _ in range(count)]
  clicks = [[[] for _ in range(N)] for _ in range(count)]
  with tqdm(total=most * count * N, desc=title, unit='click', dynamic_ncols=True) as bar:
    for k in range(most):
      for a in range(count):
        for i in range(N):
          new = annotator.next_click(objects.masks[i], masks[a][i], clicks[a][i])
          clicks[a][i] += [new] if new else []
      masks = predict(clicks, bar.update)
      curves[:, :, k] = [
        [metrics.iou(mask, true) for mask, true in zip(row, objects.masks)] for row in masks
      ]
  return curves, masks, clicks


def predictor(
  objects: Objects, module: Segmenter, params: Any, arms: list[tuple[bool, bool]], batch: int
):
  """predict of `click_through` by a network, over all devices with one trace for each shape of
  image."""
  slots, params = objects.slots, parallel.replicate(params, local=True)
  update = parallel.map_batches(
    lambda p, b: module.apply(p, b[0], Clicks(*b[1]), b[2], method='update'), batch
  )
  whole = parallel.map_batches(lambda p, b: module.apply(p, b[0], Clicks(*b[1]), b[2]), batch)
  cached = {}
  if module.clicks == 'tokens':  # the image is encoded once
    encode = parallel.map_batches(lambda p, image: module.apply(p, image, method='encode'), batch)
    for shape, members in objects.groups.items():
      cached[shape] = encode(params, np.stack([objects.inputs[i] for i in members]))

  def predict(clicks, advance):
    out = [[None] * len(objects.scenes) for _ in arms]
    for shape, members in objects.groups.items():
      first = cached[shape] if cached else np.stack([objects.inputs[i] for i in members])
      for a, arm in enumerate(arms):
        packed = [
          session.pack(clicks[a][i], objects.masks[i].shape, objects.size, slots) for i in members
        ]
        on = tuple(np.full(len(members), flag) for flag in arm)
        logits = (update if cached else whole)(
          params, (first, tuple(map(np.stack, zip(*packed))), on)
        )
        for i, values in zip(members, logits):
          out[a][i] = session.from_network(
            values, objects.masks[i].shape, objects.size, clicks[a][i]
          )
        advance(len(members))
    return out

  return predict


def milliseconds(objects: Objects, module: Segmenter, params: Any, clicks: list) -> float | None:
  """Median time of a click in a session, after the first (which compiles), over three images; None
  where there is only one."""
  seconds = []
  for i in range(min(3, len(objects.scenes))):
    one = session.Session(module, params, objects.scenes[i].image, objects.size, objects.slots)
    for n, click in enumerate(clicks[i][:8]):
      start = time.perf_counter()
      one.click(*click)
      seconds += [time.perf_counter() - start] if n else []
  return 1000 * float(np.median(seconds)) if seconds else None


def _run(
  spec: specs.Spec, workdir: str, objects: Objects, names: list[str], weights: str, make, title: str
) -> tuple[dict, dict]:
  """`click_through` for runs side by side, ({name: curves}, {name: (masks, clicks)}); what an
  earlier evaluation found is read back."""
  section = dataclasses.replace(
    spec.segmentation, baseline=False, batch=1
  )  # these change no result
  mark = hashlib.sha256(repr((spec.seed, spec.data, section, weights)).encode())
  for scene, mask in zip(objects.scenes, objects.masks):  # files may change under their names
    mark.update(scene.image.tobytes() + mask.tobytes())
  mark = mark.hexdigest()[:12]
  paths = {
    name: os.path.join(workdir, 'curves', f'{name.split(",")[0].replace(" ", "_")}.npz')
    for name in names
  }
  found = {name: _read(path, mark, len(objects.scenes)) for name, path in paths.items()}
  if not all(found.values()):
    curves, masks, clicks = click_through(objects, make(), len(names), section.clicks, title)
    found = dict(zip(names, zip(curves, masks, clicks)))
    if parallel.is_main():
      os.makedirs(os.path.join(workdir, 'curves'), exist_ok=True)
      for name, (row, masks, clicks) in found.items():
        arrays = {f'mask{i}': mask for i, mask in enumerate(masks)}
        arrays.update(
          {f'clicks{i}': np.array(own, np.int64).reshape(-1, 3) for i, own in enumerate(clicks)}
        )
        files.write(
          paths[name], lambda path: np.savez_compressed(path, mark=mark, curves=row, **arrays)
        )
  return {name: one[0] for name, one in found.items()}, {
    name: one[1:] for name, one in found.items()
  }


def _read(path, mark, count):
  """(curves, masks, clicks) of a file with this mark, or None."""
  try:
    with np.load(path) as stored:
      if str(stored['mark']) != mark:
        return None
      clicks = [
        [
          annotator.Click(int(row), int(column), bool(positive))
          for row, column, positive in stored[f'clicks{i}']
        ]
        for i in range(count)
      ]
      return stored['curves'], [stored[f'mask{i}'] for i in range(count)], clicks
  except (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    zipfile.BadZipFile,
  ):  # absent or damaged: found again
    return None
