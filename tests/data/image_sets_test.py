"""Streams of stored images: the same pixels from every kind of store, and what is refused."""

import importlib.util
import os
import tracemalloc
import unittest
import zipfile

import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gmm_diffusion import files
from gmm_diffusion.data import image_sets
from gmm_diffusion.errors import UserError

MNIST = os.environ.get('GMM_DIFFUSION_TFDS', '')  # a folder with a prepared MNIST
HAS_TFDS = importlib.util.find_spec('tensorflow_datasets') is not None
COLOUR = np.random.RandomState(0).randint(0, 256, (7, 4, 6, 3)).astype(np.uint8)


def save(folder, images, extension='.png'):
  """Images as files whose order by name is theirs."""
  for i, image in enumerate(images):
    path = os.path.join(folder, f'{"ab"[i // 5]}', f'{i}{extension}')
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(path, lossless=True)


class StoresTest(parameterized.TestCase):
  @parameterized.product(store=('folder', 'webp', 'npz', 'compressed', 'array'), channels=(1, 3))
  def test_the_same_pixels_in_order(self, store, channels):
    images, folder = COLOUR[..., :channels], self.create_tempdir().full_path
    if store in ('folder', 'webp'):
      if (store, channels) == ('webp', 1):
        self.skipTest('WebP has no grey')
      save(folder, images, '.png' if store == 'folder' else '.webp')
      with open(os.path.join(folder, 'notes.txt'), 'w') as file:
        file.write('not an image')
      found = image_sets.load(folder)
    elif store == 'array':
      found = image_sets.ArraySet(images, 'array')
    else:
      path = os.path.join(folder, 'x.npz')
      (np.savez if store == 'npz' else np.savez_compressed)(path, images, np.arange(7))
      found = image_sets.load(path)
      self.assertEqual(found.hash, files.fingerprint(images))
    self.assertEqual((len(found), found.shape), (7, (4, 6, channels)))
    for size in (1, 3, 7, 20):
      batches = list(found.batches(size))
      self.assertEqual(
        [len(batch) for batch in batches], [min(size, 7 - start) for start in range(0, 7, size)]
      )
      np.testing.assert_array_equal(np.concatenate(batches), images)
      self.assertEqual(batches[0].dtype, np.uint8)

  @settings(max_examples=15)
  @given(st.integers(0, 6), st.integers(0, 3), st.integers(0, 5), st.integers(1, 255))
  def test_hash_sees_every_pixel(self, i, row, column, change):
    other = COLOUR.copy()
    other[i, row, column, 1] ^= np.uint8(change)
    self.assertNotEqual(files.fingerprint(COLOUR), files.fingerprint(other))

  def test_hash_of_a_folder(self):
    hashes = []
    for images in (COLOUR, COLOUR, COLOUR[::-1], COLOUR[:6]):
      folder = self.create_tempdir().full_path
      save(folder, images)
      hashes.append(image_sets.load(folder).hash)
    self.assertEqual(hashes[0], hashes[1])
    self.assertLen(set(hashes), 3)

  def test_memory_does_not_grow(self):
    path = os.path.join(self.create_tempdir().full_path, 'x.npz')
    np.savez(path, np.zeros((4000, 32, 32, 3), np.uint8))  # 12 MB
    found = image_sets.load(path)
    tracemalloc.start()
    self.assertEqual(sum(len(batch) for batch in found.batches(10)), 4000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    self.assertLess(peak, 1e6)

  @unittest.skipUnless(MNIST and HAS_TFDS, 'GMM_DIFFUSION_TFDS names no folder with MNIST')
  def test_tfds(self):
    found = image_sets.load('tfds:mnist:test[:50]', MNIST)
    self.assertEqual((len(found), found.shape), (50, (28, 28, 1)))
    whole = np.concatenate(list(found.batches(50)))
    np.testing.assert_array_equal(np.concatenate(list(found.batches(20))), whole)
    self.assertEqual((whole.dtype, int(whole.max())), (np.uint8, 255))
    self.assertNotEqual(found.hash, image_sets.load('tfds:mnist:test[50:100]', MNIST).hash)


class RefusedTest(parameterized.TestCase):
  def assertRefused(self, message, path, **options):
    with self.assertRaisesRegex(UserError, message) as caught:
      list(image_sets.load(path, **options).batches(4))
    self.assertNotIn('\n', str(caught.exception))

  def test_folders(self):
    folder = self.create_tempdir().full_path
    self.assertRefused(r'no images in .*; valid: .png, .jpg, .jpeg, .webp, at any depth', folder)
    save(folder, COLOUR)
    Image.fromarray(COLOUR[0, ..., 0]).save(os.path.join(folder, 'c.png'))
    self.assertRefused(
      r'grey and colour images: a/0.png is RGB, c.png is L; convert them to one, such as RGB',
      folder,
    )
    Image.fromarray(COLOUR[0, :3]).save(os.path.join(folder, 'c.png'))
    self.assertRefused(
      r'images of several sizes: a/0.png is 6 x 4, c.png is 6 x 3; resize or crop them to one',
      folder,
    )
    Image.fromarray(COLOUR[0]).convert('RGBA').save(os.path.join(folder, 'c.png'))
    self.assertRefused(r"c.png in .* has mode 'RGBA'; valid: 'L', 'RGB'; convert", folder)

  @parameterized.parameters('head', 'pixels')
  def test_unreadable_image(self, where):
    folder = self.create_tempdir().full_path
    save(folder, COLOUR)
    bad = os.path.join(folder, 'a', '2.png')
    with open(bad, 'r+b') as file:
      if where == 'head':
        file.write(b'nothing')
      else:
        file.truncate(os.path.getsize(bad) - 40)
    self.assertRefused(
      r'cannot read image .*/a/2.png \(\w+\); repair or remove it, or set '
      r'evaluate.skip_unreadable=True',
      folder,
    )
    found = image_sets.load(folder, skip_unreadable=True)
    for _ in range(2):  # counted once
      np.testing.assert_array_equal(np.concatenate(list(found.batches(2))), np.delete(COLOUR, 2, 0))
    self.assertEqual(found.skipped, ['a/2.png'])
    for i in range(7):
      with open(os.path.join(folder, 'ab'[i // 5], f'{i}.png'), 'wb') as file:
        file.write(b'nothing')
    self.assertRefused('none of the 7 images in .* can be read', folder, skip_unreadable=True)

  @parameterized.parameters(
    (
      np.zeros((5, 4, 4, 3)),
      r'arr_0 of .* is float64 \[5, 4, 4, 3\]; valid: uint8 \[N, H, W, 1 or 3\] in 0..255 \(of '
      r'floats',
    ),
    (np.zeros((5, 4, 4, 3), np.int64), r'is int64 \[5, 4, 4, 3\]'),
    (np.zeros((5, 3, 4, 4), np.uint8), r'is uint8 \[5, 3, 4, 4\]'),
    (np.zeros((0, 4, 4, 3), np.uint8), r'is uint8 \[0, 4, 4, 3\]'),
    (np.zeros((5, 4, 4, 3), np.uint8, 'F'), r'valid: uint8'),
    (np.array([{'a': 1}], object), r'is object \[1\]'),
  )
  def test_arrays(self, array, message):
    path = os.path.join(self.create_tempdir().full_path, 'x.npz')
    np.savez(path, array)
    self.assertRefused(message, path)

  def test_files(self):
    folder = self.create_tempdir().full_path
    path = os.path.join(folder, 'x.npz')
    self.assertRefused(
      'there is nothing at .*x.npz; valid: a folder of images, an .npz, or tfds:NAME:SPLIT', path
    )
    np.savez(path, images=COLOUR)
    self.assertRefused('has no arr_0 but images; give an .npz with images uint8', path)
    with open(path, 'wb') as file:
      file.write(b'not an archive')
    self.assertRefused('cannot read the .npz .*x.npz: ', path)
    with zipfile.ZipFile(path, 'w') as archive:
      archive.writestr('arr_0.npy', b'not an array')
    self.assertRefused('cannot read an array in .*x.npz: ', path)
    self.assertRefused("'tfds:mnist' names no split; valid: tfds:NAME:SPLIT", 'tfds:mnist')

  def test_damaged_pixels(self):
    path = os.path.join(self.create_tempdir().full_path, 'x.npz')
    np.savez(path, COLOUR.repeat(100, 0))
    with open(path, 'r+b') as file:
      file.seek(-2000, os.SEEK_END)
      byte = file.read(1)
      file.seek(-2000, os.SEEK_END)
      file.write(bytes([byte[0] ^ 1]))
    self.assertRefused(r'cannot read rows \d+ to \d+ of .*x.npz: Bad CRC', path)

  def test_an_array_that_says_it_is_huge(self):
    path = os.path.join(self.create_tempdir().full_path, 'x.npz')
    for shape in ((10**15, 8, 8, 3), (10**30, 8, 8, 3), (-1, 8, 8, 3)):
      with zipfile.ZipFile(path, 'w') as archive, archive.open('arr_0.npy', 'w') as member:
        head = {'descr': '|u1', 'fortran_order': False, 'shape': shape}
        np.lib.format.write_array_header_1_0(member, head)
        member.write(bytes(100))
      self.assertRefused(
        r'cannot read an array in .*: arr_0.npy says that it is .* 100 bytes', path
      )

  @parameterized.parameters('cut', 'bytes', 'bits', 'spliced')
  def test_damage_of_any_kind_ends_in_one_line(self, how):
    path = os.path.join(self.create_tempdir().full_path, 'x.npz')
    random = np.random.RandomState(0)
    refused = 0
    for save in (np.savez, np.savez_compressed):
      save(path, COLOUR, np.arange(7))
      with open(path, 'rb') as file:
        whole = file.read()
      for _ in range(150):
        content, at = bytearray(whole), random.randint(len(whole))
        if how == 'cut':
          content = content[:at]
        elif how == 'bytes':
          content[at] = random.randint(256)
        elif how == 'bits':
          content[at] ^= 1 << random.randint(8)
        else:
          content[at : at + random.randint(1, 20)] = random.bytes(random.randint(1, 20))
        with open(path, 'wb') as file:
          file.write(content)
        try:
          list(image_sets.load(path).batches(4))
        except UserError as error:
          self.assertNotIn('\n', str(error))
          refused += 1
    self.assertGreater(refused, 50)


class OrientationTest(parameterized.TestCase):
  @parameterized.parameters(*range(1, 9))
  def test_photographs_stand_upright(self, orientation):
    folder = self.create_tempdir().full_path
    exif = Image.Exif()
    exif[0x0112] = orientation
    shown = np.zeros((8, 24, 3), np.uint8)  # bright at the top left, wider than high
    shown[:4, :12] = 200
    back = {1: 0, 2: 1, 3: 3, 4: 4, 5: 5, 6: 6, 7: 7, 8: 8}[orientation]
    stored = {
      0: shown,
      1: shown[:, ::-1],
      3: shown[::-1, ::-1],
      4: shown[::-1],
      5: shown.transpose(1, 0, 2),
      6: np.rot90(shown, 1),
      7: shown[::-1, ::-1].transpose(1, 0, 2),
      8: np.rot90(shown, 3),
    }[back]
    for name, options in (
      ('a.jpg', {'quality': 95}),
      ('b.png', {}),
      ('c.webp', {'lossless': True}),
    ):
      path = os.path.join(folder, name)
      Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, **options)
    found = image_sets.load(folder)
    self.assertEqual(found.shape, (8, 24, 3))
    np.testing.assert_allclose(np.concatenate(list(found.batches(2))), [shown] * 3, atol=60)

  def test_hash_of_a_folder_with_turned_images(self):
    # statistics that are kept under the hash of images as they lie would be those of other pixels
    folder, exif = self.create_tempdir().full_path, Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(COLOUR[0]).save(os.path.join(folder, 'a.png'), exif=exif)
    self.assertNotEqual(
      image_sets.load(folder).hash, image_sets._hash_files([os.path.join(folder, 'a.png')])
    )


if __name__ == '__main__':
  absltest.main()
