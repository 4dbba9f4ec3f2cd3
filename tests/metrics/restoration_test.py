"""PSNR and SSIM against closed forms."""

import numpy as np
from absl.testing import absltest

from gmm_diffusion.errors import UserError
from gmm_diffusion.metrics import restoration


def constant(value):
  return np.full((1, 16, 16, 1), value, np.uint8)


class RestorationTest(absltest.TestCase):
  def test_of_a_constant_difference(self):
    np.testing.assert_allclose(
      restoration.psnr(constant(100), constant(105)), [20 * np.log10(255 / 5)]
    )
    self.assertTrue(np.isinf(restoration.psnr(constant(7), constant(7)))[0])
    c1 = 2.55**2
    expected = (2 * 100 * 105 + c1) / (100**2 + 105**2 + c1)
    np.testing.assert_allclose(restoration.ssim(constant(100), constant(105)), [expected])

  def test_ssim_of_one_window_by_hand(self):
    random = np.random.RandomState(0)
    x, y = random.randint(256, size=(2, 1, 31, 31, 1)).astype(np.uint8)
    at = np.arange(-5, 6)
    weights = np.exp(-(at[:, None] ** 2 + at[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    total = 0.0
    for i in range(5, 26):
      for j in range(5, 26):
        p, q = (z[0, i - 5 : i + 6, j - 5 : j + 6, 0].astype(float) for z in (x, y))
        mp, mq = np.sum(weights * p), np.sum(weights * q)
        vp, vq = np.sum(weights * (p - mp) ** 2), np.sum(weights * (q - mq) ** 2)
        both = np.sum(weights * (p - mp) * (q - mq))
        c1, c2 = 2.55**2, 7.65**2
        total += (2 * mp * mq + c1) * (2 * both + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2))
    # the same windows of an image that repeats those inside: only the inner ones are compared
    inner = restoration.ssim_map(x, y)[0, 5:26, 5:26, 0]
    np.testing.assert_allclose(inner.mean(), total / 21**2, atol=1e-12)

  def test_equal_images_and_order_of_both(self):
    random = np.random.RandomState(0)
    x, y = random.randint(256, size=(2, 3, 8, 8, 3)).astype(np.uint8)
    np.testing.assert_allclose(restoration.ssim(x, x), np.ones(3))
    np.testing.assert_allclose(restoration.ssim(x, y), restoration.ssim(y, x))
    self.assertEqual(restoration.ssim(x, y).shape, (3,))

  def test_other_shapes(self):
    with self.assertRaisesRegex(UserError, r'one shape .* \[1, 16, 16, 1\] and \[16, 16\]'):
      restoration.psnr(constant(1), np.zeros((16, 16), np.uint8))


if __name__ == '__main__':
  absltest.main()
