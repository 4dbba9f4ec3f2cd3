"""Score machines against the public code's golden values, brute force, and what is known in closed
form."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from gmm_diffusion.denoisers import exact, score_machines
from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import grids
from gmm_diffusion.samplers import make as sampler
from gmm_diffusion.types import Time
from helpers import cases

RANDOM = np.random.RandomState(0)
IMAGES, QUERIES = RANDOM.uniform(-1, 1, (5, 6, 7, 2)), RANDOM.randn(3, 6, 7, 2)
LABELS = np.array([0, 1, 0, 1, 0])


def time_of(b):
  return Time(np.float64(0), np.sqrt(1 - b**2), np.float64(b))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3), static_argnames=('memory',))
def _answer(
  name, size, padding, places, images, x, time, labels=None, cond=None, memory=score_machines.MEMORY
):
  return score_machines.make(name, images, size, padding, places, labels, memory=memory)(
    x, time, cond
  )


def answer(name, size, padding, places, images, x, time, **options):
  return _answer(name, size, padding, places, jnp.asarray(images), jnp.asarray(x), time, **options)


def seen(name, shape, size, padding, places):
  """(pixel, place) -> how many times W compares them: the definition of each machine, place by
  place."""
  H, W, _ = shape
  r = size // 2
  overhang = lambda y, x: (min(y, r), min(x, r), min(H - 1 - y, r), min(W - 1 - x, r))
  if name == 'LS':
    return lambda pixel, place: pixel == place
  if name == 'bbELS':
    return lambda pixel, place: overhang(*pixel) == overhang(*place)
  return lambda pixel, place: places == 'all' or overhang(*place) == (r, r, r, r)


def brute_force(name, images, x, time, size, padding, places):
  """E_W[phi'] pixel by pixel, patch by patch."""
  H, W, _ = x.shape
  r = size // 2
  mode = {'zero': 'constant', 'circular': 'wrap'}[padding]
  pad = lambda image: np.pad(image, ((r, r), (r, r), (0, 0)), mode)
  allowed = seen(name, x.shape, size, padding, places)
  pixels = [(y, x) for y in range(H) for x in range(W)]
  out = np.zeros_like(x)
  for p in pixels:
    units = [(image, place) for image in images for place in pixels if allowed(p, place)]
    cut = lambda image, place: pad(image)[place[0] : place[0] + size, place[1] : place[1] + size]
    logits = [
      -np.sum((cut(x, p) - time.a * cut(image, place)) ** 2) / (2 * time.b**2)
      for image, place in units
    ]
    out[p] = special.softmax(logits) @ np.array([image[place] for image, place in units])
  return out


class GoldenTest(cases.X64TestCase):
  @parameterized.parameters(
    *(
      (file, case)
      for file in ('gray', 'rgb')
      for case in ('IS', 'LS_k3', 'ELS_k3', 'bbELS_k3', 'LS_k5', 'ELS_k5', 'bbELS_k5')
    )
  )
  def test_scores(self, file, case):
    golden = cases.golden('g9_kambm_' + file)
    name, _, size = case.partition('_k')
    images, x, betas = (
      np.moveaxis(golden['images'], 1, -1),
      np.moveaxis(golden['x'], 2, -1),
      golden['betas'],
    )
    for level, beta in enumerate(betas):
      time = time_of(np.sqrt(beta))
      found = answer(
        name,
        int(size or 3),
        'circular' if name == 'ELS' else 'zero',
        'interior',
        images.astype(np.float64),
        x[level].astype(np.float64),
        time,
      )
      score = np.moveaxis(-found.eps / time.b, -1, 1)
      np.testing.assert_allclose(
        score, golden[case][level], rtol=0, atol=1e-10 * np.abs(golden[case][level]).max()
      )

  @parameterized.parameters('IS', 'LS_k3', 'ELS_k3', 'bbELS_k3')
  def test_one_class(self, case):
    golden = cases.golden('g9_kambm_gray')
    name, _, size = case.partition('_k')
    images = score_machines.subset(
      np.moveaxis(golden['images'], 1, -1).astype(np.float64), golden['labels'], 1
    )
    every = np.moveaxis(golden['images'], 1, -1).astype(np.float64)
    x, time = np.moveaxis(golden['x'], 2, -1)[1].astype(np.float64), time_of(np.sqrt(0.5))
    places = ('circular' if name == 'ELS' else 'zero', 'interior')
    found = answer(name, int(size or 3), *places, images, x, time)
    np.testing.assert_allclose(
      np.moveaxis(-found.eps / time.b, -1, 1),
      golden[case + '_label1' if '_k' in case else case + '_k3_label1'],
      atol=1e-10,
    )
    labelled = answer(
      name,
      int(size or 3),
      *places,
      every,
      x,
      time,
      labels=jnp.asarray(golden['labels'], jnp.int32),
      cond=jnp.ones(3, jnp.int32),
    )
    np.testing.assert_allclose(labelled.x0, found.x0, atol=1e-12)

  @parameterized.parameters(
    'IS_k3_n10', 'LS_k3_n10', 'ELS_k3_n10', 'bbELS_k3_n10', 'ELS_scales', 'bbELS_scales'
  )
  def test_whole_runs_by_ddim(self, case):
    golden = cases.golden('g9_kambm_gray')
    about = json.loads(str(golden['config']))['cases']['machine_' + case]
    n = len(about['scales']) if 'scales' in about else about['nsteps']
    b = np.sqrt(1 - np.cos(np.pi / 2 / 1.008 * np.arange(n)[::-1] / n) ** 2)
    b[-1] = 0
    grid = grids.StepGrid(
      b[:-1], b[1:], np.sqrt(1 - b[:-1] ** 2), b[:-1], np.sqrt(1 - b[1:] ** 2), b[1:]
    )
    size = 3
    if 'scales' in about:  # one for each noise level, the last step first
      size = tuple((float(level), k) for level, k in zip(b[:-1][::-1] + 1e-9, about['scales'][1:]))
    name = case.split('_')[0]
    images, x = (
      np.moveaxis(golden[key], 1, -1).astype(np.float64) for key in ('images', 'machine_x')
    )
    machine = score_machines.make(
      name, jnp.asarray(images), size, 'circular' if name == 'ELS' else 'zero', 'interior'
    )
    found = cases.sample(
      sampler('ddim', {'eta': 0.0}), machine, grid, x.shape[1:], np.arange(2), start=jnp.asarray(x)
    )
    np.testing.assert_allclose(np.moveaxis(found.x, -1, 1), golden['machine_' + case], atol=1e-9)


class BruteForceTest(cases.X64TestCase):
  @parameterized.product(
    b=(1e-3, 0.3, 0.999),
    machine=(
      ('LS', 3, 'zero', ''),
      ('LS', 3, 'circular', ''),
      ('ELS', 3, 'zero', 'interior'),
      ('ELS', 5, 'circular', 'all'),
      ('ELS', 3, 'zero', 'all'),
      ('bbELS', 3, 'zero', ''),
      ('bbELS', 5, 'zero', ''),
    ),
  )
  def test_patch_machines(self, b, machine):
    name, size, padding, places = machine
    time = time_of(b)
    found = answer(name, size, padding, places, IMAGES, QUERIES, time).x0
    for x, x0 in zip(QUERIES, found):
      np.testing.assert_allclose(
        x0, brute_force(name, IMAGES, x, time, size, padding, places), atol=1e-9
      )

  @parameterized.parameters(1e-3, 0.3, 0.999)
  def test_whole_images(self, b):
    time = time_of(b)
    flat = lambda y: y.reshape(len(y), -1)
    weights = lambda units: special.softmax(
      -np.sum((flat(QUERIES)[:, None] - time.a * flat(units)[None]) ** 2, 2) / (2 * b**2), 1
    )
    found = answer('IS', 3, 'zero', '', IMAGES, QUERIES, time).x0
    np.testing.assert_allclose(flat(found), weights(IMAGES) @ flat(IMAGES), atol=1e-11)
    moved = np.concatenate([np.roll(IMAGES, (i, j), (1, 2)) for i in range(6) for j in range(7)])
    found = answer('ES', 3, 'zero', '', IMAGES, QUERIES, time).x0
    np.testing.assert_allclose(flat(found), weights(moved) @ flat(moved), atol=1e-9)

  @parameterized.parameters(0.05, 0.5, 0.99)
  def test_image_consistent(self, b):
    # the weights of equation (6), written out for each pixel: every image's evidence of the
    # attended patches
    time, size = time_of(b), 3
    attended = [(1, 1), (4, 3), (2, 5)]
    machine = lambda attended: score_machines.consistent(
      IMAGES.shape[1:], size, 'zero', np.array(attended)
    )
    pad = lambda image: np.pad(image, ((1, 1), (1, 1), (0, 0)))
    windows = np.stack(
      [
        np.lib.stride_tricks.sliding_window_view(pad(image), (3, 3), (0, 1)).reshape(42, 18)
        for image in IMAGES
      ]
    )
    centres = IMAGES.reshape(5, 42, 2)
    x, places = QUERIES[0], list(np.ndindex(6, 7))
    allowed = seen('bbELS', x.shape, 3, 'zero', '')
    log = {
      p: np.where(
        [allowed(p, q) for q in places],
        -np.sum(
          (
            np.moveaxis(pad(x)[p[0] : p[0] + 3, p[1] : p[1] + 3], -1, 0).reshape(-1)[None, None]
            - time.a * windows
          )
          ** 2,
          2,
        )
        / (2 * b**2),
        -np.inf,
      )
      for p in places
    }
    expected = np.zeros_like(x)
    for p in log:
      image = sum(special.logsumexp(log[y], 1) for y in attended if y != p)
      w = special.softmax(log[p] + image[:, None])
      expected[p] = np.einsum('nj,njc->c', w, centres)
    found = score_machines.of(lambda *_: machine(attended), jnp.asarray(IMAGES), ((1.0, 3),))(
      jnp.asarray(x[None]), time, None
    )
    np.testing.assert_allclose(found.x0[0], expected, atol=1e-9)

  def test_attending_to_nothing_is_the_boundary_broken_machine(self):
    time = time_of(0.4)
    alone = lambda shape, k: score_machines.consistent(shape, k, 'zero', attended=[])
    found = score_machines.of(alone, jnp.asarray(IMAGES), ((1.0, 3),))(
      jnp.asarray(QUERIES), time, None
    )
    np.testing.assert_allclose(
      found.x0, answer('bbELS', 3, 'zero', '', IMAGES, QUERIES, time).x0, atol=1e-12
    )


class ClosedFormTest(cases.X64TestCase):
  @given(seed=st.integers(0, 10**6))
  @settings(max_examples=10)
  def test_black_and_white_give_the_local_majority(self, seed):
    black_and_white = np.stack([-np.ones((6, 6, 1)), np.ones((6, 6, 1))])
    x = np.sign(np.random.RandomState(seed).randn(1, 6, 6, 1))
    majority = np.sign(sum(np.roll(x, (i, j), (1, 2)) for i in (-1, 0, 1) for j in (-1, 0, 1)))
    np.testing.assert_array_equal(
      answer('ELS', 3, 'circular', 'interior', black_and_white, x, time_of(1e-3)).x0, majority
    )

  def test_whole_images_are_the_empirical_denoiser(self):
    time = time_of(0.6)
    expected = exact.empirical(jnp.asarray(IMAGES))(jnp.asarray(QUERIES), time, None)
    found = answer('IS', 3, 'zero', '', IMAGES, QUERIES, time)
    np.testing.assert_allclose(found.x0, expected.x0, atol=1e-12)
    np.testing.assert_allclose(found.eps, expected.eps, atol=1e-12)

  def test_a_patch_as_large_as_the_image(self):
    # LS sees the whole image, around its edges
    images, queries, time = IMAGES[:, :5, :5], QUERIES[:, :5, :5], time_of(0.6)
    found = answer('LS', 5, 'circular', '', images, queries, time).x0
    np.testing.assert_allclose(
      found, answer('IS', 3, 'zero', '', images, queries, time).x0, atol=1e-12
    )
    # and ELS with patches around the edges sees all translates
    found = answer('ELS', 5, 'circular', 'all', images, queries, time).x0
    np.testing.assert_allclose(
      found, answer('ES', 3, 'zero', '', images, queries, time).x0, atol=1e-12
    )

  def test_away_from_the_edges_boundaries_do_not_matter(self):
    time = time_of(0.6)
    one, other = (
      answer(name, 3, 'zero', 'interior', IMAGES, QUERIES, time).x0 for name in ('bbELS', 'ELS')
    )
    np.testing.assert_allclose(one[:, 1:-1, 1:-1], other[:, 1:-1, 1:-1], atol=1e-12)
    self.assertGreater(np.abs(one[:, 0] - other[:, 0]).min(), 1e-3)

  @parameterized.parameters(*score_machines.MACHINES)
  def test_weights_sum_to_one(self, name):
    constant = np.full_like(IMAGES, 0.3)
    np.testing.assert_allclose(
      answer(name, 3, 'zero', '', constant, QUERIES, time_of(0.4)).x0, 0.3, atol=1e-12
    )

  @parameterized.parameters('ES', 'ELS', 'consistent')
  def test_equivariance(self, name):
    # a moved query has a moved answer (consistent: where every pixel attends to every other)
    build = lambda shape, k: score_machines.MACHINES[name](shape, k, 'circular', 'all')
    if name == 'consistent':
      build = lambda shape, k: score_machines.consistent(
        shape, k, 'circular', np.argwhere(np.ones((6, 7)))
      )
    machine = jax.jit(
      lambda x: score_machines.of(build, jnp.asarray(IMAGES), ((1.0, 3),))(x, time_of(0.4), None).x0
    )
    moved = lambda y: jnp.roll(y, (2, 3), (1, 2))
    np.testing.assert_allclose(
      machine(moved(jnp.asarray(QUERIES))), moved(machine(jnp.asarray(QUERIES))), atol=1e-11
    )

  @parameterized.parameters(*score_machines.MACHINES)
  def test_blocks_and_batches(self, name):
    time = time_of(0.05)
    whole = answer(name, 3, 'zero', '', IMAGES, QUERIES, time)
    shape = IMAGES.shape[1:]
    memory = (
      2
      * 3
      * 8
      * max(
        part.pairs for part in score_machines.MACHINES[name](shape, 3, 'zero', 'interior').parts
      )
    )  # 5 images by twos
    np.testing.assert_allclose(
      answer(name, 3, 'zero', '', IMAGES, QUERIES, time, memory=memory).x0, whole.x0, atol=1e-12
    )
    turned = answer(name, 3, 'zero', '', IMAGES, QUERIES[::-1], time)  # at any place in a batch
    np.testing.assert_allclose(turned.x0[::-1], whole.x0, atol=1e-12)

  @parameterized.parameters('ELS', 'bbELS', 'LS', 'IS', 'consistent')
  def test_devices_share_the_images(self, name):
    # at this noise level the largest logits of the two parts are thousands apart
    collectives = score_machines.Collectives(
      lambda v: jax.lax.pmax(v, 'part'), lambda v: jax.lax.psum(v, 'part')
    )
    parts = jnp.asarray(np.concatenate([IMAGES, IMAGES[:1]])).reshape(2, 3, 6, 7, 2)
    priors = jnp.asarray([[0, 0, 0], [0, 0, -np.inf]])  # the sixth only fills
    shared = jax.jit(
      jax.vmap(
        lambda images, priors: (
          score_machines.make(name, images, 3, log_priors=priors, collectives=collectives)(
            jnp.asarray(QUERIES), time_of(0.05), None
          ).x0
        ),
        axis_name='part',
      )
    )(parts, priors)
    whole = answer(name, 3, 'zero', 'interior', IMAGES, QUERIES, time_of(0.05)).x0
    np.testing.assert_allclose(shared[0], whole, atol=1e-9)
    np.testing.assert_allclose(shared[1], whole, atol=1e-9)

  def test_one_image_at_a_time_and_one_query(self):
    time = time_of(0.05)
    whole = answer('ELS', 3, 'zero', '', IMAGES, QUERIES, time)
    np.testing.assert_allclose(
      answer('ELS', 3, 'zero', '', IMAGES, QUERIES[1:2], time, memory=1).x0[0],
      whole.x0[1],
      atol=1e-12,
    )

  @parameterized.parameters('IS', 'bbELS')
  def test_each_query_sees_its_class(self, name):
    time, labels = time_of(0.4), jnp.asarray(LABELS, jnp.int32)
    found = answer(
      name, 3, 'zero', '', IMAGES, QUERIES, time, labels=labels, cond=jnp.array([1, 0, 1])
    ).x0
    for i, label in enumerate((1, 0, 1)):
      one = answer(
        name, 3, 'zero', '', score_machines.subset(IMAGES, LABELS, label), QUERIES[i : i + 1], time
      ).x0
      np.testing.assert_allclose(found[i], one[0], atol=1e-11)

  def test_a_patch_size_for_each_noise_level(self):
    sizes = ((0.3, 1), (0.6, 3), (1.0, 1))
    machine = jax.jit(
      lambda x, time: score_machines.make('ELS', jnp.asarray(IMAGES), sizes)(x, time, None).x0
    )
    for b, size in ((0.1, 1), (0.3, 1), (0.31, 3), (0.9, 1), (2.0, 1)):
      time = Time(0.0, 0.5, b)
      np.testing.assert_allclose(
        machine(jnp.asarray(QUERIES), time),
        answer('ELS', size, 'zero', '', IMAGES, QUERIES, time).x0,
        atol=1e-12,
      )


class TilingTest(parameterized.TestCase):
  @parameterized.parameters(
    ((12, 12, 3), 7, 4), ((12, 12, 3), 3, 16), ((8, 13, 1), 5, 6), ((5, 5, 1), 5, 1)
  )
  def test_the_image_is_covered(self, shape, size, count):
    centres = score_machines.tiling(shape, size)
    self.assertLen(centres, count)
    covered = np.zeros(shape[:2], bool)
    for y, x in centres:
      self.assertEqual(
        covered[y - size // 2 : y + size // 2 + 1, x - size // 2 : x + size // 2 + 1].shape,
        (size, size),
      )
      covered[y - size // 2 : y + size // 2 + 1, x - size // 2 : x + size // 2 + 1] = True
    self.assertTrue(covered.all())


class BadInputTest(parameterized.TestCase):
  @parameterized.parameters(
    (dict(size=4), 'patch size must be odd, so that a patch has a centre; got 4'),
    (dict(size=7), 'patch size 7 is larger than the images of 6 x 7'),
    (dict(size=()), r'patch sizes must be a number or \(\(b, size\), ...\)'),
    (dict(size=((0.5, 3), (0.5, 5))), 'increasing noise levels b'),
    (dict(places='some'), "unknown places 'some'; valid: interior, all"),
    (dict(padding='mirror'), "unknown padding 'mirror'; valid: zero, circular"),
    (dict(size=np.int64(4)), 'patch size must be odd, so that a patch has a centre; got 4'),
  )
  def test_settings(self, options, message):
    with self.assertRaisesRegex(UserError, message):
      score_machines.make('ELS', IMAGES, **options)

  def test_images_smaller_than_any_patch(self):
    for name in ('IS', 'ES'):
      found = score_machines.make(name, IMAGES[:, :1, :2])(
        QUERIES[:, :1, :2].astype(np.float32), time_of(1e-3), None
      ).x0
      self.assertEqual(found.shape, (3, 1, 2, 2))

  def test_unknown_machine(self):
    with self.assertRaisesRegex(
      UserError, "unknown machine 'XS'; valid: IS, ES, LS, ELS, bbELS, consistent"
    ):
      score_machines.make('XS', IMAGES)

  def test_queries(self):
    machine = score_machines.make('ELS', IMAGES, labels=LABELS)
    with self.assertRaisesRegex(
      UserError, 'a machine of 6 x 7 x 2 images was asked about 6 x 6 x 2'
    ):
      machine(QUERIES[:, :, :6], time_of(0.5), np.zeros(3, int))
    with self.assertRaisesRegex(UserError, 'noise level b = 0 has no posterior'):
      machine(QUERIES, time_of(0.0), np.zeros(3, int))
    with self.assertRaisesRegex(UserError, 'class 7 has no training images; valid: 0, 1'):
      machine(QUERIES, time_of(0.5), np.array([0, 7, 1]))
    with self.assertRaisesRegex(UserError, 'class 7 has no training images; valid: 0, 1'):
      score_machines.subset(IMAGES, LABELS, 7)


if __name__ == '__main__':
  absltest.main()
