"""Pixels read tokens by colour and place."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from hypothesis import given, settings
from hypothesis import strategies as st

from gmm_diffusion.tasks.segmentation import pixels

join = jax.jit(pixels.join, static_argnames='steps')


def halves(shape=(32, 48), edge=22):
  """An image with one colour left of a column and another from there on, and tokens that hold the
  share of their cell that is on the right."""
  right = np.arange(shape[1]) >= edge
  image = np.where(right[None, :, None], [0.5, -0.5, 0.2], [-0.5, 0.5, 0.0]) * np.ones((*shape, 1))
  share = right.reshape(-1, pixels.CELL).mean(1)
  tokens = np.broadcast_to(share[None, :, None], (shape[0] // 4, shape[1] // 4, 1))
  return jnp.asarray(image), jnp.asarray(tokens), np.broadcast_to(right, shape)


class PixelsTest(absltest.TestCase):
  def test_an_edge_of_the_image_is_an_edge_of_what_is_read(self):
    image, tokens, right = halves()  # the edge is in the middle of a column of tokens
    by_place = join(image, tokens, 0.0, 1 / 9, 16.0)[..., 0]
    by_colour = join(image, tokens, 44.0, 1 / 9, 16.0)[..., 0]
    error = lambda read: np.abs(read - right)[:, 20:24].mean()
    self.assertGreater(error(by_place), 0.3)
    self.assertLess(error(by_colour), 0.1)
    np.testing.assert_array_equal(by_colour > 0.5, right)

  def test_keys_move_to_the_pixels(self):
    image, tokens, right = halves()
    error = lambda steps: np.abs(
      join(image, tokens, 44.0, 1 / 9, 4.0, steps)[..., 0] - right
    ).mean()
    self.assertLess(error(1), 0.9 * error(0))

  def test_against_sums_written_out(self):
    draw = np.random.RandomState(0)
    image, tokens = draw.uniform(-1, 1, (16, 32, 3)), draw.standard_normal((4, 8, 2))
    found = join(jnp.asarray(image), jnp.asarray(tokens), 3.0, 0.1, 5.0, 0)
    means = image.reshape(4, 4, 8, 4, 3).mean((1, 3))
    for row, column in ((0, 0), (7, 15), (15, 16), (3, 31)):
      total = weight = 0
      window = column // 16
      for i in range(4):  # the ring above and below is outside this image
        for j in range(max(0, 4 * window - 1), min(8, 4 * window + 5)):
          colour = ((image[row, column] - means[i, j]) ** 2).sum()
          place = (row - 4 * i - 1.5) ** 2 + (column - 4 * j - 1.5) ** 2
          w = np.exp(-0.5 * (3.0 * colour + 0.1 * place))
          total, weight = total + w * tokens[i, j], weight + w
      np.testing.assert_allclose(found[row, column], total / weight, rtol=1e-5)

  @settings(deadline=None, max_examples=10)
  @given(st.integers(0, 1000), st.floats(0, 100), st.floats(0, 1), st.floats(0.1, 100))
  def test_what_is_read_is_a_mean(self, seed, colour, place, trust):
    draw = np.random.RandomState(seed)
    image, tokens = draw.uniform(-1, 1, (32, 32, 3)), draw.uniform(2, 3, (8, 8, 2))
    tokens[..., 1] = 1
    read = np.asarray(join(jnp.asarray(image), jnp.asarray(tokens), colour, place, trust))
    np.testing.assert_allclose(read[..., 1], 1, rtol=1e-5)  # at the rim too
    self.assertTrue(((read[..., 0] > 2 - 1e-5) & (read[..., 0] < 3 + 1e-5)).all())

  def test_windows(self):
    x = jnp.arange(32 * 48 * 2.0).reshape(32, 48, 2)
    parts = pixels.windows(x, 16)
    self.assertEqual(parts.shape, (6, 256, 2))
    np.testing.assert_array_equal(parts[1].reshape(16, 16, 2), x[:16, 16:32])
    np.testing.assert_array_equal(pixels.whole(parts, (32, 48)), x)

  def test_tokens_around_a_window(self):
    tokens = 1 + jnp.arange(8 * 12.0).reshape(8, 12, 1)
    found = pixels.around(tokens).reshape(2, 3, 6, 6)
    np.testing.assert_array_equal(found[1, 1, :5], tokens[3:8, 3:9, 0])
    self.assertFalse(found[1, 1, 5].any())  # outside the image


if __name__ == '__main__':
  absltest.main()
