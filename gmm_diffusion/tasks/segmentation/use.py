"""Segmentation from Python: one image, a folder of saved clicks, and the page to click on.

mask = gmm_diffusion.segment('photo.jpg', [(40, 60, True)], 'runs/segmentation')
page = gmm_diffusion.annotate('photos', 'runs/segmentation')
"""

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from gmm_diffusion import files
from gmm_diffusion.errors import UserError
from gmm_diffusion.tasks.segmentation import annotations, networks, scenes
from gmm_diffusion.tasks.segmentation.networks import Network

if TYPE_CHECKING:
  from gmm_diffusion.tasks.segmentation.server import Page


def _network(network: str | Network) -> Network:
  return network if isinstance(network, Network) else networks.load(network)


def segment(image: Any, clicks: Any, network: str | Network) -> np.ndarray:
  """The mask of an object.

  Args:
    image: the path of an image, or an array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], uint8 or
      float in [0, 1].
    clicks: (row, column, whether it is the object) of each, in pixels of the image; or the path of
      a NAME.json that --mode=annotate wrote.
    network: the workdir of a finished training, or the file of a network; or, to load it once,
      what load_segmenter returns.

  Returns:
    bool [H, W]; all False without clicks.

  Raises:
    UserError: the image, the clicks or the network cannot be used.
  """
  if isinstance(image, (str, os.PathLike)):
    image = scenes.open_image(os.path.expanduser(os.fspath(image)))
  image = scenes.rgb(image)
  strokes = annotations.clicks_of(clicks, image.shape[:2])
  return _network(network).session(image).replay(strokes)


def segment_folder(images: str, clicks: str, network: str | Network, masks: str) -> list[str]:
  """Makes the masks of saved clicks again, with any network.

  Args:
    images: folder of the images.
    clicks: folder of their NAME.json, such as WORKDIR/annotations.
    network: as for `segment`.
    masks: folder for NAME.png, of 0 and 255, which is made; those that are there are replaced.

  Returns:
    The names of the images that have clicks.

  Raises:
    UserError: clicks without their image, or as `segment`.
  """
  network, paths, names = _network(network), scenes.listing(images), []
  for name, path in scenes.listing(clicks, ('.json',)).items():
    if name not in paths:
      raise UserError(f'{path} has no image {name} in {images}; put it there, or remove the clicks')
    if annotations.read(path).strokes:
      mask = segment(paths[name], path, network)
      annotations.write_mask(os.path.join(os.path.expanduser(masks), f'{name}.png'), mask)
      names.append(name)
  if not names:
    raise UserError(f'no NAME.json with clicks in {clicks}; --mode=annotate writes them')
  return names


def annotate(
  images: str,
  workdir: str,
  network: str | Network | None = None,
  host: str = '127.0.0.1',
  port: int = 0,
) -> 'Page':
  """Serves the page on which a person segments the images of a folder, beside this program, until
  close() or the end of the program. In Colab:

  page = gmm_diffusion.annotate('photos', 'runs/segmentation')
  google.colab.output.serve_kernel_port_as_iframe(page.port, height=800)

  Args:
    images: folder of images.
    workdir: clicks and masks are kept in WORKDIR/annotations.
    network: as for `segment`; None is that of the workdir.
    host: where it is served; 127.0.0.1 is for this machine alone.
    port: of the page; 0 is any that is free.

  Returns:
    The page, with its `url` and `port`.

  Raises:
    UserError: the extra `annotate` is not installed, there is no image or no network, or the page
      cannot be served.
  """
  out = page(images, workdir, _network(network or workdir), host, port)
  out.start()
  return out


def page(images: str, workdir: str, network: Network, host: str, port: int) -> 'Page':
  """The page, not yet served; arguments and errors as of `annotate`."""
  try:
    # slow to import, and only needed here
    from gmm_diffusion.tasks.segmentation import server
  except ImportError as error:
    raise UserError(
      f'annotating needs starlette and uvicorn ({error}); install the extra: pip install -e '
      f"'.[annotate]'"
    ) from error
  workdir = os.path.expanduser(workdir)
  files.make_workdir(workdir)
  folder = os.path.join(workdir, 'annotations')
  return server.Page(lambda: annotations.Annotations(images, folder, network), folder, host, port)
