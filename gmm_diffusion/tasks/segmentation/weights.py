"""A trained network in one file, to give to others: an .npz of its weights and of what it consists
of."""

import json
import os
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from gmm_diffusion import files
from gmm_diffusion.data.npz import Npz
from gmm_diffusion.errors import UserError

ABOUT = 'about'  # the entry that says what the network consists of


class Content(NamedTuple):
  """about: plain values; params: the tree of float32 arrays."""

  about: dict[str, Any]
  params: Any


def write(path: str, content: Content) -> None:
  """Writes a file; it appears when it is complete. path: ends in .npz."""
  if not path.endswith('.npz'):
    raise UserError(f'a network is written as .npz, got {path!r}')
  arrays = traverse_util.flatten_dict(content.params, sep='/')
  arrays[ABOUT] = np.frombuffer(json.dumps(content.about).encode(), np.uint8)
  whole = lambda x: (np.shape(x), np.asarray(x).dtype, (np.asarray(x),))
  files.write_npz(os.path.expanduser(path), {name: whole(x) for name, x in arrays.items()})


def read(path: str) -> Content:
  """What `write` wrote.

  Raises:
    UserError: the file is not there, is damaged, or holds no network.
  """
  path = os.path.expanduser(path)
  with Npz(path) as file:
    if ABOUT not in file.heads:
      raise UserError(
        f'{path} holds no network for segmentation; give a file that load_segmenter(WORKDIR).save '
        f'wrote'
      )
    arrays = {name: file.array(name) for name in file.heads if name != ABOUT}
    try:
      about = json.loads(file.array(ABOUT).tobytes())
    except ValueError as error:
      raise UserError(f'{path} is damaged: {error}; download it again') from error
  return Content(about, traverse_util.unflatten_dict(arrays, sep='/'))
