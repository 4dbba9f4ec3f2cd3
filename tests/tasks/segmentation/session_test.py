"""Sessions and the network: clicks, undo, images of any size, what arms and slots change."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from gmm_diffusion.errors import UserError
from gmm_diffusion.tasks.segmentation import model, scenes, session, training
from gmm_diffusion.tasks.segmentation.annotator import Click
from helpers.segmenter import MODULE, SHAPE, image, parameters


def start(picture=None, arm='both'):
  return session.Session(
    MODULE, parameters(), image() if picture is None else picture, size=64, slots=6, arm=arm
  )


class SessionTest(parameterized.TestCase):
  def test_a_session(self):
    one = start()
    self.assertFalse(one.mask.any())
    first = one.click(20, 30, True)
    self.assertTrue(first[20, 30])
    second = one.click(5, 6, False)
    self.assertFalse(second[5, 6])
    np.testing.assert_array_equal(one.undo(), first)
    np.testing.assert_array_equal(one.click(5, 6, False), second)  # deterministic
    third = one.click(5, 6, True)  # the same pixel again: the last word holds
    self.assertTrue(third[5, 6])
    self.assertEqual(one.clicks, [Click(20, 30, True), Click(5, 6, True)])
    one.click(4, 6, False)  # contradicts its neighbour: each pixel is as clicked
    self.assertEqual((one.mask[4, 6], one.mask[5, 6]), (False, True))
    self.assertFalse(one.reset().any())
    self.assertFalse(one.undo().any())
    np.testing.assert_array_equal(one.click(20, 30, True), first)

  def test_scribbles(self):
    one = start()
    mask = one.scribble([(10, column) for column in range(4, 40)][::9], True)
    self.assertTrue(mask[10, [4, 13, 22, 31]].all())
    with self.assertRaisesRegex(UserError, '20 clicks are more than the 6 slots; undo some'):
      one.scribble([(30, column) for column in range(60)], False)
    self.assertLen(one.clicks, 4)  # nothing half done
    self.assertFalse(one.undo().any())

  def test_replaying(self):
    one, other = start(), start()
    one.click(20, 30, True)
    one.scribble([(5, 6), (5, 9)], False)
    strokes = [([(20, 30)], True), ([(5, 6), (5, 9)], False)]
    other.click(3, 3, True)  # is forgotten
    np.testing.assert_array_equal(other.replay(strokes), one.mask)
    self.assertEqual(other.clicks, one.clicks)
    with self.assertRaisesRegex(UserError, 'outside the image'):
      other.replay([([(1, 1)], True), ([(99, 0)], True)])
    np.testing.assert_array_equal(other.undo(), one.undo())
    self.assertFalse(other.undo().any())

  def test_clicks_that_are_no_pixels(self):
    with self.assertRaisesRegex(UserError, 'is not finite; give a row and a column'):
      start().click(float('nan'), 3, True)
    with self.assertRaisesRegex(UserError, 'row -1, column 3 is outside'):
      start().click(-0.5, 3, True)

  @parameterized.parameters(((48, 0),), ((-1, 3),), ((0, 64),))
  def test_clicks_outside(self, pixel):
    with self.assertRaisesRegex(
      UserError,
      f'row {pixel[0]}, column {pixel[1]} is outside the image; valid: rows 0..47, columns 0..63',
    ):
      start().click(*pixel, True)

  def test_images_of_any_size(self):
    one = start(image((1, 1, 3)))
    np.testing.assert_array_equal(one.click(0, 0, True), [[True]])
    large = start(image((3000, 4000, 3)))
    self.assertEqual(large.note, '4000 x 3000 pixels are worked on as 64 x 48')
    self.assertEqual(large.click(2999, 3999, True).shape, (3000, 4000))
    self.assertEqual(start().note, '')

  def test_arms_differ_and_bad_ones_are_named(self):
    masks = {}
    for arm in model.ARMS:
      one = start(arm=arm)
      one.click(20, 30, True)
      masks[arm] = np.asarray(one.click(40, 8, False))
    for arm in ('keys', 'values', 'both'):
      self.assertTrue((masks[arm] != masks['none']).any(), arm)
    with self.assertRaisesRegex(UserError, "unknown arm 'all'; valid: none, keys, values, both"):
      start(arm='all')

  def test_unused_slots_have_no_influence(self):
    encode, update = session.compiled(MODULE)
    features = encode(parameters(), session.to_network(image(), 64)[None])
    clicks = session.pack([Click(20, 30, True)], SHAPE, 64, 6)
    other = clicks._replace(pixels=np.where(clicks.labels[:, None] < 0, 17, clicks.pixels))
    on = tuple(map(jnp.asarray, model.ARMS['both']))
    run = lambda clicks: update(parameters(), features, jax.tree.map(lambda x: x[None], clicks), on)
    np.testing.assert_array_equal(run(clicks), run(other))

  def test_tokens_under_clicks_hold_their_values(self):
    encode, _ = session.compiled(MODULE)
    clicks = session.pack(
      [Click(22, 30, False), Click(20, 30, True), Click(40, 8, False)], SHAPE, 64, 6
    )  # two on one token: the last
    features = encode(parameters(), session.to_network(image(), 64)[None])
    read = MODULE.apply(
      parameters(),
      features,
      jax.tree.map(lambda x: x[None], clicks),
      (False, False),
      method=lambda module, *a: module._read(*a),
    )
    labels = parameters()['params']['labels']
    np.testing.assert_array_equal(read[0, 20 // 4, 30 // 4], labels[scenes.OBJECT])
    np.testing.assert_array_equal(read[0, 40 // 4, 8 // 4], labels[scenes.BACKGROUND])
    self.assertGreater(
      float(np.abs(read[0, 0, 0] - labels[scenes.BACKGROUND]).max()), 1e-3
    )  # the unused slots hold nothing

  def test_clicks_that_enter_through_propagated_values_alone(self):
    with self.assertRaisesRegex(
      UserError, "unknown clicks 'value'; valid: tokens, channels, values"
    ):
      MODULE.clone(clicks='value').init(jax.random.key(0), jnp.zeros((1, 64, 96, 3)))
    module = MODULE.clone(clicks='values')
    encode, update = session.compiled(module)
    params = parameters(module)
    features = encode(params, session.to_network(image(), 64)[None])

    def logits(clicks, arm, params=params):
      packed = jax.tree.map(lambda x: x[None], session.pack(clicks, SHAPE, 64, 6))
      return np.asarray(update(params, features, packed, tuple(map(jnp.asarray, model.ARMS[arm]))))

    clicks = [Click(20, 30, True), Click(5, 6, False)]
    for arm in ('none', 'keys'):  # without propagation
      np.testing.assert_array_equal(logits(clicks, arm), logits([], arm))
    self.assertGreater(np.abs(logits([], 'keys') - logits([], 'none')).max(), 1e-3)
    for arm in ('values', 'both'):
      for more, fewer in ((clicks, clicks[:1]), (clicks[:1], [])):
        self.assertGreater(np.abs(logits(more, arm) - logits(fewer, arm)).max(), 0.1)
    # values that are sure of themselves learn nothing, and then nothing is left of the clicks
    sure = jax.tree.map(np.copy, params)
    sure['params']['precisions']['log_trust_values'] += 40
    np.testing.assert_allclose(
      logits(clicks, 'both', sure), logits([], 'both'), rtol=1e-4, atol=1e-2
    )

  def test_values_are_always_propagated_where_clicks_enter_through_them_alone(self):
    image, mask = np.zeros((1, *SHAPE, 3)), np.ones((1, 1, *SHAPE), np.uint8)
    pixels = np.full((1, 1, 8, 2), 20)

    def loss(clicks, labels):
      module = MODULE.clone(clicks=clicks)
      batch = image, mask, pixels, np.full((1, 1, 8), labels), np.zeros(1, np.int32)
      return float(training.loss_of(module, 0, 0)(parameters(module), 0, batch))

    with mock.patch.object(jax.random, 'bernoulli', lambda key, p: jnp.zeros((), bool)):
      self.assertNotEqual(loss('values', 1), loss('values', 0))

  @parameterized.parameters(((160, 240), 600), ((240, 320), 1200), ((320, 480), 600))
  def test_large_images_have_fewer_units_per_pixel(self, shape, units):
    found, real = [], model.em.memory
    clicks = model.Clicks(np.zeros((1, 6, 2), np.int32), np.zeros((1, 6), np.int32))
    with mock.patch.object(
      model.em, 'memory', lambda keys, *more: found.append(len(keys)) or real(keys, *more)
    ):
      out = jax.eval_shape(MODULE.apply, parameters(), np.zeros((1, *shape, 3), np.float32), clicks)
    self.assertEqual(out.shape, (1, *shape))
    self.assertEqual(max(found), units + 6)  # others are of the pixels' windows

  def test_units_of_units_lie_in_the_middle_of_them(self):
    values = jnp.arange(4 * 8.0).reshape(1, 4, 8, 1, 1)
    np.testing.assert_allclose(
      model._pooled(values)[0, :, :, 0, 0], [[4.5, 6.5, 8.5, 10.5], [20.5, 22.5, 24.5, 26.5]]
    )
    grid = model._grid((2, 4), 16)
    np.testing.assert_allclose(grid[0, 0], [8, 8])
    np.testing.assert_allclose(grid[1, 3], [24, 56])

  @parameterized.parameters(1, 4)
  def test_drawn_clicks(self, stride):
    pixels = np.array([[[3, 4], [20, 31], [0, 63], [47, 0], [30, 30]], [[9, 9]] * 5])
    labels = np.array([[1, 0, 1, 0, -1], [-1] * 5])
    found = np.asarray(model.draw(model.Clicks(pixels, labels), (48, 64), stride))
    rows, columns = np.mgrid[: 48 // stride, : 64 // stride] * stride + stride / 2
    for label in (0, 1):
      disc = np.zeros(rows.shape)
      for at in pixels[0][labels[0] == label]:
        distance = (rows - at[0] - 0.5) ** 2 + (columns - at[1] - 0.5) ** 2
        disc = np.maximum(disc, 1 - distance / model.RADIUS[stride] ** 2)
      np.testing.assert_allclose(found[0, ..., label], disc, atol=1e-6)
    self.assertFalse(found[1].any())  # unused slots


if __name__ == '__main__':
  absltest.main()
