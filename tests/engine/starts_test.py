"""Trainings that begin with the network of another workdir."""

import dataclasses
import json
import os

import jax
import numpy as np
from absl.testing import absltest

from gmm_diffusion import specs, tasks
from gmm_diffusion.checkpoints.store import Store
from gmm_diffusion.data import sources
from gmm_diffusion.engine import build, loss, starts
from gmm_diffusion.errors import UserError
from helpers import cases, cli, released_files

NET = specs.Net(name='cnn', channels=8, blocks=1)
TRAIN = specs.Train(steps=2, batch=8, warmup=0, log_every=1, label_dropout=0.0)


def spec_of(start='', net=NET, **changes):
  return specs.Spec(net=net, train=dataclasses.replace(TRAIN, start=start, **changes))


class StartTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.data = sources.load(specs.Data())
    cls.start = cls.enterClassContext(cases.folder())
    loss.train(spec_of(), cls.data, cls.start)

  def weights(self, workdir, spec, data):
    with Store(workdir) as store:
      return store.weights(build.template(spec, data))['net']

  def test_begins_with_its_weights(self):
    workdir = self.create_tempdir().full_path
    spec = spec_of(self.start, learning_rate=1e-12, steps=1)
    loss.train(spec, self.data, workdir)
    before, after = (self.weights(path, spec, self.data) for path in (self.start, workdir))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), before, after)
    with open(os.path.join(workdir, 'training.json'), encoding='utf-8') as file:
      (row,) = json.load(file)
    plain = self.create_tempdir().full_path
    loss.train(spec_of(learning_rate=1e-12, steps=1), self.data, plain)
    with open(os.path.join(plain, 'training.json'), encoding='utf-8') as file:
      self.assertNotEqual(json.load(file)[0]['loss'], row['loss'])

  def test_goes_on_without_it(self):
    """The start is read once: a training that was stopped needs it no more."""
    workdir = self.create_tempdir().full_path
    loss.train(spec_of(self.start), self.data, workdir)
    whole = self.create_tempdir().full_path
    loss.train(spec_of(self.start, steps=3), self.data, whole)
    loss.train(spec_of('/nowhere', steps=3), self.data, workdir)
    one, other = (self.weights(path, spec_of(), self.data) for path in (whole, workdir))
    jax.tree.map(np.testing.assert_array_equal, one, other)

  def test_other_classes_and_sizes(self):
    few = self.data.train_labels < 4
    data = self.data._replace(
      train=self.data.train[few].repeat(2, 1).repeat(2, 2),
      train_labels=self.data.train_labels[few],
      classes=4,
    )
    workdir = self.create_tempdir().full_path
    spec = spec_of(self.start, learning_rate=1e-12, steps=1)
    with absltest.mock.patch('builtins.print') as said:
      loss.train(spec, data, workdir)
    self.assertIn('learnt anew', str(said.mock_calls))
    self.assertIn('label_emb', str(said.mock_calls))
    found = self.weights(workdir, spec, data)['params']
    known = self.weights(self.start, spec, self.data)['params']
    for name in set(known) - {'label_emb'}:
      jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), found[name], known[name]
      )

  def test_attention_of_other_sizes(self):
    """The same levels have other sides."""
    net = specs.Net(channels=8, multipliers=(1.0,), blocks=1, attention=(8,), head_channels=8)
    large = self.data._replace(train=self.data.train.repeat(2, 1).repeat(2, 2))

    def fresh(net, data, seed):
      spec = spec_of(net=net)
      return build.init(build.net(spec, data), build.sample_shape(spec, data), seed)

    def started(net):
      workdir = self.create_tempdir().full_path
      with Store(workdir, create=True) as store:
        found = fresh(net, self.data, 0)
        store.save(1, {'net': found}, None, build.about(spec_of(net=net), self.data))
      return workdir, found

    begun = lambda start, net: starts.weights(
      spec_of(start, net), large, start, '', fresh(net, large, 1)
    )
    start, found = started(net)
    other = dataclasses.replace(net, attention=(16,))
    jax.tree.map(np.testing.assert_array_equal, begun(start, other), found)
    with self.assertRaisesRegex(UserError, 'no place here; .* set net.attention to the sides'):
      begun(start, net)  # no level has side 8
    without, _ = started(dataclasses.replace(net, attention=()))
    with self.assertRaisesRegex(UserError, 'has no .* set net.attention to the sides'):
      begun(without, other)

  def test_what_is_refused(self):
    for spec, words in (
      (spec_of('/nowhere'), 'no checkpoint in /nowhere'),
      (spec_of(self.start, dataclasses.replace(NET, channels=16)),
       'was made with net.channels = 8, the config says 16'),
      (dataclasses.replace(spec_of(self.start), denoiser=specs.Denoiser(prediction='v')),
       'was made with prediction = eps, the config says v'),
    ):  # fmt: skip
      with self.assertRaisesRegex(UserError, words):
        loss.train(spec, self.data, self.create_tempdir().full_path)
    with self.assertRaisesRegex(UserError, 'is the --workdir itself'):
      workdir = self.create_tempdir().full_path
      loss.train(spec_of(workdir), self.data, workdir)
    colour = self.data._replace(train=self.data.train.repeat(3, -1))
    with self.assertRaisesRegex(UserError, 'makes images of 1 channels, the data have 3'):
      loss.train(spec_of(self.start), colour, self.create_tempdir().full_path)

  def test_released_weights(self):
    """As in docs/training.md: convert, then train on images of one's own."""
    workdir, own = self.create_tempdir().full_path, self.create_tempdir().full_path
    config = released_files.config_of('cifar10', 'ddpm')
    released_files.write(*released_files.spec_of(config), workdir)
    tasks.run('convert', workdir, config, 'test')
    images = np.random.RandomState(0).randint(0, 256, (8, 32, 32, 3)).astype(np.uint8)
    np.savez(os.path.join(own, 'x.npz'), train_images=images)
    config.update_from_flattened_dict({
      'net.weights.format': '', 'data.name': 'npz', 'data.path': os.path.join(own, 'x.npz'),
      'train.start': workdir, 'train.steps': 1, 'train.batch': 4, 'train.learning_rate': 1e-12,
    })  # fmt: skip
    with Store(workdir) as store:
      before = store.weights(build.template(*released_files.spec_of(config)))['net']
    tasks.run('train', os.path.join(own, 'run'), config, 'test')
    after = self.weights(os.path.join(own, 'run'), *released_files.spec_of(config))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), before, after)

  def test_the_command(self):
    workdir = self.create_tempdir().full_path
    code, _, error = cli.here(
      'digits.py', 'train', workdir, '--config.net.name=cnn', '--config.net.channels=8',
      '--config.net.blocks=1',
      '--config.train.steps=1', '--config.train.batch=8', '--config.train.warmup=0',
      f'--config.train.start={self.start}',
    )  # fmt: skip
    self.assertEqual(code, 0, error[-500:])
    code, _, error = cli.here('masked.py', 'train', workdir, '--config.train.start=x')
    self.assertEqual(code, 1)
    self.assertIn("task 'masked' trains from random weights", error)


if __name__ == '__main__':
  absltest.main()
