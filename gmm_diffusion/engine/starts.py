"""Networks that a run starts from: those of another workdir, trained there or converted from
released weights."""

import dataclasses
import os
from typing import Any

import jax
import numpy as np

from gmm_diffusion import specs
from gmm_diffusion.checkpoints.store import Store
from gmm_diffusion.data import base
from gmm_diffusion.engine import build
from gmm_diffusion.errors import UserError

_LEVELS = (
  'images of another size have attention on other levels: set net.attention to the sides of the '
  'same levels'
)
_OF_CLASSES = 'label_emb', 'y_embedder', 'context_emb'  # in names of parameters


def check(section: str, start: str, workdir: str) -> None:
  """Raises UserError unless `start`, of a section of the config, is the workdir of a network with
  all its digits, and another than the workdir of the run."""
  if not start:
    raise UserError(
      f'{section}.start is not set; set it to the workdir of the network to start from'
    )
  if os.path.realpath(start) == os.path.realpath(workdir):
    raise UserError(
      f'{section}.start {start!r} is the --workdir itself; use another --workdir, so that the '
      f'network is kept'
    )
  with Store(start) as store:
    if store.about().get('quantised'):
      raise UserError(f'the network in {start} is quantised; start from the one it was made of')


def weights(spec: specs.Spec, data: base.Data, start: str, workdir: str, fresh: Any) -> Any:
  """The variables of the network of a workdir, float32 on the host, in the form of `fresh`: what
  belongs to classes that it does not have stays as it is there.

  Raises:
    UserError: there is none, or it differs from that of the spec in more than its classes and the
      size of its images.
  """
  check('train', start, workdir)
  wanted = build.about(spec, data)
  wanted = {key: wanted[key] for key in ('net', 'schedule', 'prediction')}
  free = 'labels', 'attention'
  wanted['net'] = {key: value for key, value in wanted['net'].items() if key not in free}
  with Store(start) as store:
    build.check_about(store, wanted)
    about = store.about()
    if about['shape'][-1] != data.shape[-1]:
      raise UserError(
        f'the network in {start} makes images of {about["shape"][-1]} channels, the data have '
        f'{data.shape[-1]}; set data.colour'
      )
    known = {'labels': about['net']['labels'], 'dtype': 'float32'}
    if 'attention' in about['net']:
      known['attention'] = tuple(about['net']['attention'])
    own = dataclasses.replace(spec.net, **known)
    there = data._replace(train=np.zeros((1, *about['shape']), np.uint8), classes=about['classes'])
    template = build.template(dataclasses.replace(spec, net=own), there)
    found = store.weights({'net': template['net']})['net']
  known = {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(found)}
  same = (about['net']['labels'], about['classes']) == (spec.net.labels, data.classes)
  of_classes = lambda name: any(part in name for part in _OF_CLASSES)
  anew, used = [], set()

  def pick(path, leaf):
    name = jax.tree_util.keystr(path)
    used.add(name)
    if name in known and known[name].shape == leaf.shape and (same or not of_classes(name)):
      return known[name]
    if not of_classes(name):
      raise UserError(f'the network in {start} has no {name} as it is wanted here; {_LEVELS}')
    anew.append(name)
    return np.asarray(leaf)

  out = jax.tree_util.tree_map_with_path(pick, fresh)
  for name in set(known) - used:
    if not of_classes(name):
      raise UserError(f'the network in {start} has {name}, which has no place here; {_LEVELS}')
  if anew:
    print(f'learnt anew, since the classes differ: {", ".join(anew)}', flush=True)
  return out
