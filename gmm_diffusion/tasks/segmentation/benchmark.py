"""The simulated annotator clicks on every object, with each method: arms, baseline, GrabCut."""

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from gmm_diffusion import files, parallel, specs
from gmm_diffusion.engine import build
from gmm_diffusion.tasks.segmentation import annotator, grabcut, metrics, scenes, session, training
from gmm_diffusion.tasks.segmentation.annotator import Click
from gmm_diffusion.tasks.segmentation.model import ARMS, Clicks, Segmenter

BASELINE = 'clicks as channels, dot-product attention'

# (clicks [rows, N], advance) -> bool masks [rows, N]; advance(n) counts masks
Predict = Callable[[list[list[list[Click]]], Callable[[int], Any]], list[list[np.ndarray]]]


class Course(NamedTuple):
  """What came of clicking on all N objects: IoU [N, K] after each of K clicks; at the end the bool
  masks [N] and the clicks [N]."""

  curves: np.ndarray
  masks: list[np.ndarray]
  clicks: list[list[Click]]


class Method(NamedTuple):
  """What predicts masks.

  Attributes:
    title: of the progress bar, and of the file that keeps what was found.
    rows: names of what is predicted side by side.
    weights: hash of its network's, None where there is none.
    prepare: () -> Predict, made only where something is left to predict.
  """

  title: str
  rows: tuple[str, ...]
  weights: str | None
  prepare: Callable[[], Predict]


class Objects:
  """What is evaluated, images of one working shape in a group: one object of each image, then
  another of each, until there are enough."""

  def __init__(self, spec: specs.Spec, examples: Sequence[scenes.Scene]):
    random, wanted = np.random.RandomState(spec.seed), spec.segmentation.objects
    order = (
      random.permutation(len(examples))[:wanted]
      if len(examples) > wanted
      else np.arange(len(examples))
    )
    left, chosen = {i: list(range(len(examples[i].objects))) for i in order}, []
    while any(left.values()) and len(chosen) < wanted:
      more = [i for i in order if left[i]][: wanted - len(chosen)]
      chosen += [(i, left[i].pop(random.randint(len(left[i])))) for i in more]
    self.images = np.array([i for i, _ in chosen])
    self.scenes = [examples[i] for i in self.images]
    self.masks = [examples[i].mask(number) for i, number in chosen]
    self.size, self.slots = spec.segmentation.size, spec.segmentation.slots
    self.inputs = [session.to_network(scene.image, self.size) for scene in self.scenes]
    self.groups = {}
    for i, image in enumerate(self.inputs):
      self.groups.setdefault(image.shape, []).append(i)

  def __len__(self):
    return len(self.scenes)


def methods(spec: specs.Spec, workdir: str, objects: Objects) -> list[Method]:
  """All that can be compared: the arms, the baseline where it is wanted, GrabCut where OpenCV is.

  Raises:
    UserError: if a network is not there, or another than the spec says.
  """
  batch, out = spec.segmentation.batch, []
  networks = [('tokens', 'arms', ARMS)]
  if spec.segmentation.baseline:
    networks.append(('channels', 'baseline', {BASELINE: (False, False)}))
  for clicks, title, arms in networks:
    module, params = training.load(spec, workdir, clicks)
    prepare = lambda module=module, params=params, arms=arms: predictor(
      objects, module, params, list(arms.values()), batch
    )
    out.append(Method(title, tuple(arms), build.tree_hash(params), prepare))
  if grabcut.available():
    out.append(Method('GrabCut', ('GrabCut',), None, lambda: grabcut.predictor(objects)))
  return out


def click_through(
  objects: Objects, predict: Predict, rows: int, most: int, title: str
) -> list[Course]:
  """Clicks on every object until there are `most`, for `rows` courses side by side."""
  N = len(objects)
  curves = np.zeros((rows, N, most))
  masks = [[np.zeros(mask.shape, bool) for mask in objects.masks] for _ in range(rows)]
  clicks = [[[] for _ in range(N)] for _ in range(rows)]
  with tqdm(total=most * rows * N, desc=title, unit='click', dynamic_ncols=True) as bar:
    for k in range(most):
      for row in range(rows):
        for i in range(N):
          new = annotator.next_click(objects.masks[i], masks[row][i], clicks[row][i])
          clicks[row][i] += [new] if new else []
      masks = predict(clicks, bar.update)
      curves[:, :, k] = [
        [metrics.iou(mask, true) for mask, true in zip(row, objects.masks)] for row in masks
      ]
  return [Course(*one) for one in zip(curves, masks, clicks)]


