"""Interactive segmentation: training with simulated clicks, and evaluation of the four arms and
their baselines."""

import dataclasses
import functools
import hashlib
import os
import time
import zipfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from gmm_diffusion import files, parallel, specs
from gmm_diffusion.checkpoints.store import Store
from gmm_diffusion.engine import build, trainer
from gmm_diffusion.errors import UserError
from gmm_diffusion.reports import records
from gmm_diffusion.tasks.segmentation import annotator, grabcut, metrics, report, session
from gmm_diffusion.tasks.segmentation import scenes as data
from gmm_diffusion.tasks.segmentation.model import ARMS, Clicks, Segmenter

FIRST = 8  # most clicks drawn before the network's own error adds one, while training
BASELINE = 'clicks as channels, dot-product attention'


def network(spec: specs.Segmentation, clicks: str = 'tokens') -> Segmenter:
  return Segmenter(
    spec.channels,
    spec.blocks,
    spec.heads,
    spec.head_channels,
    spec.key_steps,
    spec.value_steps,
    clicks,
  )


def _init(module, spec, seed):
  H, W = spec.crop
  return module.init(
    jax.random.key(seed),
    jnp.zeros((1, H, W, 3)),
    Clicks(jnp.zeros((1, FIRST + 1, 2), jnp.int32), jnp.zeros((1, FIRST + 1), jnp.int32)),
  )


def _about(spec: specs.Segmentation, clicks: str) -> dict[str, Any]:
  keys = ('channels', 'blocks', 'heads', 'head_channels', 'key_steps', 'value_steps')
  return {'segmentation': {key: getattr(spec, key) for key in keys}, 'clicks': clicks}


def make_batch(
  spec: specs.Spec, scenes: list[data.Scene], step: int, mine: slice
) -> tuple[np.ndarray, ...]:
  """Images uint8, masks, pixels and labels of clicks, positions in the whole batch: a function of
  (seed, step) alone."""
  rows = []
  for position in range(*mine.indices(spec.train.batch)):
    random = np.random.RandomState([spec.seed, step, position])
    scene = scenes[random.randint(len(scenes))]
    image, mask = data.crop(
      scene, random.randint(len(scene.objects)), spec.segmentation.crop, random
    )
    clicks = annotator.first_clicks(mask, min(FIRST, random.geometric(0.35)), random)
    packed = session.pack(clicks, mask.shape, max(mask.shape), FIRST + 1)
    rows.append((image, mask, packed.pixels, packed.labels, np.int32(position)))
  return tuple(map(np.stack, zip(*rows)))


def _corrected(key, clicks: Clicks, wrong, mask) -> Clicks:
  """One more click, somewhere inside the errors [H, W] of one item; now and then none."""
  keys = jax.random.split(key)
  inside = (
    jax.lax.reduce_window(wrong.astype(jnp.float32), 0.0, jax.lax.add, (7, 7), (1, 1), 'SAME')
    * wrong
  )
  at = jax.random.categorical(keys[0], 2 * jnp.log(inside.reshape(-1) + 1e-9))
  pixel = jnp.stack([at // wrong.shape[1], at % wrong.shape[1]])
  label = jnp.where(
    jnp.any(wrong) & jax.random.bernoulli(keys[1], 0.75), mask.reshape(-1)[at] == data.OBJECT, -1
  )
  slot = jnp.sum(clicks.labels >= 0)
  return Clicks(
    clicks.pixels.at[slot].set(pixel.astype(jnp.int32)),
    clicks.labels.at[slot].set(label.astype(jnp.int32)),
  )


def loss_of(module: Segmenter, seed: int):
  """loss_fn(params, step, batch): cross-entropy and 1 - soft IoU after a click of correction, each
  item on a random arm."""

  def loss_fn(params, step, batch):
    image, mask, pixels, labels, position = batch
    image, clicks = image.astype(jnp.float32) / 127.5 - 1, Clicks(pixels, labels)
    root = jax.random.fold_in(jax.random.key(seed), step)
    keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(root, i), 3))(position)
    on = tuple(jax.vmap(lambda key: jax.random.bernoulli(key, 0.6))(keys[:, i]) for i in (0, 1))
    encode = lambda clicks: module.apply(params, image, clicks, method='encode')
    update = lambda features, clicks: module.apply(params, features, clicks, on, method='update')
    features = encode(clicks)
    guess = jax.lax.stop_gradient(update(features, clicks)) > 0
    wrong = (guess != (mask == data.OBJECT)) & (mask != data.IGNORE)
    clicks = jax.vmap(_corrected)(keys[:, 2], clicks, wrong, mask)
    logits = update(encode(clicks) if module.clicks == 'channels' else features, clicks)
    target, counts = (
      (mask == data.OBJECT).astype(jnp.float32),
      (mask != data.IGNORE).astype(jnp.float32),
    )
    entropy = jnp.maximum(logits, 0) - logits * target + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    p = jax.nn.sigmoid(logits) * counts
    total = lambda x: jnp.sum(x, (1, 2))
    iou = (total(p * target) + 1) / (total(p + target * counts - p * target) + 1)
    return jnp.mean(total(entropy * counts) / jnp.maximum(total(counts), 1) + 1 - iou)

  return loss_fn


