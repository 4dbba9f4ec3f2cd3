"""Window distances against windows cut out one by one."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import patches
from helpers import cases


def by_hand(query, image, size):
  """|w_p(x) - w_p'(u)|^2 for all places, [u, v, y, x]."""
  cut = lambda image: {
    (y, x): image[y : y + size, x : x + size]
    for y in range(image.shape[0] - size + 1)
    for x in range(image.shape[1] - size + 1)
  }
  units, pixels = cut(image), cut(query)
  shape = [n - size + 1 for n in image.shape[:2] + query.shape[:2]]
  return np.array([np.sum((u - q) ** 2) for u in units.values() for q in pixels.values()]).reshape(
    shape
  )


all_places = jax.jit(patches.distances, static_argnums=(2, 3))


class DistancesTest(cases.X64TestCase):
  @parameterized.product(form=patches.FORMS, size=(1, 5))
  def test_all_places(self, form, size):
    random = np.random.RandomState(0)
    query, images = random.randn(7, 9, 2), random.randn(3, 6, 5, 2)
    found = all_places(query, images, size, form)
    for image, distances in zip(images, found):
      np.testing.assert_allclose(distances, by_hand(query, image, size), atol=1e-11)

  @parameterized.parameters(3, 5)
  def test_near_windows_of_bright_colours_round_alike_in_all_forms(self, size):
    # in single precision what is left of long vectors that are nearly equal is mostly rounding
    random = np.random.RandomState(0)
    colours = random.choice([-0.8, 0.8], (12, 1, 1, 3)) + 0.02 * random.randn(12, 9, 9, 3)
    query, images = colours[0] + 0.02 * random.randn(9, 9, 3), colours

    def error(form):
      single = all_places(np.float32(query), np.float32(images), size, form)
      double = all_places(np.float64(np.float32(query)), np.float64(np.float32(images)), size, form)
      return np.sqrt(np.mean((single - double)[0] ** 2))  # image 0 has the colour of the query

    self.assertLess(error('patches'), 2 * error('strips'))

  def test_rows_near_an_edge_and_same_place(self):
    random = np.random.RandomState(0)
    query, images = jnp.asarray(random.randn(6, 7, 2)), jnp.asarray(random.randn(2, 6, 5, 2))
    rows = np.array([0, 3])
    found = jax.jit(
      lambda q, u: patches.row_distances(patches.bands(q, 3, rows), patches.bands(u, 3, rows), 3)
    )(query, images)
    every = all_places(query, images, 3, 'patches')
    for g, y in enumerate(rows):
      np.testing.assert_allclose(found[:, :, g], every[:, y, :, y], atol=1e-12)
    same = patches.same_distances(images[0, :, :5], images[:, :, :5], 3)
    full = all_places(images[0], images, 3, 'patches')
    np.testing.assert_allclose(same, np.einsum('nyxyx->nyx', full), atol=1e-12)

  @parameterized.parameters(1, 2, 3, 6, 7, 11, 12)
  def test_box_sums(self, size):
    x = np.random.RandomState(size).randn(size + 3, 2, size + 4)
    found = jax.jit(patches.box, static_argnums=(1, 2))(x, size, (0, 2))
    for i, j in ((0, 0), (3, 4), (1, 3)):
      np.testing.assert_allclose(
        found[i, :, j], sum(x[i + e, :, j + e] for e in range(size)), atol=1e-12
      )

  def test_float32_at_low_noise(self):
    # of two windows that differ by 1e-3 in one pixel the distance is 1e-6, beside squares of 867:
    # what matters is that no form is wrong by more than rounding of the squares
    random = np.random.RandomState(0)
    image = random.rand(1, 20, 20, 3).astype(np.float32)
    query = image[0].copy()
    query[10, 10, 0] += 1e-3
    for form in patches.FORMS:
      with jax.enable_x64(False):
        found = np.asarray(all_places(query, image, 17, form))
      self.assertLess(np.abs(np.einsum('nuvuv->nuv', found)).max(), 2e-4, form)

  def test_memory_has_no_unrolled_windows(self):
    # 8 images, 24 x 24 places, 24 x 24 pixels: 10.6 MB of distances; unrolled windows of 9 x 9
    # would take 81 times as much
    def temporary(form):
      args = (
        jax.ShapeDtypeStruct((32, 32, 1), np.float32),
        jax.ShapeDtypeStruct((8, 32, 32, 1), np.float32),
      )
      return (
        jax.jit(lambda q, i: patches.distances(q, i, 9, form))
        .lower(*args)
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
      )

    pairs = 8 * 24**4 * 4
    for form in ('patches', 'strips'):
      self.assertLess(temporary(form), 4 * pairs)
    # one image's products of pixels come on top
    self.assertLess(temporary('boxes'), 4 * pairs + 3 * 32**4 * 4)


class ChoiceTest(parameterized.TestCase):
  def test_small_patches_are_unrolled_large_ones_summed(self):
    form = lambda size, side, channels: patches.cheapest(
      (side + size - 1, side + size - 1, channels), (side, side, channels), size
    )
    self.assertEqual([form(k, 32, 3) for k in (1, 3, 17)], ['patches', 'patches', 'strips'])
    self.assertEqual(form(101, 256, 3), 'boxes')

  def test_cost_of_boxes_does_not_depend_on_the_patch(self):
    ratio = lambda form: (
      patches.cost(form, (64, 64, 3), (64, 64, 3), 17)
      / patches.cost(form, (64, 64, 3), (64, 64, 3), 5)
    )
    self.assertLess(ratio('boxes'), 1)
    self.assertGreater(ratio('patches'), 4)

  @parameterized.parameters(
    (4, 'must be odd'),
    (0, 'must be odd'),
    (-3, 'must be odd'),
    (9, 'larger than the images of 8 x 10'),
  )
  def test_bad_size(self, size, message):
    with self.assertRaisesRegex(UserError, message):
      patches.check(size, (8, 10, 1))

  def test_bad_names(self):
    with self.assertRaisesRegex(UserError, "unknown padding 'mirror'; valid: zero, circular"):
      patches.pad(np.zeros((4, 4, 1)), 3, 'mirror')
    with self.assertRaisesRegex(UserError, "unknown form 'direct'; valid: patches, strips, boxes"):
      patches.distances(jnp.zeros((4, 4, 1)), jnp.zeros((1, 4, 4, 1)), 3, 'direct')


if __name__ == '__main__':
  absltest.main()
