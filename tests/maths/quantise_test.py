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


def zeros(largest, bits, half):
  """The source's zero point of each candidate, in its order of float32 operations; 0 for half 0."""
  i, levels = np.arange(1, 101, dtype=np.float32), np.float32(2**bits - 1)
  high = np.float32(largest) / np.float32(100) * i
  return np.round(high / ((high + high) / levels)).astype(int) if half else np.zeros(100, int)


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


class SingleGoldenTest(parameterized.TestCase):
  """In float32, as the source. Its zero point of a signed grid, threshold / step, is 2^(n-1) - 1/2,
  and the rounding errors of each candidate decide whether that becomes 2^(n-1), which is our grid,
  or one less. So some candidates are judged on the other grid, from -2^(n-1) + 1 to 2^(n-1).
  """

  @parameterized.product(name=('weight', 'weight_tensor', 'act', 'act_pos'), bits=(8, 4))
  def test_search(self, name, bits):
    """Ours, with each candidate on the grid that the source judged it on."""
    golden = cases.golden('g12_ptq4dm')
    x = jnp.asarray(golden[name.removesuffix('_tensor')])
    parts = x if name == 'weight' else x[None]
    step, zero, out = (golden[f'{name}_{bits}_{part}'] for part in ('delta', 'zero', 'out'))
    step, zero, out = step.reshape(-1), zero.reshape(-1).astype(int), out.reshape(parts.shape)
    half = 0 if name == 'act_pos' else 2 ** (bits - 1)
    for part, own_step, own_zero, own_out in zip(parts, step, zero, out):
      largest = jnp.max(jnp.abs(part))
      steps, judged = quantise.candidates(largest, bits, half > 0), zeros(largest, bits, half)
      within, axes = steps.reshape((-1,) + (1,) * part.ndim), tuple(range(part.ndim))
      found = sum(
        np.where(judged == z, quantise.errors(part, within, -z, 2**bits - 1 - z, axes), 0)
        for z in ((half, half - 1) if half else (0,))
      )
      first = np.argmin(found)
      np.testing.assert_allclose(steps[first], own_step, rtol=3e-7)
      self.assertEqual(judged[first], own_zero)
      again = quantise.rounded(part, own_step, -own_zero, 2**bits - 1 - own_zero)
      tied = np.abs(np.abs(part / own_step) % 1 - 0.5) < 1e-4
      self.assertLessEqual(np.sum(tied), 1)
      np.testing.assert_allclose(again[~tied], own_out[~tied], rtol=1e-6)

  def test_ours_differs_where_the_other_grid_decided(self):
    golden = cases.golden('g12_ptq4dm')
    weight = jnp.moveaxis(jnp.asarray(golden['weight']), 0, -1)
    for bits, same in ((8, [True] * 6), (4, [True, True, False, True, False, True])):
      found = quantise.step_of_channels(weight, bits)
      expected = golden[f'weight_{bits}_delta'].reshape(-1)
      np.testing.assert_array_equal(np.isclose(found, expected, rtol=3e-7, atol=0), same)
    # channel 2: the candidate 1.1 % below would have won, had it been judged on our grid
    self.assertEqual(golden['weight_4_zero'].reshape(-1)[2], 8)
    axes, within = (0, 1, 2), jnp.stack([found, jnp.asarray(expected)])[:, None, None, None]
    ours, source = quantise.errors(weight, within, *quantise.limits(4, True), axes)[:, 2]
    self.assertLess(ours, source)
    # channel 4 and the activations: what won was on the other grid, which our grid has not
    self.assertEqual((golden['weight_4_zero'].reshape(-1)[4], golden['act_4_zero']), (7, 7))
    self.assertAlmostEqual(best(golden['act'], 4)[0] / golden['act_4_delta'], 1.074, delta=1e-3)
    whole, _ = best(golden['weight'], 4)
    np.testing.assert_allclose(whole, golden['weight_tensor_4_delta'], rtol=3e-7)

  def test_largest_step_of_a_running_range(self):
    # the range itself, which runs over batches and begins with the first, is not ours: we look at
    # all calibration data at once
    low, high, step = cases.golden('g12_ptq4dm')['moving'].T
    np.testing.assert_array_equal(-low, high)
    np.testing.assert_allclose(quantise.candidates(high, 8, True)[-1], step, rtol=3e-7)


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
