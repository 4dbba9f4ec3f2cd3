"""Drawing: what shares a compilation, plans made once, labels, the way of x_0."""

import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from configs import digits
from gmm_diffusion import samplers, specs, tasks
from gmm_diffusion.data import sources
from gmm_diffusion.denoisers import exact
from gmm_diffusion.engine import build, drawing
from gmm_diffusion.errors import UserError
from helpers import cases


def settings(**changes):
  """Digits with the exact denoiser of a few of them."""
  config = digits.get_config()
  config.denoiser.name, config.data.limit = 'empirical', 20
  config.update_from_flattened_dict(
    {'sampler.steps': 3, 'sampler.name': 'ddim', 'sample.count': 10, **changes}
  )
  return config


def model_of(**changes):
  spec = specs.from_config(settings(**changes))
  data = sources.load(spec.data)
  return drawing.Model(spec, data, build.weights(spec, data, ''))


class TracesTest(parameterized.TestCase):
  def test_seeds_scales_and_grids_share_one_trace(self):
    model, traces = model_of(), []
    inner = drawing.sample_batch

    def counting(*arguments):
      traces.append(1)
      return inner(*arguments)

    base = dataclasses.replace(model.spec.sampler, name='ddim_gmm', eta=0.5)
    found = {}
    with mock.patch.object(drawing, 'sample_batch', counting):
      for seed, change in (
        (3, {}),
        (4, {}),
        (3, {'scale': 0.7}),
        (3, {'eta': 0.9}),
        (3, {'grid': 'leading'}),
        (3, {'offsets_seed': 1}),
      ):
        made = drawing.prepare(model.spec, dataclasses.replace(base, **change), model.data)
        found[seed, *change] = model.sample(made, 10, seed).x
        model.drawer(made, 10, seed).draw(np.arange(4), lambda n: None)  # fewer, the same batch
      self.assertLen(traces, 1)
      still = drawing.prepare(model.spec, dataclasses.replace(base, eta=0.0), model.data)
      model.sample(still, 10)
      self.assertLen(traces, 2)
    values = list(found.values())
    for i, one in enumerate(values):  # and nothing of the first call stays in the program
      for other in values[:i]:
        self.assertFalse(np.array_equal(one, other))
    alone = model_of(**{'seed': 4})
    made = drawing.prepare(alone.spec, base, alone.data)
    np.testing.assert_array_equal(alone.sample(made, 10).x, found[(4,)])

  @parameterized.parameters(*cases.SAMPLERS)
  def test_samplers_of_one_form_are_one_program(self, name):
    schedule = build.schedule(specs.Schedule())

    def program(sampler):
      grid = build.grid(schedule, sampler)
      kernel = samplers.make(sampler.name, sampler.options(), schedule)
      plan, _ = kernel.plan(grid, (4,))
      denoiser = exact.gaussian(0.0, 0.25)
      fn = lambda steps: drawing.sample_batch(kernel, denoiser, steps, jnp.arange(2), None, (4,))
      steps = jax.tree.map(np.float32, (grid, plan))
      return jax.make_jaxpr(lambda *steps: fn(drawing.Steps(*steps))[1].x)(*steps, np.uint32(0))

    base = dict(name=name, steps=3, components=2, scale=0.1, eta=0.4)
    first = specs.Sampler(**base)
    wanted = program(first)
    for change in (
      dict(scale=0.2),
      dict(eta=0.8),
      dict(offsets_seed=3),
      dict(scale_interval=(0.5, 2.0)),
      dict(grid='leading'),
      dict(end='first'),
      dict(times=(900.0, 400.0, 100.0)),
    ):
      other = specs.Sampler(**{**base, **change})
      self.assertEqual(drawing.form_of(other), drawing.form_of(first))
      found = program(other)
      self.assertEqual(str(found), str(wanted), change)
      for one, same in zip(found.consts, wanted.consts, strict=True):
        np.testing.assert_array_equal(one, same)


class OnceTest(absltest.TestCase):
  def test_plans_and_hashes(self):
    plans, make = [], samplers.make

    def counting(name, *arguments):
      kernel = make(name, *arguments)
      return kernel._replace(plan=lambda *a: (plans.append(name), kernel.plan(*a))[1])

    for mode, wanted in (('sample', ['ddim']), ('all', ['ddim', 'ddim_gmm', 'ddim_noise'])):
      plans.clear()
      config = settings()
      config.evaluate.update(samplers=('ddim', 'ddim_gmm'), count=10, features='identity')
      config.evaluate.metrics = ('kernel',)
      with (
        mock.patch.object(samplers, 'make', counting),
        mock.patch.object(build, 'tree_hash', wraps=build.tree_hash) as hashed,
      ):
        tasks.run(mode, self.create_tempdir().full_path, config, 'test')
      self.assertCountEqual(plans, wanted)
      self.assertEqual(hashed.call_count, 1)


class LabelsTest(absltest.TestCase):
  def test_a_label_without_effect(self):
    with self.assertRaisesRegex(
      UserError, "sample.label '3' needs a conditional model; this one takes no labels"
    ):
      model = model_of(**{'sample.label': '3'})
      drawing.prepare(model.spec, model.spec.sampler, model.data)


class WayTest(absltest.TestCase):
  def test_predictions_end_at_the_samples(self):
    model = model_of()
    made = drawing.prepare(model.spec, model.spec.sampler, model.data)
    samples, states, found = model.sample(made, 10).x, model.states(made, 6), None
    found = model.predictions(made, 6)
    self.assertEqual((states.shape, states.dtype), ((3, 6, 8, 8, 1), np.float32))
    self.assertEqual((found.shape, found.dtype), ((3, 6, 8, 8, 1), np.uint8))
    # DDIM's last step returns x_0 as predicted; a grey level for other batches
    np.testing.assert_allclose(found[-1].astype(int), samples[:6].astype(int), atol=1)
    self.assertGreater(np.abs(found[0].astype(int) - found[-1]).mean(), 1)
    time = jax.tree.map(lambda row: np.float32(row[1]), made.grid.now)
    x0 = made.bind(model.weights)(states[1], time, None).x0
    np.testing.assert_allclose(drawing.base.to_image(x0).astype(int), found[1].astype(int), atol=1)


if __name__ == '__main__':
  absltest.main()
