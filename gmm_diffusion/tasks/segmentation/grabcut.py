"""GrabCut [Rother et al. 2004] of OpenCV with clicks, the classical reference. OpenCV is optional
(extra `opencv`)."""

import importlib.util

import numpy as np

from gmm_diffusion.tasks.segmentation import scenes, session

SURE, NEAR = (
  3,
  20,
)  # pixels around a click that are certain, and around one on the object that are likely


def available() -> bool:
  return importlib.util.find_spec('cv2') is not None


def segment(image: np.ndarray, clicks: list, iterations: int = 5) -> np.ndarray:
  """bool [H, W] of an image uint8 [H, W, 3]. Starts from scratch: discs around the clicks, and
  background elsewhere."""
  import cv2

  rows, columns = np.ogrid[: image.shape[0], : image.shape[1]]
  state = np.full(image.shape[:2], cv2.GC_PR_BGD, np.uint8)
  distance = lambda click: (rows - click.row) ** 2 + (columns - click.column) ** 2
  for click in clicks:
    if click.positive:
      state[(distance(click) <= NEAR**2) & (state == cv2.GC_PR_BGD)] = cv2.GC_PR_FGD
  for click in clicks:
    state[distance(click) <= SURE**2] = cv2.GC_FGD if click.positive else cv2.GC_BGD
  try:
    cv2.setRNGSeed(0)
    cv2.grabCut(  # type: ignore[call-overload]
      image[..., ::-1].copy(),
      state,
      None,
      np.zeros((1, 65)),
      np.zeros((1, 65)),
      iterations,
      cv2.GC_INIT_WITH_MASK,
    )
  except cv2.error:  # one of the two has no pixels
    pass
  return (state == cv2.GC_FGD) | (state == cv2.GC_PR_FGD)


def predictor(objects):
  """predict of tasks/segmentation/benchmark.py:click_through, on images of the size that the
  network sees."""

  def predict(clicks, advance):
    out = []
    for scene, own in zip(objects.scenes, clicks[0]):
      whole = scene.image.shape[:2]
      small = scenes.resize(scene.image, session.working_shape(whole, objects.size))
      found = segment(small, session.scaled(own, whole, objects.size))
      out.append(scenes.resize(found.astype(np.uint8), whole) > 0)
      advance(1)
    return [out]

  return predict
