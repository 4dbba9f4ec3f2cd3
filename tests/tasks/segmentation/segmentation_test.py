"""Data, annotator, metrics, network and session, on closed forms and small problems."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given, settings, strategies
from PIL import Image

from gmm_diffusion import specs
from gmm_diffusion.errors import UserError
from gmm_diffusion.tasks.segmentation import annotator, grabcut, metrics, model, session
from gmm_diffusion.tasks.segmentation import scenes as data
from gmm_diffusion.tasks.segmentation.annotator import Click

SHAPE = (48, 64)
MODULE = model.Segmenter(8, 1, 1, 8, key_steps=1, value_steps=1)


@functools.cache
def parameters():
  clicks = model.Clicks(np.zeros((1, 6, 2), np.int32), np.zeros((1, 6), np.int32))
  shapes = jax.eval_shape(
    MODULE.init, jax.random.key(0), np.zeros((1, *SHAPE, 3), np.float32), clicks
  )
  random = np.random.RandomState(0)  # zero layers would hide what is wrong
  return jax.tree.map(lambda x: (0.4 * random.randn(*x.shape)).astype(np.float32), shapes)


def image(shape=(*SHAPE, 3), seed=0):
  return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)


def start(picture=None, arm='both'):
  return session.Session(
    MODULE, parameters(), image() if picture is None else picture, size=64, slots=6, arm=arm
  )


class DataTest(parameterized.TestCase):
  def test_images_of_any_kind_are_rgb(self):
    grey = image((5, 7))
    for other in (
      grey,
      grey[..., None],
      np.dstack([grey] * 3),
      np.dstack([grey] * 3 + [0 * grey]),
      grey.astype(np.float32) / 255,
    ):
      np.testing.assert_array_equal(data.rgb(other), np.dstack([grey] * 3))

  @parameterized.parameters(
    (np.full((2, 2), np.nan), 'the image has 4 pixels that are not finite'),
    (np.full((2, 2), 3.0), r'a float image must be in \[0, 1\], got 3 to 3'),
    (np.zeros((2, 2), np.int64), 'an image must be uint8, or float in .*, got int64'),
    (np.zeros((2, 2, 5), np.uint8), r'an image of shape \(2, 2, 5\) cannot be segmented'),
    (np.zeros((0, 2, 3), np.uint8), r'an image of shape \(0, 2, 3\) cannot be segmented'),
  )
  def test_bad_images(self, bad, message):
    with self.assertRaisesRegex(UserError, message):
      data.rgb(bad)

  def test_digit_scenes(self):
    scenes = data.load(specs.Data())
    self.assertEqual([len(part) for part in scenes], [400, 60, 100])
    scene = scenes.test[0]
    self.assertEqual((scene.image.shape, scene.image.dtype), ((96, 96, 3), np.uint8))
    for number in range(len(scene.objects)):
      self.assertBetween((scene.mask(number) == data.OBJECT).mean(), data.LEAST, data.MOST)
    np.testing.assert_array_equal(scene.image, data.load(specs.Data()).test[0].image)

  def test_bsds_layout(self):
    root = self.create_tempdir().full_path
    for split in ('train', 'val', 'test'):
      for part in ('images', 'segmentations'):
        os.makedirs(os.path.join(root, split, part))
      Image.fromarray(image()).save(os.path.join(root, split, 'images', '12.jpg'))
      labels = np.zeros(SHAPE, np.uint8)
      labels[:24], labels[0, 0] = 1, 2  # half, a single pixel, the rest
      for annotator_ in '12':
        Image.fromarray(labels).save(
          os.path.join(root, split, 'segmentations', f'12_{annotator_}.png')
        )
    scene = data.load(specs.Data(path=root)).val[0]
    self.assertEqual(scene.objects, ((0, 0), (0, 1), (1, 0), (1, 1)))
    self.assertEqual((scene.mask(1) == data.OBJECT).sum(), 24 * 64 - 1)
    with self.assertRaisesRegex(UserError, 'no images with segmentations in .*none/train'):
      data.load(specs.Data(path='none'))

  def test_folder(self):
    images, masks = self.create_tempdir().full_path, self.create_tempdir().full_path
    mask = np.zeros((9, 30), np.uint8)
    mask[2:5, 4:8], mask[0] = 255, 128
    Image.fromarray(image((9, 30, 4))).save(os.path.join(images, 'a.png'))
    with self.assertRaisesRegex(UserError, 'a.png has no mask a.png in data.masks'):
      data.folder(images, masks)
    Image.fromarray(mask).save(os.path.join(masks, 'a.png'))
    found = data.folder(images, masks)[0].mask(0)
    self.assertEqual(
      [(found == value).sum() for value in (data.BACKGROUND, data.OBJECT, data.IGNORE)],
      [270 - 12 - 30, 12, 30],
    )
    for bad, message in (
      (mask[:, :20], 'a.png is 30 x 9, its mask 20 x 9; they must agree'),
      (mask // 2, r'has the values \[64, 127\]; valid: 0'),
      (0 * mask, 'is empty; valid: 0'),
    ):
      Image.fromarray(bad).save(os.path.join(masks, 'a.png'))
      with self.assertRaisesRegex(UserError, message):
        data.folder(images, masks)
    with self.assertRaisesRegex(UserError, 'data.images and data.masks go together'):
      data.load(specs.Data(images=images))

  def test_crops_show_some_of_the_object(self):
    scene, random = data.load(specs.Data()).train[0], np.random.RandomState(0)
    for _ in range(10):
      piece, mask = data.crop(scene, 0, (32, 48), random)
      self.assertEqual((piece.shape, mask.shape), ((32, 48, 3), (32, 48)))
      self.assertTrue((mask == data.OBJECT).any())


class AnnotatorTest(parameterized.TestCase):
  def test_clicks_the_centre_of_the_largest_error(self):
    mask = np.zeros((20, 30), np.uint8)
    mask[2:9, 3:10] = data.OBJECT
    self.assertEqual(annotator.next_click(mask, np.zeros(mask.shape, bool), []), Click(5, 6, True))
    wrong = mask == data.OBJECT
    wrong[9:20, 15:26] = True  # a larger region that is too much
    self.assertEqual(annotator.next_click(mask, wrong, []), Click(14, 20, False))
    mask[9:20, 15:26] = data.IGNORE
    self.assertIsNone(annotator.next_click(mask, wrong, []))

  def test_never_clicks_a_pixel_twice(self):
    mask = np.zeros((5, 5), np.uint8)
    mask[2, 2] = data.OBJECT
    self.assertIsNone(annotator.next_click(mask, np.zeros(mask.shape, bool), [Click(2, 2, True)]))

  @settings(max_examples=20)
  @given(strategies.integers(0, 2**31), strategies.integers(1, 8))
  def test_clicks_to_train_with_are_right(self, seed, count):
    random = np.random.RandomState(seed)
    mask = (random.rand(12, 16) < 0.3).astype(np.uint8)
    mask[0, 0] = data.OBJECT
    for click in annotator.first_clicks(mask, count, random):
      self.assertEqual(click.positive, mask[click.row, click.column] == data.OBJECT)


class MetricsTest(absltest.TestCase):
  def test_iou(self):
    mask = np.array([[1, 1, 0, 2]], np.uint8)
    self.assertEqual(metrics.iou(np.array([[True, False, True, True]]), mask), 1 / 3)
    self.assertEqual(metrics.iou(mask == 1, mask), 1)

  def test_summary(self):
    curves = np.array([[0.2, 0.86, 0.95], [0.1, 0.2, 0.3]])
    np.testing.assert_array_equal(metrics.clicks_needed(curves, 0.85), [2, 3])
    found = metrics.summary(curves, np.arange(2))
    self.assertEqual(
      {name: found[name].value for name in ('IoU@1', 'IoU@3', 'NoC@85', 'NoC@90', 'failures@90')},
      {
        'IoU@1': 0.15000000000000002,
        'IoU@3': 0.625,
        'NoC@85': 2.5,
        'NoC@90': 3,
        'failures@90': 0.5,
      },
    )
    self.assertGreater(found['IoU@3'].high - found['IoU@3'].low, 0.5)  # two objects say little

  def test_differences_are_paired(self):
    curves = np.random.RandomState(0).rand(50, 20)
    found = metrics.differences(curves + 0.1, curves, np.arange(50))
    self.assertAlmostEqual(found['IoU@5'].value, 0.1)
    self.assertAlmostEqual(found['IoU@5'].half, 0)
    other = metrics.differences(curves, curves[::-1], np.arange(50))['IoU@5']
    self.assertGreater(other.half, 0.05)
    self.assertAlmostEqual(
      metrics.differences(curves, np.zeros_like(curves), np.arange(50))['NoC@85'].value,
      metrics.summary(curves, np.arange(50))['NoC@85'].value - 20,
    )

  def test_objects_of_one_image_are_one_sample(self):
    curves, images = np.random.RandomState(0).rand(50, 20), np.arange(50)
    once = metrics.summary(curves, images)['IoU@5']
    twice = metrics.summary(np.repeat(curves, 2, 0), np.repeat(images, 2))['IoU@5']
    self.assertAlmostEqual(once.value, twice.value)
    self.assertAlmostEqual(once.half, twice.half)


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
    np.testing.assert_array_equal(read[0, 20 // 4, 30 // 4], labels[data.OBJECT])
    np.testing.assert_array_equal(read[0, 40 // 4, 8 // 4], labels[data.BACKGROUND])
    self.assertGreater(
      float(np.abs(read[0, 0, 0] - labels[data.BACKGROUND]).max()), 1e-3
    )  # the unused slots hold nothing

  def test_drawn_clicks(self):
    found = model.draw(model.Clicks(np.array([[[3, 4], [9, 9]]]), np.array([[1, -1]])), (12, 16))
    self.assertEqual(tuple(np.unravel_index(np.argmax(found[0, ..., 1]), (12, 16))), (3, 4))
    self.assertEqual(float(found[..., 0].max()), 0)
    self.assertEqual(float(found[0, 9, 9, 1]), 0)


class GrabCutTest(absltest.TestCase):
  @absltest.skipUnless(grabcut.available(), 'OpenCV is optional')
  def test_separates_two_colours(self):
    picture = np.full((40, 60, 3), 30, np.uint8)
    picture[10:30, 15:35] = (200, 40, 40)
    picture = np.clip(
      picture + np.random.RandomState(0).randint(-8, 8, picture.shape), 0, 255
    ).astype(np.uint8)
    found = grabcut.segment(picture, [Click(20, 25, True), Click(5, 50, False)])
    self.assertGreater(
      metrics.iou(found, np.pad(np.ones((20, 20), np.uint8), ((10, 10), (15, 25)))), 0.9
    )


if __name__ == '__main__':
  absltest.main()
