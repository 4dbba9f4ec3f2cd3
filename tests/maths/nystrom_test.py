"""Linear attention: closed forms of the inverse, exact cases, the published numbers."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy.spatial import distance

from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import mixtures, nystrom
from helpers import cases


def spectral(A, iterations, ridge, norm=None):
  """(3) by its eigenvalues; norm: another |A'|_1."""
  A = A + ridge * np.eye(A.shape[-1])
  values, vectors = np.linalg.eigh(A)
  norm = np.abs(A).sum(-2).max(-1) if norm is None else norm
  c = 1.8 / norm**2
  f = -np.expm1(2.0**iterations * np.log(np.abs(1 - c[..., None] * values**2))) / values
  return np.einsum('...ij,...j,...kj->...ik', vectors, f, vectors)


def gaussian(x, y, alpha):
  return np.exp(-alpha / 2 * distance.cdist(x, y, 'sqeuclidean'))


class NystromTest(cases.X64TestCase):
  @parameterized.parameters((20, 0.01), (20, 1e-4), (6, 0.0))
  def test_inverse_in_closed_form(self, iterations, ridge):
    x = np.random.RandomState(0).randn(2, 12, 3)
    A = np.stack([gaussian(one, one, 0.4) for one in x])
    found = nystrom.inverse(jnp.asarray(A), iterations, ridge)
    np.testing.assert_allclose(found, spectral(A, iterations, ridge), rtol=1e-9, atol=1e-9)

  def test_all_tokens_as_landmarks_are_exact(self):
    random = np.random.RandomState(1)
    q, v, alpha = 3 * random.randn(9, 4), random.randn(9, 2), 0.5
    S = gaussian(q, q, alpha)
    arguments = jnp.asarray(q), jnp.asarray(v), jnp.asarray(q), alpha
    none = nystrom.attend(*arguments, 'none', 30, 0.0)
    np.testing.assert_allclose(none, S @ v, atol=1e-10)
    units = mixtures.units(jnp.asarray(q), jnp.full(9, alpha))
    posterior = mixtures.posterior(jnp.asarray(q), units, jnp.asarray(v), 4)
    rows = nystrom.attend(*arguments, 'rows', 30, 0.0)
    np.testing.assert_allclose(rows, posterior.mean, atol=1e-10)

  def test_equal_tokens_need_one_landmark(self):
    q, v = jnp.ones((7, 3)), jnp.asarray(np.random.RandomState(2).randn(7, 2))
    found = nystrom.attend(q, v, q[:1], 0.3, 'rows', 20, 0.0)
    np.testing.assert_allclose(found, np.broadcast_to(np.mean(v, 0), (7, 2)), atol=1e-12)

  def test_certificate(self):
    random = np.random.RandomState(3)
    q, alpha = random.randn(30, 4), 0.5
    landmarks = q.reshape(10, 3, 4).mean(1)
    P, A = gaussian(q, landmarks, alpha), gaussian(landmarks, landmarks, alpha)
    away = gaussian(q, q, alpha) - P @ spectral(A, 20, 0.01) @ P.T
    self.assertGreater(np.linalg.eigvalsh(away).min(), -1e-10)
    found = nystrom.errors(jnp.asarray(q), jnp.asarray(landmarks), alpha)
    np.testing.assert_allclose(found, np.diag(away), atol=1e-9)
    self.assertBetween(float(found.min()), 0, 1)
    self.assertGreater(float(found.max()), 0.05)

  @parameterized.parameters(3, 20)
  def test_gradient_where_it_has_not_converged(self, iterations):
    random = np.random.RandomState(4)
    q, v = random.randn(8, 3), random.randn(8, 2)
    landmarks = 0.3 * random.randn(6, 3)  # close: far from converged
    of = lambda q: jnp.sum(
      jnp.sin(nystrom.attend(q, jnp.asarray(v), jnp.asarray(landmarks), 0.5, 'none', iterations))
    )
    by_landmarks = lambda x: jnp.sum(
      jnp.sin(nystrom.attend(jnp.asarray(q), jnp.asarray(v), x, 0.5, 'rows', iterations))
    )
    for fn, at in ((of, q), (by_landmarks, landmarks)):
      found, move = jax.grad(fn)(jnp.asarray(at)), random.randn(*at.shape)
      step = 1e-6
      expected = (fn(at + step * move) - fn(at - step * move)) / (2 * step)
      np.testing.assert_allclose(jnp.sum(found * move), expected, rtol=1e-5)

  def test_half_precision_is_widened(self):
    q = np.random.RandomState(5).randn(16, 4)
    half = jnp.asarray(q, jnp.bfloat16)
    self.assertEqual(nystrom.kernel(half, half, 0.5).dtype, jnp.float32)
    self.assertLessEqual(float(nystrom.kernel(half, half, 0.5).max()), 1)
    out = nystrom.attend(half, half, half[:4], 0.5)
    self.assertEqual(out.dtype, jnp.bfloat16)
    np.testing.assert_allclose(
      np.float32(out), nystrom.attend(*(jnp.asarray(np.float32(half))[i] for i in (
        slice(None), slice(None), slice(4))), 0.5), atol=0.02)  # fmt: skip

  @parameterized.parameters((0, 0.01, '0 and 0.01'), (20, -0.1, '20 and -0.1'))
  def test_refuses_what_is_no_inverse(self, iterations, ridge, words):
    q = jnp.ones((4, 2))
    words = f'needs iterations >= 1 and ridge >= 0, got {words}'
    with self.assertRaisesRegex(UserError, words):
      nystrom.attend(q, q, q[:2], 0.5, 'rows', iterations, ridge)
    with self.assertRaisesRegex(UserError, words):
      nystrom.errors(q, q[:2], 0.5, iterations, ridge)