def _nets(spec: specs.Spec, workdir: str) -> dict[str, str]:
  """{'tokens' | 'channels': where its checkpoints are}."""
  return {
    'tokens': workdir,
    **({'channels': os.path.join(workdir, 'baseline')} if spec.segmentation.baseline else {}),
  }


def train(spec: specs.Spec, workdir: str, command: str) -> None:
  """--mode=train: the network, and the baseline that takes clicks as channels."""
  del command
  if parallel.shares(spec.train.batch):
    raise UserError(f'train.batch {spec.train.batch} is {parallel.shares(spec.train.batch)}')
  scenes = data.load(spec.data).train
  optimiser = trainer.make_optimiser(spec.train)
  for clicks, folder in _nets(spec, workdir).items():
    module = network(spec.segmentation, clicks)

    def fresh():
      params = _init(module, spec.segmentation, spec.seed)
      return trainer.State(jnp.zeros((), jnp.int32), params, params, optimiser.init(params))

    trainer.fit(
      spec.train,
      fresh,
      lambda: trainer.updater(spec.train, optimiser, loss_of(module, spec.seed)),
      functools.partial(make_batch, spec, scenes),
      _about(spec.segmentation, clicks),
      folder,
    )


def load(spec: specs.Spec, workdir: str, clicks: str = 'tokens') -> tuple[Segmenter, Any]:
  """(network, parameters) of a workdir."""
  module = network(spec.segmentation, clicks)
  store = Store(_nets(spec, workdir)[clicks])
  found = {key: value for key, value in store.about().items() if key != 'format'}
  if found != _about(spec.segmentation, clicks):
    raise UserError(
      f'the checkpoint in {store.path} is of {found}, the config says '
      f'{_about(spec.segmentation, clicks)}; use its config, or another --workdir'
    )
  params = store.weights({'net': jax.eval_shape(lambda: _init(module, spec.segmentation, 0))})[
    'net'
  ]
  store.close()
  return module, params


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
  the end, [count][N].

  predict(clicks [count][N], advance): bool masks [count][N]; advance(n) counts. `count` runs go
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


def evaluate(spec: specs.Spec, workdir: str, command: str) -> None:
  """--mode=evaluate: the arms and baselines on the same objects; results.json, curve.png and
  report.html."""
  start = time.perf_counter()
  section, objects = spec.segmentation, Objects(spec)
  module, params = load(spec, workdir)
  weights = build.tree_hash(params)
  runs = [
    (
      list(ARMS),
      weights,
      lambda: predictor(objects, module, params, list(ARMS.values()), section.batch),
      'arms',
    )
  ]
  if section.baseline:
    other = load(spec, workdir, 'channels')
    runs.append(
      (
        [BASELINE],
        build.tree_hash(other[1]),
        lambda: predictor(objects, *other, [(False, False)], section.batch),
        'baseline',
      )
    )
  if grabcut.available():
    runs.append((['GrabCut'], '', lambda: grabcut.predictor(objects), 'GrabCut'))
  rows, shown = {}, {}
  for run in runs:
    curves, ends = _run(spec, workdir, objects, *run)
    rows.update(curves)
    shown.update(ends)
  speed = milliseconds(objects, module, params, shown['both'][1])
  if not parallel.is_main():
    return
  shared = records.common(spec, command)
  table = {name: metrics.summary(row, objects.images) for name, row in rows.items()}
  table.update(
    {
      f'{name} minus none': metrics.differences(rows[name], rows['none'], objects.images)
      for name in rows
      if name != 'none'
    }
  )
  new = [
    {
      'kind': 'segmentation',
      'sampler': name,
      'metric': metric,
      'value': value.value,
      'interval': [value.low, value.high],
      'n': len(objects.scenes),
      'images': len(set(objects.images)),
      'seed': spec.seed,
      'split': spec.data.split,
      'weights': weights,
      **shared,
    }
    for name, row in table.items()
    for metric, value in row.items()
  ]
  new.append(
    {
      'kind': 'segmentation',
      'sampler': 'both',
      'metric': 'milliseconds per click',
      'value': speed,
      'interval': None,
      'n': len(objects.scenes),
      'seed': spec.seed,
      'split': spec.data.split,
      'weights': weights,
      **shared,
    }
  )
  records.add(workdir, new)
  for name, row in table.items():
    print(f'{name:44s} ' + '  '.join(f'{metric} {value}' for metric, value in row.items()))
  shown_speed = 'not measured' if speed is None else f'{speed:.0f}'
  print(f'milliseconds per click: {shown_speed}')
  facts = {
    'objects': f'{len(objects.scenes)} of {len(set(objects.images))} images, {spec.data.split} '
    f'split, seed {spec.seed}',
    'milliseconds per click': f'{shown_speed} (both adaptations, after the first click)',
    'weights': weights,
    'seconds': round(time.perf_counter() - start, 1),
    'versions': ', '.join(f'{k} {v}' for k, v in shared['versions'].items()),
  }
  report.write(workdir, command, facts, table, rows, shown, objects, dataclasses.asdict(spec))
  print(f'report: {os.path.join(workdir, "report.html")}')


def train_and_evaluate(spec: specs.Spec, workdir: str, command: str) -> None:
  """--mode=all."""
  Objects(spec)  # bad data show before the training
  train(spec, workdir, command)
  evaluate(spec, workdir, command)
