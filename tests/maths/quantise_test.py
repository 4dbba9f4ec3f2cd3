"""Rounding to few bits: the published search, and what any uniform grid must do."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from gmm_diffusion.maths import quantise
from helpers import cases


def best(x, bits):
  """Step of the whole array, by (2)."""
  signed = bool(np.min(x) < 0)
  steps = quantise.candidates(np.max(np.abs(x)), bits, signed)
  axes = tuple(range(np.ndim(x)))
  within = jnp.reshape(steps, (-1,) + (1,) * np.ndim(x))
  found = quantise.errors(jnp.asarray(x), within, *quantise.limits(bits, signed), axes)
  return steps[jnp.argmin(found)], quantise.limits(bits, signed)


def wide(step, ndim):
  """Steps of channels, against an array of that rank."""
  return np.reshape(step, (1,) * (ndim - 1) + (-1,))


class GoldenTest(cases.X64TestCase):
  def test_channels(self):
    golden = cases.golden('g12_ptq4dm')
    weight = np.moveaxis(golden['weight'].astype(np.float64), 0, -1)
    found = quantise.step_of_channels(jnp.asarray(weight), 8)
    expected = golden['weight_8_delta'].reshape(-1)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    self.assertEqual(set(golden['weight_8_zero'].reshape(-1)), {128})  # rounding chose our grid
    x = quantise.rounded(weight, wide(found, 4), *quantise.limits(8, True))
    out = np.moveaxis(golden['weight_8_out'], 0, -1)
    tied = np.abs(np.abs(weight / wide(found, 4)) % 1 - 0.5) < 1e-4  # the largest of each channel
    self.assertLessEqual(tied.sum(), 6)
    np.testing.assert_allclose(x[~tied], out[~tied], atol=1e-6)

  @parameterized.parameters(('act', 8), ('act_pos', 8), ('act_pos', 4), ('weight_tensor', 8))
  def test_whole_arrays(self, name, bits):
    golden = cases.golden('g12_ptq4dm')
    x = golden[name.removesuffix('_tensor')].astype(np.float64)
    step, (low, high) = best(x, bits)
    np.testing.assert_allclose(step, golden[f'{name}_{bits}_delta'].reshape(()), rtol=1e-6)
    if low == 0:
      out = quantise.rounded(x, step, low, high)
      np.testing.assert_allclose(out, golden[f'{name}_{bits}_out'], atol=1e-6)


class RoundingTest(cases.X64TestCase):
  @given(
    st.integers(2, 16),
    st.booleans(),
    st.floats(1e-3, 1e3),
    st.lists(st.floats(-2e4, 2e4), min_size=1, max_size=8),
  )
  @settings(max_examples=60, deadline=None)
  def test_idempotent_and_scales(self, bits, signed, step, values):
    x, ends = np.array(values), quantise.limits(bits, signed)
    once = np.asarray(quantise.rounded(x, step, *ends))
    np.testing.assert_allclose(quantise.rounded(once, step, *ends), once, rtol=1e-12)
    np.testing.assert_array_equal(quantise.rounded(8 * x, 8 * step, *ends), 8 * once)
    self.assertTrue(np.all(once >= ends[0] * step) and np.all(once <= ends[1] * step))

  def test_what_is_on_the_grid_stays_bitwise(self):
    x = np.arange(-8, 8) * 0.3
    np.testing.assert_array_equal(quantise.rounded(x, 0.3, *quantise.limits(4, True)), x)

  def test_error_of_uniform_data(self):
    x = np.random.RandomState(0).rand(200_000) * 2 - 1
    power = []
    for bits in (4, 5, 6):
      low, high = quantise.limits(bits, True)
      step = 1 / (high + 0.5)
      power.append(np.mean((x - np.asarray(quantise.rounded(x, step, low, high))) ** 2))
      # s^2 / 12, but for the one of 2^n - 1 cells at the upper end that the grid has not
      np.testing.assert_allclose(power[-1], step**2 / 12, rtol=0.02)
    decibels = 10 * np.log10(np.array(power[:-1]) / power[1:])
    np.testing.assert_allclose(decibels, 6.02, atol=0.7)  # more for few bits: 2^n - 1 cells

  def test_many_bits_and_channels(self):
    x = np.random.RandomState(1).randn(50, 6) * np.logspace(-3, 3, 6)
    apart = np.asarray(quantise.step_of_channels(jnp.asarray(x), 8))
    error = lambda step: np.mean((x - quantise.rounded(x, step, *quantise.limits(8, True))) ** 2, 0)
    together, _ = best(x, 8)
    self.assertTrue(np.all(error(wide(apart, 2)) <= error(together)))
    fine = np.asarray(quantise.step_of_channels(jnp.asarray(x), 16))
    found = quantise.rounded(x, wide(fine, 2), *quantise.limits(16, True))
    np.testing.assert_array_less(np.abs(found - x).max(0), 1e-4 * np.abs(x).max(0))
    shuffled = x[np.random.RandomState(2).permutation(50)]
    np.testing.assert_array_equal(quantise.step_of_channels(jnp.asarray(shuffled), 8), apart)

  def test_zeros_stay_zero(self):
    steps = quantise.step_of_channels(jnp.zeros((5, 2)), 4)
    self.assertTrue(np.all(np.asarray(steps) > 0))
    found = quantise.rounded(np.zeros((5, 2)), wide(steps, 2), *quantise.limits(4, True))
    np.testing.assert_array_equal(found, 0)


if __name__ == '__main__':
  absltest.main()
