"""Streams are arrays that are read when asked for, and batches come in order, each once."""

import importlib.util
import threading
import time
import unittest
from unittest import mock

import numpy as np
from absl.testing import absltest
from hypothesis import given
from hypothesis import strategies as st

from gmm_diffusion import files
from gmm_diffusion.data import streams
from gmm_diffusion.errors import UserError

HAS_GRAIN = importlib.util.find_spec('grain') is not None
IMAGES = np.random.RandomState(0).randint(0, 256, (11, 2, 3, 1)).astype(np.uint8)


def stream(images=IMAGES):
  return streams.Stream(lambda n: images[n], lambda n: f'image {n}', len(images))


class StreamTest(absltest.TestCase):
  @given(st.slices(11).filter(lambda s: s.step in (None, 1)), st.slices(11), st.data())
  def test_like_an_array(self, first, second, data):
    second = slice(second.start, second.stop)
    found, expected = stream()[first][second], IMAGES[first][second]
    self.assertEqual((found.shape, found.dtype), (expected.shape, expected.dtype))
    np.testing.assert_array_equal(np.asarray(found), expected)
    if len(expected):
      index = data.draw(st.lists(st.integers(-len(expected), len(expected) - 1), min_size=1))
      np.testing.assert_array_equal(found[np.array(index)], expected[np.array(index)])
      np.testing.assert_array_equal(found[index[0]], expected[index[0]])

  def test_nothing_is_read_before_it_is_asked_for(self):
    seen = []
    found = streams.Stream(lambda n: seen.append(n) or IMAGES[n], str, 11)[3:]
    self.assertEqual((found.shape, seen), ((8, 2, 3, 1), [0]))
    found[np.array([0, 2])]
    self.assertEqual(seen, [0, 3, 5])

  def test_the_fingerprint_of_the_same_array(self):
    with mock.patch.object(streams, '_AT_ONCE', 4):
      self.assertEqual(files.fingerprint(stream(), 3), files.fingerprint(IMAGES, 3))

  def test_another_size(self):
    images = [*IMAGES[:4], IMAGES[4, :1]]
    with self.assertRaisesRegex(
      UserError, '^image 4 is 3 x 1, and image 0 is 3 x 2; set data.size'
    ):
      stream(images).read()


@unittest.skipUnless(HAS_GRAIN, 'needs the extra stream')
class AheadTest(absltest.TestCase):
  def test_in_order_by_several_threads_from_the_middle(self):
    with mock.patch.object(streams, 'THREADS', 2):
      barrier = threading.Barrier(2, timeout=20)

      def batch(step):
        if step > 7:  # the first one says how many may wait
          barrier.wait()  # breaks unless two are read at the same time
        return step

      self.assertEqual(list(streams.ahead(batch, 7, 14)), list(range(7, 14)))

  def test_large_batches_do_not_fill_the_memory(self):
    for most, few in ((2**29, False), (3 * 8000, True)):
      read = []

      def batch(step, read=read):
        read.append(step)
        return {'x': np.zeros(1000)}

      with mock.patch.multiple(streams, THREADS=8, AHEAD=most):
        batches = streams.ahead(batch, 0, 100)
        for _ in range(2):
          next(batches)
        time.sleep(0.5)
      self.assertEqual(len(read) <= 2 + 3 + 3, few)  # used, waiting, and one of each thread

  def test_an_error_is_that_of_the_image(self):
    def batch(step):
      if step == 2:
        raise UserError('cannot read image x.png')
      return step

    with self.assertRaisesRegex(UserError, '^cannot read image x.png$'):
      list(streams.ahead(batch, 0, 5))

  def test_without_grain(self):
    with (
      mock.patch.dict('sys.modules', grain=None),
      self.assertRaisesRegex(UserError, r"pip install -e '.\[stream\]'"),
    ):
      next(streams.ahead(str, 0, 1))


if __name__ == '__main__':
  absltest.main()
