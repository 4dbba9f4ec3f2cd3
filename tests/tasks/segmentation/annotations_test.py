"""Clicks and masks in files, and segmentation from Python."""

import json
import os
import threading

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from gmm_diffusion.errors import UserError
from gmm_diffusion.tasks.segmentation import annotations, scenes, use
from helpers import segmenter

OBJECT = annotations.Stroke(((20, 30),), True)
BACKGROUND = annotations.Stroke(((5, 6), (5, 9)), False)


class AnnotationsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.images = self.create_tempdir().full_path
    self.folder = os.path.join(self.create_tempdir().full_path, 'annotations')
    for seed, name in enumerate(('a.png', 'b.jpg')):
      segmenter.write_image(os.path.join(self.images, name), seed=seed)

  def start(self):
    return annotations.Annotations(self.images, self.folder, segmenter.network())

  def add(self, known, *strokes, number=0):
    for stroke in strokes:
      version = known.state(number)['version']
      state = known.change(number, version, lambda record, s=stroke: annotations.added(record, s))
    return state

  def expected(self, strokes, number=0):
    image = scenes.open_image(os.path.join(self.images, ('a.png', 'b.jpg')[number]))
    return segmenter.network().session(image).replay(strokes)

  def test_every_click_is_on_disk_and_a_second_start_goes_on(self):
    known = self.start()
    state = self.add(known, OBJECT, BACKGROUND)
    again = self.start()  # as after kill -9: nothing was closed
    self.assertEqual(again.state(0), state)
    self.assertEqual(state['clicks'], 3)
    self.assertEqual([one['state'] for one in again.summary()], ['clicks', ''])
    version = state['version']
    for change, strokes in (
      (annotations.undone, [OBJECT]),
      (annotations.cleared, []),
      (annotations.cleared, []),  # a second one takes nothing away
      (annotations.undone, [OBJECT]),  # a reset is undone as well
      (annotations.undone, []),
    ):
      state = again.change(0, version, change)
      version = state['version']
      self.assertEqual(state['strokes'], [one._asdict() for one in strokes])
      self.assertEqual(self.start().state(0), state)

  def test_masks(self):
    known = self.start()
    state = self.add(known, OBJECT, BACKGROUND)
    state = known.save(0, state['version'])
    self.assertTrue(state['saved'])
    path = os.path.join(self.folder, 'a.png')
    mask = np.asarray(Image.open(path))
    np.testing.assert_array_equal(mask, 255 * self.expected([OBJECT, BACKGROUND]))
    os.remove(os.path.join(self.images, 'b.jpg'))
    self.assertLen(scenes.folder(self.images, self.folder), 1)  # as data.masks
    self.assertEqual([one['state'] for one in known.summary()], ['mask', ''])
    state = known.change(0, state['version'], annotations.undone)
    self.assertFalse(state['saved'])
    self.assertEqual([one['state'] for one in self.start().summary()], ['changed'])
    state = known.change(0, state['version'], annotations.undone)
    with self.assertRaisesRegex(UserError, 'the mask is empty; click on the object first'):
      known.save(0, state['version'])

  def test_images_do_not_mix_and_changes_from_old_versions_are_refused(self):
    known = self.start()
    first = known.state(0)['version']
    self.add(known, OBJECT)
    self.add(known, BACKGROUND, number=1)
    with self.assertRaises(annotations.Stale):
      known.change(0, first, annotations.undone)
    with self.assertRaises(annotations.Stale):
      known.save(0, first)
    self.assertEqual(known.state(0)['strokes'], [OBJECT._asdict()])
    self.assertEqual(known.state(1)['strokes'], [BACKGROUND._asdict()])

  def test_many_at_once(self):
    known = self.start()

    def click(column):
      number = column % 2
      while True:
        stroke = annotations.Stroke(((column, column),), True)
        try:
          version = known.state(number)['version']
          return known.change(number, version, lambda record: annotations.added(record, stroke))
        except annotations.Stale:
          pass

    threads = [threading.Thread(target=click, args=(column,)) for column in range(12)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    for number in (0, 1):
      columns = [one['pixels'][0][1] for one in self.start().state(number)['strokes']]
      self.assertCountEqual(columns, range(number, 12, 2))

  def test_nothing_changes_where_a_click_cannot_be_kept(self):
    known = self.start()
    state = self.add(known, OBJECT)
    outside = annotations.Stroke(((48, 0),), True)
    many = annotations.Stroke(tuple((9, column) for column in range(16)), True)
    state = self.add(known, *(annotations.Stroke(((9, n),), True) for n in range(50, 54)))
    for stroke, message in (
      (outside, 'outside the image'),
      (many, '21 clicks are more than the 20'),
    ):
      with self.assertRaisesRegex(UserError, message):
        self.add(known, stroke)
    os.rename(self.folder, self.folder + '2')
    with open(self.folder, 'wb'):  # a disk that cannot be written
      pass
    for change in (
      lambda: self.add(known, BACKGROUND),
      lambda: known.save(0, state['version']),
    ):
      with self.assertRaisesRegex(UserError, 'cannot write .*annotations/a.*; free space'):
        change()
    os.remove(self.folder)
    os.rename(self.folder + '2', self.folder)
    self.assertEqual(known.state(0), state)
    self.assertEqual(self.start().state(0), state)

  @parameterized.parameters(
    ('{', 'cannot read .*a.json'),
    ('[1]', 'a.json does not hold what this program writes there; remove the file'),
    ('{"strokes": 3}', 'a.json does not hold what this program writes there; remove the file'),
    (
      '{"strokes": [{"pixels": [[0, true]], "positive": 1}], "cleared": [], "saved": false, '
      '"height": 48, "width": 64}',
      'a.json does not hold what this program writes there; remove the file',
    ),
    (
      '{"strokes": [], "cleared": [], "saved": false, "height": 9, "width": 8}',
      'a.json are on an image of 8 x 9 pixels, and it has 64 x 48 now',
    ),
  )
  def test_files_that_are_not_ours(self, content, message):
    os.makedirs(self.folder)
    with open(os.path.join(self.folder, 'a.json'), 'w', encoding='utf-8') as file:
      file.write(content)
    known = self.start()
    with self.assertRaisesRegex(UserError, message) as caught:
      known.state(0)
    self.assertNotIn('\n', str(caught.exception))
    self.add(known, OBJECT, number=1)  # the others are not touched by it

  def test_links_that_lead_outside(self):
    outside = self.create_tempdir().full_path
    segmenter.write_image(os.path.join(outside, 'secret.png'))
    os.symlink(os.path.join(outside, 'secret.png'), os.path.join(self.images, 'c.png'))
    os.symlink(os.path.join(self.images, 'a.png'), os.path.join(self.images, 'd.png'))
    known = self.start()
    for read in (known.state, known.preview):
      with self.assertRaisesRegex(UserError, 'c.png is a link that leads out of'):
        read(2)
    self.assertEqual(known.state(3)['width'], 64)

  def test_large_images_are_shown_small_and_cut_at_full_size(self):
    segmenter.write_image(os.path.join(self.images, 'a.png'), (2000, 3000, 3))
    known = self.start()
    state = self.add(known, annotations.Stroke(((1999, 2999),), True))
    self.assertEqual(state['note'], '3000 x 2000 pixels are worked on as 64 x 43')
    known.save(0, state['version'])
    mask = np.asarray(Image.open(os.path.join(self.folder, 'a.png')))
    self.assertEqual((mask.shape, mask[1999, 2999]), ((2000, 3000), 255))
    path = os.path.join(self.create_tempdir().full_path, 'preview.jpg')
    with open(path, 'wb') as file:
      file.write(known.preview(0))
    self.assertEqual(Image.open(path).size, (1600, 1067))

  def test_no_images(self):
    with self.assertRaisesRegex(UserError, "no images in data.images 'nowhere'"):
      annotations.Annotations('nowhere', self.folder, segmenter.network())


class FromPythonTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.images, self.work = self.create_tempdir().full_path, self.create_tempdir().full_path
    self.path = os.path.join(self.images, 'a.png')
    segmenter.write_image(self.path)

  def test_one_image(self):
    network = segmenter.network()
    session = network.session(segmenter.image())
    session.click(20, 30, True)
    wanted = session.click(5, 6, False)
    clicks = [(20, 30, True), (5, 6, False)]
    np.testing.assert_array_equal(use.segment(self.path, clicks, network), wanted)
    np.testing.assert_array_equal(use.segment(segmenter.image(), clicks, network), wanted)
    self.assertFalse(use.segment(self.path, [], network).any())
    for bad, message in (
      ([(1, 2)], r'clicks must be \(row, column, whether it is the object\), or the path'),
      (3, 'clicks must be'),
      ('nothing.json', 'there is no nothing.json'),
    ):
      with self.assertRaisesRegex(UserError, message):
        use.segment(self.path, bad, network)

  def test_saved_clicks_again(self):
    network, clicks = segmenter.network(), os.path.join(self.work, 'annotations')
    masks = os.path.join(self.work, 'masks')
    known = annotations.Annotations(self.images, clicks, network)
    version = known.state(0)['version']
    known.change(0, version, lambda record: annotations.added(record, OBJECT))
    wanted = use.segment(self.path, os.path.join(clicks, 'a.json'), network)
    np.testing.assert_array_equal(wanted, use.segment(self.path, [(20, 30, True)], network))
    self.assertEqual(use.segment_folder(self.images, clicks, network, masks), ['a'])
    np.testing.assert_array_equal(Image.open(os.path.join(masks, 'a.png')), 255 * wanted)
    os.rename(self.path, os.path.join(self.images, 'b.png'))
    with self.assertRaisesRegex(UserError, 'a.json has no image a in'):
      use.segment_folder(self.images, clicks, network, masks)
    with self.assertRaisesRegex(UserError, 'no NAME.json with clicks in'):
      use.segment_folder(self.images, self.images, network, masks)

  def test_workdirs_without_a_network(self):
    with self.assertRaisesRegex(UserError, 'holds no finished run'):
      use.segment(self.path, [(1, 2, True)], self.work)
    with open(os.path.join(self.work, 'config.json'), 'w', encoding='utf-8') as file:
      json.dump({'task': 'diffusion'}, file)
    with self.assertRaisesRegex(
      UserError, "is of task 'diffusion'; give the workdir of a training"
    ):
      use.segment(self.path, [(1, 2, True)], self.work)


if __name__ == '__main__':
  absltest.main()
