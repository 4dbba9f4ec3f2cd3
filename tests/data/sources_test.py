"""Data sets and the order in which training sees them."""

import importlib.util
import os
import unittest
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from gmm_diffusion import specs
from gmm_diffusion.data import base, npz, sources
from gmm_diffusion.errors import UserError

MNIST = os.environ.get('GMM_DIFFUSION_TFDS', '')  # a folder with a prepared MNIST
HAS_TFDS = importlib.util.find_spec('tensorflow_datasets') is not None


class SourcesTest(parameterized.TestCase):
  def test_digits(self):
    data = sources.load(specs.Data('digits'))
    self.assertEqual(
      (data.train.shape, data.test.shape, data.classes), ((1500, 8, 8, 1), (297, 8, 8, 1), 10)
    )
    self.assertEqual((data.train.dtype, int(data.train.max())), (np.uint8, 255))
    self.assertEqual(set(data.train_labels.tolist()), set(range(10)))
    again = sources.load(specs.Data('digits'))
    np.testing.assert_array_equal(data.train, again.train)

  def test_toy_points_follow_the_mixture(self):
    data = sources.load(specs.Data('toy'))
    means, variances = data.mixture
    for k in range(8):  # about 500 points each: 6 standard errors
      points = data.train[data.train_labels == k]
      np.testing.assert_allclose(
        points.mean(0), means[k], atol=6 * np.sqrt(variances[k] / len(points))
      )
    self.assertFalse(data.is_image)

  def test_ranges_round_trip(self):
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    x = base.to_model(every)
    self.assertEqual((float(x.min()), float(x.max())), (-1, 1))
    np.testing.assert_array_equal(base.to_image(x), every)
    np.testing.assert_array_equal(base.to_image(np.array([-3.0, 3.0])), [0, 255])

  @settings(deadline=None)
  @given(st.integers(0, 5), st.integers(1, 40), st.integers(1, 100))
  def test_every_epoch_is_a_permutation(self, seed, size, batch):
    steps = -(-3 * size // batch)
    order = np.concatenate([base.batch_indices(seed, step, size, batch) for step in range(steps)])
    for epoch in range(3):
      self.assertEqual(sorted(order[epoch * size : (epoch + 1) * size].tolist()), list(range(size)))

  def test_order_depends_on_seed_and_epoch(self):
    first = base.batch_indices(0, 0, 100, 100)
    self.assertFalse(np.array_equal(first, base.batch_indices(1, 0, 100, 100)))
    self.assertFalse(np.array_equal(first, base.batch_indices(0, 1, 100, 100)))


class TfdsTest(absltest.TestCase):
  @unittest.skipIf(HAS_TFDS, 'tensorflow-datasets is installed')
  def test_without_the_extra_says_what_to_install(self):
    with self.assertRaisesRegex(
      UserError, r"reading 'mnist' needs tensorflow-datasets .*pip install -e '.\[tfds\]'"
    ):
      sources.load(specs.Data('tfds', 'mnist', MNIST))

  @unittest.skipUnless(HAS_TFDS, 'needs the extra tfds')
  def test_missing_folder(self):
    with self.assertRaisesRegex(UserError, "cannot read 'mnist' from data.path '/nowhere'"):
      sources.load(specs.Data('tfds', 'mnist', '/nowhere'))

  @unittest.skipUnless(
    HAS_TFDS and os.path.isdir(MNIST), 'needs the extra tfds and a prepared MNIST'
  )
  def test_mnist(self):
    data = sources.load(specs.Data('tfds', 'mnist', MNIST))
    self.assertEqual(
      (data.train.shape, data.test.shape, data.classes),
      ((60000, 28, 28, 1), (10000, 28, 28, 1), 10),
    )
    self.assertAlmostEqual(data.train.mean(), 33.318, delta=0.001)
    streamed = sources.load(specs.Data('tfds', 'mnist', MNIST, stream=True))
    some = np.array([59999, 0, 7])
    np.testing.assert_array_equal(streamed.train_labels[some[:1]], data.train_labels[some[:1]])
    np.testing.assert_array_equal(streamed.train[some], data.train[some])
    np.testing.assert_array_equal(streamed.train_labels[some], data.train_labels[some])
    self.assertEqual(
      np.bincount(data.train_labels).tolist(),
      [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
    )


class FakeTfdsTest(parameterized.TestCase):
  def load(self, splits, features, **options):
    module = mock.MagicMock()
    module.builder.return_value.info = mock.Mock(features=features, splits=splits)

    def data_source(*_, split, decoders, **__):
      still_coded = {'image': b'PNG'} if decoders else {}
      return [{**row, **still_coded} for row in splits[split]]

    module.data_source.side_effect = data_source
    with mock.patch.dict('sys.modules', tensorflow_datasets=module):
      return sources.load(specs.Data('tfds', 'fake', **options))

  @parameterized.parameters(False, True)
  def test_sizes_that_differ_and_no_labels(self, stream):
    rows = [{'image': np.full((4, 4 + n, 3), n, np.uint8)} for n in range(3)]
    data = self.load({'train': rows}, {'image': None}, size=2, stream=stream)
    self.assertEqual(
      (data.train.shape, data.test.shape, data.classes), ((3, 2, 2, 3), (0, 2, 2, 3), 0)
    )
    np.testing.assert_array_equal(np.asarray(data.train)[:, 0, 0, 0], range(3))
    with self.assertRaisesRegex(UserError, 'item 1 of fake, train, is 5 x 4, and item 0 .* 4 x 4'):
      np.asarray(self.load({'train': rows}, {'image': None}, stream=stream).train)

  @parameterized.parameters(False, True)
  def test_labels_have_names(self, stream):
    rows = [{'image': np.full((2, 2, 1), n, np.uint8), 'label': n} for n in (1, 0)]
    label = mock.Mock(names=['cat', 'dog'], num_classes=2)
    data = self.load({'train': rows, 'test': rows[:1]}, {'label': label}, stream=stream)
    np.testing.assert_array_equal(np.asarray(data.train)[:, 0, 0, 0], [1, 0])
    self.assertEqual((data.names, data.train.shape), (('cat', 'dog'), (2, 2, 2, 1)))
    self.assertEqual((data.train_labels[:].tolist(), data.test_labels[:].tolist()), ([1, 0], [1]))

  def test_a_stream_reads_no_labels_before_they_are_asked_for(self):
    rows = [{'image': np.full((2, 2, 1), n, np.uint8), 'label': n} for n in (1, 0, 1)]
    read, real = [], sources._label

    def label(row, classes, name):
      read.append(name.split()[1])
      return real(row, classes, name)

    with mock.patch.object(sources, '_label', label):
      data = self.load(
        {'train': rows}, {'label': mock.Mock(names=['cat', 'dog'], num_classes=2)}, stream=True
      )
      self.assertEqual(set(read), {'0'})  # its shape is that of all
      self.assertEqual(data.train[np.array([2, 0])][:, 0, 0, 0].tolist(), [1, 1])
      read.clear()
      self.assertEqual(data.train_labels[np.array([2, 0])].tolist(), [1, 1])
      self.assertEmpty(read)  # came with the images
      self.assertEqual((data.train_labels[1], data.train_labels[1:].tolist()), (0, [0, 1]))
      self.assertEqual(read, ['1'])
    with self.assertRaises(TypeError):
      data.train_labels == 1  # noqa: B015

  def test_what_is_no_class_is_left_out(self):
    rows = [{'image': np.zeros((2, 2, 1), np.uint8), 'label': b'a cat'}]
    data = self.load({'train': rows}, {'label': mock.Mock(spec=['shape'])})
    self.assertEqual((data.classes, data.names, data.train_labels.tolist()), (0, (), [0]))

  @parameterized.parameters(
    (
      {'image': np.zeros((2, 2, 1), np.uint16)},
      r'item 1 of fake, train, is uint16 \[2, 2, 1\]; va',
    ),
    (
      {'image': np.zeros((5, 2, 2, 3), np.uint8)},
      r'is uint8 \[5, 2, 2, 3\]; valid: uint8 \[height',
    ),
    (
      {'image': np.zeros((2, 2, 3), np.uint8)},
      'item 1 .* has 3 channels, and item 0 .* has 1; set',
    ),
    ({'image': np.zeros((2, 2, 1), np.uint8), 'label': -1}, 'item 1 .* the label -1; valid: 0..1'),
    ({'image': np.zeros((2, 2, 1), np.uint8), 'label': 2}, 'item 1 .* the label 2; valid: 0..1'),
  )
  def test_bad_items(self, row, message):
    good = {'image': np.zeros((2, 2, 1), np.uint8), 'label': 0}
    label = mock.Mock(names=['cat', 'dog'], num_classes=2)
    with self.assertRaisesRegex(UserError, message):
      self.load({'train': [good, {**good, **row}]}, {'label': label})

  @parameterized.parameters(((0, 1), 'test'), ((-1, -1), 'validation'))
  def test_a_test_set_with_secret_labels(self, labels, used):
    rows = lambda value, own: [
      {'image': np.full((2, 2, 1), value, np.uint8), 'label': one} for one in own
    ]
    splits = {'train': rows(1, (0, 1)), 'test': rows(2, labels), 'validation': rows(3, (1, 0))}
    data = self.load(splits, {'label': mock.Mock(names=['cat', 'dog'], num_classes=2)})
    self.assertEqual(int(data.test[0, 0, 0, 0]), {'test': 2, 'validation': 3}[used])
    self.assertEqual(data.classes, 2)


class NpzTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    random = np.random.RandomState(0)
    self.x = random.randint(0, 256, (10, 4, 6, 3)).astype(np.uint8)
    self.y = random.randint(0, 3, (10, 1))
    self.path = os.path.join(self.create_tempdir().full_path, 'x.npz')

  def load(self, **options):
    return sources.load(specs.Data('npz', path=self.path, **options))

  @parameterized.product(
    names=[two for two in sources.NPZ_NAMES if two[1]],
    compressed=(False, True),
    stream=(False, True),
  )
  def test_two_parts(self, names, compressed, stream):
    (images, labels), (others, their_labels) = names
    save = np.savez_compressed if compressed else np.savez
    save(
      self.path, **{images: self.x, labels: self.y, others: self.x[:2], their_labels: self.y[:2]}
    )
    data = self.load(stream=stream)
    self.assertEqual(isinstance(data.train, np.ndarray), not stream)
    np.testing.assert_array_equal(np.asarray(data.train), self.x)
    np.testing.assert_array_equal(np.asarray(data.test), self.x[:2])
    self.assertEqual(data.train_labels.tolist(), self.y.reshape(-1).tolist())
    self.assertEqual((data.classes, data.test_labels.dtype), (3, np.int32))
    self.assertEqual(self.load(held_out=0.5).train.shape, (10, 4, 6, 3))

  def test_one_part(self):
    np.savez(self.path, arr_0=np.asfortranarray(self.x[..., 0]))
    data = self.load(held_out=0.3)
    self.assertEqual((data.train.shape, data.test.shape), ((7, 4, 6, 1), (3, 4, 6, 1)))
    every = np.concatenate([data.train, data.test])[..., 0].reshape(10, -1)
    np.testing.assert_array_equal(
      np.sort(every, axis=0), np.sort(self.x[..., 0].reshape(10, -1), axis=0)
    )
    self.assertEqual((data.classes, data.train_labels.tolist()), (0, [0] * 7))
    self.assertEqual(self.load(size=4, colour='rgb').shape, (4, 4, 3))
    few = self.load(held_out=0.3, limit=2)
    np.testing.assert_array_equal(few.train, data.train[:2])
    self.assertLen(few.test, 3)

  def test_an_image_is_read_when_it_is_used(self):
    np.savez(self.path, arr_0=self.x, arr_1=self.y[:, 0])
    with npz.Npz(self.path) as file:
      rows, labels = file.mapped('arr_0'), file.mapped('arr_1')
    self.assertIsInstance(rows, np.memmap)
    np.testing.assert_array_equal(rows, self.x)
    np.testing.assert_array_equal(labels, self.y[:, 0])

  @parameterized.parameters(
    ({'images': np.zeros((2, 4, 4), np.uint8)}, 'has no images but images; valid names: arr_0, '),
    ({'arr_0': np.zeros((2, 4, 4, 3))}, 'is float64 .* valid: uint8'),
    ({'arr_0': np.zeros((2, 4, 4, 2), np.uint8)}, r'is uint8 \[2, 4, 4, 2\]; valid: uint8'),
    ({'arr_0': np.zeros((0, 4, 4), np.uint8)}, r'is uint8 \[0, 4, 4\]; valid: uint8'),
    (
      {'arr_0': np.zeros((2, 4, 4), np.uint8), 'arr_1': np.zeros(3, int)},
      'for each of the 2 images',
    ),
    ({'arr_0': np.zeros((2, 4, 4), np.uint8), 'arr_1': np.full(2, -1)}, 'whole numbers from 0 on'),
    (
      {
        **dict.fromkeys(('x_train', 'x_test'), np.zeros((2, 4, 4), np.uint8)),
        'y_train': np.ones(2, int),
      },
      'classes in only one of y_train and y_test',
    ),
    (
      {'train_images': np.zeros((2, 4, 4), np.uint8), 'y_train': np.ones(2, int)},
      'images in train_images and classes in y_train; rename these to train_labels',
    ),
  )
  def test_refused(self, arrays, message):
    np.savez(self.path, **arrays)
    with self.assertRaisesRegex(UserError, message):
      self.load()

  def test_nothing_there(self):
    with self.assertRaisesRegex(UserError, 'there is no file .* set data.path to an .npz'):
      self.load()
    np.savez(self.path, arr_0=self.x[:1])
    with self.assertRaisesRegex(UserError, 'lower data.held_out'):
      self.load(held_out=0.9)


class ClassesTest(parameterized.TestCase):
  def test_imagenet(self):
    data = sources.load(specs.Data(name='none', size=256, classes=1000, dataset='imagenet'))
    self.assertEqual((data.shape, data.is_image, len(data.names)), ((256, 256, 3), True, 1000))
    np.testing.assert_array_equal(
      base.class_numbers(data, 'Tench,207, golden retriever ,toilet tissue'), [0, 207, 207, 999]
    )
    np.testing.assert_array_equal(base.class_numbers(data, ''), np.arange(1000))
    np.testing.assert_array_equal(base.class_numbers(data, '264, 474'), [264, 474])

  @parameterized.parameters(
    ('shark', "'great white shark'"),
    ('-1', 'valid: 0..999'),
    ('1e2', 'valid: 0..999'),
    ('3,', "no class ''"),
    ('9' * 5000, 'valid: 0..999'),
    (
      'Cardigan',
      "'Cardigan' is the name of 2 classes; give the number: 264 .next to 'Pembroke'. or 474 .next "
      "to '",
    ),
  )
  def test_bad(self, label, message):
    data = sources.load(specs.Data(name='none', size=256, classes=1000, dataset='imagenet'))
    with self.assertRaisesRegex(UserError, message):
      base.class_numbers(data, label)

  def test_no_labels(self):
    self.assertEmpty(base.class_numbers(sources.load(specs.Data(name='none', size=8)), ''))
    with self.assertRaisesRegex(UserError, 'data.size must be at least 1'):
      sources.load(specs.Data(name='none'))


if __name__ == '__main__':
  absltest.main()