def courses(spec: specs.Spec, workdir: str, objects: Objects, method: Method) -> dict[str, Course]:
  """`click_through` by a method, {row: Course}; what an earlier evaluation found is read back."""
  section = dataclasses.replace(  # what changes no result, or is in the hash of the weights
    spec.segmentation, baseline=False, batch=1, weights='', encoder_path=''
  )
  pixels = [scene.image for scene in objects.scenes] + objects.masks
  mark = f'{section} {method.rows} {method.weights} {files.fingerprint(*pixels)}'
  rows, most = len(method.rows), spec.segmentation.clicks
  make = lambda: _arrays(click_through(objects, method.prepare(), rows, most, method.title))
  found = files.kept(os.path.join(workdir, 'curves', f'{method.title}.npz'), mark, make)
  return dict(zip(method.rows, _courses(found, rows, len(objects))))


def _arrays(found: Sequence[Course]) -> dict[str, np.ndarray]:
  """Courses as arrays with names."""
  out = {}
  for row, course in enumerate(found):
    out[f'{row}.curves'] = course.curves
    for i, (mask, clicks) in enumerate(zip(course.masks, course.clicks)):
      out[f'{row}.mask{i}'] = mask
      out[f'{row}.clicks{i}'] = np.array(clicks, np.int64).reshape(-1, 3)
  return out


def _courses(arrays: dict[str, np.ndarray], rows: int, count: int) -> list[Course]:
  """What `_arrays` was made of."""
  click = lambda row, column, positive: Click(int(row), int(column), bool(positive))
  return [
    Course(
      arrays[f'{row}.curves'],
      [arrays[f'{row}.mask{i}'] for i in range(count)],
      [[click(*one) for one in arrays[f'{row}.clicks{i}']] for i in range(count)],
    )
    for row in range(rows)
  ]


def predictor(
  objects: Objects, module: Segmenter, params: Any, arms: list[tuple[bool, bool]], batch: int
) -> Predict:
  """Masks by a network, over all devices with one trace for each shape of image."""
  slots, params = objects.slots, parallel.replicate(params, local=True)
  once = module.clicks != 'channels'
  update = parallel.map_batches(
    lambda p, b: module.apply(
      p, b[0], Clicks(*b[1]), b[2], method='update' if once else '__call__'
    ),
    batch,
  )
  images = dict(zip(objects.images, objects.inputs))
  first = dict(images)  # what the network starts from, image by image
  if once:  # an image is encoded once for all of its objects
    encode = parallel.map_batches(lambda p, image: module.apply(p, image, method='encode'), batch)
    for shape in objects.groups:
      these = [i for i, image in images.items() if image.shape == shape]
      found = encode(params, np.stack([images[i] for i in these]))
      first.update((i, jax.tree.map(lambda x: x[n], found)) for n, i in enumerate(these))

  many = batch * jax.local_device_count()
  parts = [
    members[at : at + many]
    for members in objects.groups.values()
    for at in range(0, len(members), many)
  ]

  def predict(clicks, advance):
    out = [[None] * len(objects) for _ in arms]
    for part in parts:
      given = jax.tree.map(lambda *xs: np.stack(xs), *(first[objects.images[i]] for i in part))
      for row, arm in enumerate(arms):
        packed = [
          session.pack(clicks[row][i], objects.masks[i].shape, objects.size, slots) for i in part
        ]
        on = tuple(np.full(len(part), flag) for flag in arm)
        logits = update(params, (given, tuple(map(np.stack, zip(*packed))), on))
        for i, values in zip(part, logits):
          out[row][i] = session.from_network(
            values, objects.masks[i].shape, objects.size, clicks[row][i]
          )
        advance(len(part))
    return out

  return predict


def milliseconds(
  objects: Objects, module: Segmenter, params: Any, clicks: list[list[Click]]
) -> float | None:
  """Median time of a click in a session, after the first (which compiles), over three images; None
  where there is only one."""
  seconds = []
  for i in range(min(3, len(objects))):
    one = session.Session(module, params, objects.scenes[i].image, objects.size, objects.slots)
    for n, click in enumerate(clicks[i][:8]):
      start = time.perf_counter()
      one.click(*click)
      seconds += [time.perf_counter() - start] if n else []
  return 1000 * float(np.median(seconds)) if seconds else None
