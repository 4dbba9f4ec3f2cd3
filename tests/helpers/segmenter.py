"""A tiny network for segmentation with random weights."""

import functools

import jax
import numpy as np
from PIL import Image

from gmm_diffusion.tasks.segmentation import model, networks

SHAPE = (48, 64)
MODULE = model.Segmenter('scratch', 8, 1, 1, 8, key_steps=1, value_steps=1)


@functools.cache
def parameters(module=MODULE):
  clicks = model.Clicks(np.zeros((1, 6, 2), np.int32), np.zeros((1, 6), np.int32))
  shapes = jax.eval_shape(
    module.init, jax.random.key(0), np.zeros((1, *SHAPE, 3), np.float32), clicks
  )
  random = np.random.RandomState(0)  # zero layers would hide what is wrong
  return jax.tree.map(lambda x: np.asarray(0.4 * random.randn(*x.shape), np.float32), shapes)


def network(module=MODULE):
  return networks.Network(module, parameters(module), 64, 20)


def image(shape=(*SHAPE, 3), seed=0):
  return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)


def write_image(path, shape=(*SHAPE, 3), seed=0):
  Image.fromarray(image(shape, seed)).save(path)
