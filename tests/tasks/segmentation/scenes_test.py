"""Scenes: digit scenes, BSDS500, folders of one's own; files of every kind."""

import os

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image
from scipy import io

from gmm_diffusion import specs
from gmm_diffusion.errors import UserError
from gmm_diffusion.tasks.segmentation import scenes

SHAPE = (48, 64)


def image(shape=(*SHAPE, 3), seed=0):
  return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)


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
      np.testing.assert_array_equal(scenes.rgb(other), np.dstack([grey] * 3))

  @parameterized.parameters(
    (np.full((2, 2), np.nan), 'the image has 4 pixels that are not finite'),
    (np.full((2, 2), 3.0), r'a float image must be in \[0, 1\], got 3 to 3'),
    (np.zeros((2, 2), np.int64), 'an image must be uint8, or float in .*, got int64'),
    (np.zeros((2, 2, 5), np.uint8), r'an image of shape \(2, 2, 5\) cannot be segmented'),
    (np.zeros((0, 2, 3), np.uint8), r'an image of shape \(0, 2, 3\) cannot be segmented'),
  )
  def test_bad_images(self, bad, message):
    with self.assertRaisesRegex(UserError, message):
      scenes.rgb(bad)

  def test_digit_scenes(self):
    found = scenes.load(specs.Data())
    self.assertEqual([len(part) for part in found], [400, 60, 100])
    scene = found.test[0]
    self.assertEqual((scene.image.shape, scene.image.dtype), ((96, 96, 3), np.uint8))
    for number in range(len(scene.objects)):
      self.assertBetween((scene.mask(number) == scenes.OBJECT).mean(), scenes.LEAST, scenes.MOST)
    np.testing.assert_array_equal(scene.image, scenes.load(specs.Data()).test[0].image)

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
    scene = scenes.load(specs.Data(path=root)).val[0]
    self.assertEqual(scene.objects, ((0, 0), (0, 1), (1, 0), (1, 1)))
    self.assertEqual((scene.mask(1) == scenes.OBJECT).sum(), 24 * 64 - 1)
    with self.assertRaisesRegex(
      UserError,
      "for 'train' in none; .*BSDS500/data with images/train/ID.jpg.*or hold train/images",
    ):
      scenes.load(specs.Data(path='none'))

  def downloaded(self, split='test'):
    """BSR of one image with two annotators, and its .mat."""
    root = self.create_tempdir().full_path
    images, truth = (
      os.path.join(root, 'BSDS500', 'data', part, split) for part in ('images', 'groundTruth')
    )
    os.makedirs(images)
    os.makedirs(truth)
    Image.fromarray(image()).save(os.path.join(images, '12.jpg'))
    with open(os.path.join(images, 'Thumbs.db'), 'wb') as file:
      file.write(b'which the download has too')
    entries = np.empty((1, 2), object)
    for number, (label, rows) in enumerate([(1, 24), (300, 12)]):
      labels = np.full(SHAPE, 2, np.uint16)
      labels[:rows] = label
      entries[0, number] = {'Segmentation': labels, 'Boundaries': labels == 2}
    path = os.path.join(truth, '12.mat')
    io.savemat(path, {'groundTruth': entries}, do_compression=True)
    return root, path

  def test_bsds_as_downloaded(self):
    root, _ = self.downloaded()
    for part in ('', 'BSDS500', 'BSDS500/data'):
      scene = scenes.load(specs.Data(path=os.path.join(root, part)), ('test',)).test[0]
      self.assertEqual(scene.objects, ((0, 1), (0, 2), (1, 300)))
      self.assertEqual((scene.mask(2) == scenes.OBJECT).sum(), 12 * 64)
      self.assertEqual((scene.name, scene.maps.dtype), ('12', np.uint16))

  @parameterized.parameters(
    ('half', r"12.mat': .*; download BSDS500 again"),
    ('empty', r"12.mat': .*; download BSDS500 again"),
    ('text', r"12.mat': .*; download BSDS500 again"),
    ('other variable', r"12.mat': KeyError: 'groundTruth'; download BSDS500 again"),
    ('other field', r"12.mat': .*; download BSDS500 again"),
    ('floats', r'holds a segmentation float64 \[48, 64\]; valid: uint16 \[height, width\]'),
  )
  def test_damaged_mat(self, how, message):
    root, path = self.downloaded()
    with open(path, 'rb') as file:
      whole = file.read()
    entries = np.empty((1, 1), object)
    entries[0, 0] = {'Labels' if how == 'other field' else 'Segmentation': np.ones(SHAPE)}
    if how in ('other field', 'floats'):
      io.savemat(path, {'groundTruth': entries})
    elif how == 'other variable':
      io.savemat(path, {'truth': entries})
    else:
      with open(path, 'wb') as file:
        file.write({'half': whole[: len(whole) // 2], 'empty': b'', 'text': b'no .mat'}[how])
    with self.assertRaisesRegex(UserError, message) as caught:
      scenes.load(specs.Data(path=root), ('test',))
    self.assertNotIn('\n', str(caught.exception))

  def test_any_flipped_bytes_of_a_mat(self):
    root, path = self.downloaded()
    whole, random = np.fromfile(path, np.uint8), np.random.RandomState(0)
    for _ in range(100):
      flipped = whole.copy()
      flipped[random.randint(136, len(whole), size=3)] ^= random.randint(1, 256, 3).astype(np.uint8)
      flipped.tofile(path)
      with self.assertRaisesRegex(UserError, 'while decompressing'):  # scipy may crash
        scenes.load(specs.Data(path=root), ('test',))

  def test_folder(self):
    images, masks = self.create_tempdir().full_path, self.create_tempdir().full_path
    mask = np.zeros((9, 30), np.uint8)
    mask[2:5, 4:8], mask[0] = 255, 128
    Image.fromarray(image((9, 30, 4))).save(os.path.join(images, 'a.png'))
    with self.assertRaisesRegex(UserError, 'a.png has no mask a.png in data.masks'):
      scenes.folder(images, masks)
    Image.fromarray(mask).save(os.path.join(masks, 'a.png'))
    found = scenes.folder(images, masks)[0].mask(0)
    self.assertEqual(
      [(found == value).sum() for value in (scenes.BACKGROUND, scenes.OBJECT, scenes.IGNORE)],
      [270 - 12 - 30, 12, 30],
    )
    for bad, message in (
      (mask[:, :20], 'a.png is 30 x 9, its mask 20 x 9; they must agree'),
      (mask // 2, r'has the values \[64, 127\]; valid: 0'),
      (0 * mask, 'is empty; valid: 0'),
    ):
      Image.fromarray(bad).save(os.path.join(masks, 'a.png'))
      with self.assertRaisesRegex(UserError, message):
        scenes.folder(images, masks)
    with self.assertRaisesRegex(UserError, 'data.images and data.masks go together'):
      scenes.load(specs.Data(images=images))

  def test_crops_show_some_of_the_object(self):
    random, numbers = np.random.RandomState(0), (0, 1, 0)
    scene = next(s for s in scenes.load(specs.Data()).train if len(s.objects) > 1)
    for _ in range(10):
      piece, masks = scenes.crop(scene, numbers, (32, 48), random)
      self.assertEqual((piece.shape, masks.shape), ((32, 48, 3), (3, 32, 48)))
      self.assertTrue((masks == scenes.OBJECT).any((1, 2)).all())
      np.testing.assert_array_equal(masks[0], masks[2])

  def test_crops_cut_images_and_masks_alike(self):
    image = np.zeros((60, 90, 3), np.uint8)
    image[20:40, 30:60] = 200
    maps = (image[None, ..., 0] > 0).astype(np.uint8)
    scene, random = scenes.Scene('', image, maps, ((0, 1), (0, 7))), np.random.RandomState(0)
    for _ in range(20):
      piece, masks = scenes.crop(scene, (0, 1), (32, 48), random)
      rim = np.abs(piece[..., 0].astype(int) - 100) < 99  # blurred by scaling
      agree = (piece[..., 0] > 100) == (masks[0] == scenes.OBJECT)
      self.assertTrue((agree | rim).all())
      np.testing.assert_array_equal(masks[1], masks[0])  # there is no object of label 7


def damaged(path, how):
  """A PNG of 30 x 9 pixels with something wrong with it."""
  grey = image((9, 30))
  if how == 'animated':
    frames = [Image.fromarray(image((9, 30), seed)) for seed in (0, 1)]
    frames[0].save(path, 'GIF', save_all=True, append_images=frames[1:])
  elif how == '16 bits':
    Image.fromarray(grey.astype(np.uint16) * 257).save(path, 'PNG')
  elif how == 'floats':
    Image.fromarray(grey.astype(np.float32)).save(path, 'TIFF')
  elif how == 'a folder':
    os.mkdir(path)
  else:
    Image.fromarray(grey).save(path, 'PNG')
    with open(path, 'rb') as file:
      whole = file.read()
    with open(path, 'wb') as file:
      file.write(
        {
          'empty': b'',
          'half': whole[: len(whole) // 2],
          'text': b'not an image',
          'a broken chunk': whole.replace(b'IDAT', b'\0DAT'),
          'too many pixels': whole[:16] + b'\0\1\0\0' * 2 + whole[24:],
        }[how]
      )


def mask_file(path, how):
  """A mask of 30 x 9 pixels whose form is wrong."""
  mask = np.zeros((9, 30), np.uint8)
  mask[2:5, 4:8] = 255
  if how == '16 bits':
    Image.fromarray(mask.astype(np.uint16) * 4).save(path)
  elif how == 'palette':
    picture = Image.fromarray(mask // 255, 'P')
    picture.putpalette([0, 0, 0, 128, 0, 0])
    picture.save(path)
  elif how == 'red':
    Image.fromarray(np.dstack([mask, 0 * mask, 0 * mask])).save(path)
  elif how == 'alpha':
    Image.fromarray(np.dstack([0 * mask + 255] * 3 + [mask])).save(path)
  elif how == 'of another size':
    Image.fromarray(mask[:, :20]).save(path)
  elif how == 'twice':
    Image.fromarray(mask).save(path)
    Image.fromarray(mask).save(path.replace('png', 'bmp'))


class FilesTest(parameterized.TestCase):
  def folders(self):
    """(images, masks) of one image a.png and its mask."""
    images, masks = self.create_tempdir().full_path, self.create_tempdir().full_path
    mask = np.zeros((9, 30), np.uint8)
    mask[2:5, 4:8] = 255
    Image.fromarray(image((9, 30, 3))).save(os.path.join(images, 'a.png'))
    Image.fromarray(mask).save(os.path.join(masks, 'a.png'))
    return images, masks

  def assert_one_line(self, message, images, masks):
    with self.assertRaisesRegex(UserError, message) as caught:
      scenes.folder(images, masks)
    self.assertNotIn('\n', str(caught.exception))
    self.assertRegex(str(caught.exception), r'\.png|\.bmp')

  @parameterized.product(
    of=('image', 'mask'),
    case=(
      ('animated', 'has 2 pictures; give a file with one'),
      ('16 bits', "of mode 'I;16'.*valid: "),
      ('floats', "of mode 'F'.*valid: "),
      ('a folder', 'cannot read image .*repair or remove it'),
      ('empty', 'cannot read image .*repair or remove it'),
      ('half', 'cannot read image .*repair or remove it'),
      ('text', 'cannot read image .*repair or remove it'),
      ('a broken chunk', 'cannot read image .*repair or remove it'),
      ('too many pixels', 'cannot read image .*repair or remove it'),
    ),
  )
  def test_damaged(self, of, case):
    images, masks = self.folders()
    path = os.path.join(images if of == 'image' else masks, 'a.png')
    os.remove(path)
    damaged(path, case[0])
    self.assert_one_line(case[1], images, masks)

  @parameterized.parameters(
    ('16 bits', "is of mode 'I;16'; valid: 8 bits with 0 background, 255 object, 128 ignored"),
    ('palette', r'has the values \[38\] \(the greys of its colours\); valid: 0 background'),
    ('red', r'has the values \[76\] \(the greys of its colours\); valid: 0 background'),
    ('alpha', 'is transparent in parts; save it without'),
    ('of another size', 'is 30 x 9, its mask 20 x 9; they must agree'),
    ('twice', 'holds a.bmp and a.png; keep one'),
    ('missing', 'has no mask a.png in data.masks'),
  )
  def test_masks_of_another_form(self, how, message):
    images, masks = self.folders()
    os.remove(os.path.join(masks, 'a.png'))
    mask_file(os.path.join(masks, 'a.png'), how)
    self.assert_one_line(message, images, masks)

  def test_any_flipped_bytes(self):
    images, masks = self.folders()
    path, random = os.path.join(masks, 'a.png'), np.random.RandomState(0)
    with open(path, 'rb') as file:
      whole = np.frombuffer(file.read(), np.uint8)
    for _ in range(200):
      flipped = whole.copy()
      flipped[random.randint(len(whole), size=3)] ^= random.randint(1, 256, 3).astype(np.uint8)
      flipped.tofile(path)
      try:
        scenes.folder(images, masks)
      except UserError as error:
        self.assertNotIn('\n', str(error))

  def test_photographs_stand_upright(self):
    images, masks = self.folders()
    picture = Image.open(os.path.join(images, 'a.png'))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    picture.transpose(Image.ROTATE_90).save(os.path.join(images, 'a.png'), exif=exif)
    np.testing.assert_array_equal(scenes.folder(images, masks)[0].image, picture)

  def test_hidden_files_and_folders_with_brackets(self):
    images, masks = self.folders()
    os.rename(images, images + '[1]')
    with open(os.path.join(images + '[1]', '._a.png'), 'wb') as file:
      file.write(b'what some systems leave beside a file')
    self.assertEqual([scene.name for scene in scenes.folder(images + '[1]', masks)], ['a'])

  def test_label_maps_are_numbers(self):
    root = self.create_tempdir().full_path
    for part in ('images', 'segmentations'):
      os.makedirs(os.path.join(root, 'test', part))
    Image.fromarray(image()).save(os.path.join(root, 'test', 'images', '7.jpg'))
    labels = np.zeros(SHAPE, np.uint16)
    labels[:24] = 300
    Image.fromarray(labels).save(os.path.join(root, 'test', 'segmentations', '7_1.png'))
    palette = Image.fromarray((labels > 0).astype(np.uint8), 'P')
    palette.putpalette([9, 9, 9, 9, 9, 9])  # one colour for both labels
    palette.save(os.path.join(root, 'test', 'segmentations', '7_2.png'))
    found = scenes.load(specs.Data(path=root), ('test',))
    self.assertEqual(found.test[0].objects, ((0, 0), (0, 300), (1, 0), (1, 1)))
    self.assertEqual(found.train, ())

  def test_a_split_that_the_images_do_not_replace(self):
    images, masks = self.folders()
    with self.assertRaisesRegex(UserError, 'data.split must be test, got val'):
      scenes.load(specs.Data(images=images, masks=masks, split='val'))


if __name__ == '__main__':
  absltest.main()
