"""Folders of images: what becomes of sizes, modes, classes and splits, and what is refused."""

import os

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from gmm_diffusion import specs
from gmm_diffusion.data import folders, sources, streams
from gmm_diffusion.errors import UserError

RED, GREEN = (255, 0, 0), (0, 255, 0)


def save(folder, name, colour=RED, size=(4, 4), mode='RGB', **options):
  path = os.path.join(folder, name)
  os.makedirs(os.path.dirname(path), exist_ok=True)
  Image.new(mode, size, colour).save(path, **options)
  return path


class FoldersTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = self.create_tempdir().full_path

  def load(self, **options):
    return sources.load(specs.Data('folder', path=self.root, **options))

  def assertRefused(self, message, **options):
    with self.assertRaisesRegex(UserError, message) as caught:
      self.load(**options)
    self.assertNotIn('\n', str(caught.exception))

  def test_resize_covers_and_crops_the_centre(self):
    stripes = np.zeros((8, 24, 3), np.uint8)
    stripes[:, 8:16] = GREEN
    Image.fromarray(stripes).save(os.path.join(self.root, 'a.png'))
    data = self.load(size=4)
    self.assertEqual((data.train.shape, data.train.dtype), ((1, 4, 4, 3), np.uint8))
    # the middle third is kept; the filter sees a little of its neighbours at the edges
    np.testing.assert_array_equal(data.train[0, :, 1:3], np.broadcast_to(GREEN, (4, 2, 3)))

  def test_an_image_of_the_right_size_is_kept_as_it_is(self):
    pixels = np.random.RandomState(0).randint(0, 256, (4, 4, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(os.path.join(self.root, 'a.PNG'))
    for size in (0, 4):
      np.testing.assert_array_equal(self.load(size=size).train, pixels[None])

  @parameterized.parameters(
    ('L', 77, {}, [77, 77, 77]),
    ('RGBA', (0, 0, 0, 0), {}, [255, 255, 255]),
    ('RGBA', (9, 9, 9, 255), {}, [9, 9, 9]),
    ('LA', (5, 255), {}, [5, 5, 5]),
    ('P', 0, {}, [0, 0, 0]),
    ('I;16', 256 * 200 + 7, {}, [200, 200, 200]),
    ('1', 1, {}, [255, 255, 255]),
  )
  def test_modes(self, mode, colour, options, expected):
    save(self.root, 'a.png', colour, mode=mode, **options)
    save(self.root, 'b.png')  # modes may differ from file to file
    np.testing.assert_array_equal(self.load().train[0, 0, 0], expected)

  def test_kinds_of_files(self):
    for name in ('a.png', 'b.jpg', 'c.jpeg', 'deep/er/d.webp', 'E.WEBP'):
      save(self.root, name, (200, 100, 50))
    images = self.load(labels='none').train
    self.assertEqual(images.shape, (5, 4, 4, 3))
    np.testing.assert_allclose(images[:, 0, 0].astype(int), [[200, 100, 50]] * 5, atol=4)

  def test_grey(self):
    save(self.root, 'a.png', (100, 100, 100))
    self.assertEqual(self.load(colour='grey').train.tolist(), np.full((1, 4, 4, 1), 100).tolist())

  def test_turned_upright(self):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(self.root, 'a.jpg', size=(4, 8), exif=exif)
    self.assertEqual(self.load().shape, (4, 8, 3))

  def test_classes_are_folders(self):
    for name in ('10/x/a.png', '9/b.png', '10/c.png', '9/notes.txt'):
      if name.endswith('png'):
        save(self.root, name)
    data = self.load()
    self.assertEqual((data.names, data.train_labels.tolist()), (('9', '10'), [1, 1, 0]))
    self.assertEqual(self.load(labels='none').classes, 0)

  @parameterized.parameters(('all/a.png', 'all/b.png'), ('a.png', 'b.png'))
  def test_one_class_is_none(self, *names):
    for name in names:
      save(self.root, name)
    data = self.load()
    self.assertEqual((data.classes, data.train_labels.tolist()), (0, [0, 0]))

  def test_train_and_test(self):
    for name in ('train/cat/a.png', 'train/dog/b.png', 'test/dog/c.png'):
      save(self.root, name)
    data = self.load(held_out=0.5)
    self.assertEqual(data.names, ('cat', 'dog'))
    self.assertEqual((data.train_labels.tolist(), data.test_labels.tolist()), ([0, 1], [1]))

  def test_held_out(self):
    for i in range(8):
      save(self.root, f'{i}.png', (i, i, i))
    data = self.load(held_out=0.25)
    self.assertEqual((len(data.train), len(data.test)), (6, 2))
    values = np.concatenate([data.train, data.test])[:, 0, 0, 0]
    self.assertEqual(sorted(values.tolist()), list(range(8)))
    np.testing.assert_array_equal(data.test, self.load(held_out=0.25).test)

  def test_a_stream_has_the_same_images(self):
    for i in range(6):
      save(self.root, f'{"ab"[i % 2]}/{i}.png', (i, i, i))
    data, streamed = (self.load(held_out=0.3, limit=3, stream=stream) for stream in (False, True))
    self.assertIsInstance(streamed.train, streams.Stream)
    for one, other in zip(data, streamed):
      if isinstance(one, np.ndarray):
        np.testing.assert_array_equal(one, np.asarray(other))

  def test_a_csv_of_labels(self):
    save(self.root, 'a.png')
    save(self.root, 'x/b.png')
    path = os.path.join(self.create_tempdir().full_path, 'labels.csv')

    def write(text):
      with open(path, 'w', encoding='utf-8') as file:
        file.write(text)

    write('file,label,more\nx/b.png,cat,1\na.png,dog,2\n')
    data = self.load(labels=path)
    self.assertEqual((data.names, data.train_labels.tolist()), (('cat', 'dog'), [1, 0]))
    write('\ufefffile,label\nx/b.png,cat\na.png,dog\na.png,dog\n,\n,x\n')  # as Excel begins a file
    self.assertEqual(self.load(labels=path).train_labels.tolist(), [1, 0])
    write('file,label\na.png,dog\nx/b.png,cat\n./a.png,cat\n')
    self.assertRefused("two labels for a.png: 'dog' and 'cat'; keep one", labels=path)
    write('file,label\na.png,dog\nx/b.png,\n')
    self.assertRefused('labels.csv has no label for x/b.png; add a row', labels=path)
    write('name,class\n')
    self.assertRefused("is 'name,class'; it must name the columns file,label", labels=path)
    self.assertRefused("cannot read data.labels '/no.csv' .FileNotFoundError", labels='/no.csv')

  def test_refused(self):
    self.assertRefused('no images in .*; valid: .png, .jpg, .jpeg, .webp, at any depth')
    save(self.root, 'a.png')
    save(self.root, 'b/c.png', size=(4, 6))
    self.assertRefused('a.png lies in no folder that says its class, .*c.png does; move it')
    self.assertRefused('c.png is 4 x 6, and .*a.png is 4 x 4; set data.size', labels='none')
    self.assertEqual(self.load(labels='none', size=2).train.shape, (2, 2, 2, 3))
    with open(os.path.join(self.root, 'd.png'), 'wb') as file:
      file.write(b'\x89PNG no more')
    self.assertRefused(
      'cannot read image .*d.png .*data.skip_unreadable=True', labels='none', size=2
    )
    kept = self.load(labels='none', size=2, skip_unreadable=True)
    self.assertEqual((len(kept.train), len(kept.train_labels)), (2, 2))

  def test_no_folder(self):
    for path in ('', '/nowhere'):
      with self.assertRaisesRegex(UserError, f'there is no folder {path!r}; set data.path'):
        folders.load(specs.Data('folder', path=path))


if __name__ == '__main__':
  absltest.main()