class GoldenTest(cases.X64TestCase):
  def test_published_layer(self):
    golden = cases.golden('g12_soft')
    q, v = golden['Q'] / 8**0.25, golden['V']  # alpha = 1 then
    landmarks = jnp.asarray(golden['landmarks'])
    np.testing.assert_allclose(nystrom.kernel(landmarks, landmarks, 1.0), golden['A'], atol=1e-12)
    np.testing.assert_allclose(nystrom.kernel(q, landmarks, 1.0), golden['P'], atol=1e-12)
    # the source takes |A|_1 without the ridge, which shows where it has not converged
    norm = np.abs(golden['A']).sum(-2).max(-1)
    expected = spectral(golden['A'], 20, 0.01, norm)
    np.testing.assert_allclose(golden['newton'], expected, rtol=1e-7, atol=1e-7)
    found = nystrom.attend(jnp.asarray(q), jnp.asarray(v), landmarks, 1.0, 'none')
    np.testing.assert_allclose(found, golden['out'], rtol=1e-12, atol=1e-12)

  def test_published_normalisation(self):
    golden = cases.golden('g12_soft')
    q, v = jnp.asarray(golden['Q'] / 8**0.25), jnp.asarray(golden['V'])
    landmarks = jnp.asarray(golden['landmarks'])
    # the source inverts without a ridge, until it has converged to some 1e-9
    found = nystrom.inverse(jnp.asarray(golden['A']), 60, 0.0)
    np.testing.assert_allclose(found, golden['norm_newton'], rtol=0, atol=3e-9)
    found = nystrom.attend(q, v, landmarks, 1.0, 'landmarks', 60, 0.0)
    np.testing.assert_allclose(found, golden['out_norm'], rtol=0, atol=1e-9)
    # of landmarks among themselves P is A, so that the middle alone is seen
    whole = jnp.broadcast_to(jnp.eye(12), golden['A'].shape)
    found = nystrom.attend(landmarks, whole, landmarks, 1.0, 'landmarks', 60, 0.0)
    expected = golden['A'] @ golden['norm_inverse'] @ golden['A']
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


if __name__ == '__main__':
  absltest.main()
