"""Files of tensors: what PyTorch and this repository wrote is read exactly, and nothing in a file
is run.

testdata/torch_zip.pt and torch_legacy.pt were saved by PyTorch 2.13 (torch.save(tensors) and, with
_use_new_zipfile_serialization=False, torch.save({'state_dict': tensors, 'epoch': 3, ...})), where
tensors are those of `expected`: views are views there, and the two of `shared` lie in one storage.
"""

import argparse
import collections
import contextlib
import io
import json
import os
import pathlib
import pickle
import signal
import sys
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
from absl.testing import absltest, parameterized

from experiments.lib import released_layout
from gmm_diffusion.checkpoints import torch_files
from gmm_diffusion.checkpoints.tensor_files import open_tensors
from gmm_diffusion.errors import UserError
from helpers import cases

BFLOAT16 = ml_dtypes.bfloat16
FIXTURES = ('torch_zip.pt', 'torch_legacy.pt')
WRITERS = {'.safetensors': released_layout.write_safetensors, '.ckpt': released_layout.write_torch}
plain = lambda value: pickle.dumps(value, 2)[2:-1]  # opcodes that leave a value on the stack
glob = lambda module, name: b'c%s\n%s\n' % (module.encode(), name.encode())
stack_glob = lambda module, name: plain(module) + plain(name) + b'\x93'


def expected():
  a = np.arange(12, dtype=np.float32).reshape(3, 4) / 8
  base = np.arange(20, dtype=np.float32).reshape(5, 4)
  return {
    'float32': a,
    'float16': a.astype(np.float16),
    'bfloat16': a.astype(BFLOAT16),
    'int64': np.arange(6).reshape(2, 3) - 2**40,
    'bool': np.array([True, False]),
    'scalar': np.float32(2.5),
    'empty': np.zeros((0, 3), np.float32),
    'transposed': a.T,
    'permuted': np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1),
    'slice': base[2:5, 1:3],
    'shared.first': base[:3],
    'shared.last': base[2:],
    'parameter': a + 1,
  }


def tensor(storage=None, offset=0, shape=(4,), strides=(1,), rebuild='_rebuild_tensor_v2'):
  """Opcodes of a tensor."""
  return (
    glob('torch._utils', rebuild)
    + b'('
    + (storage or pid())
    + plain(offset)
    + plain(shape)
    + plain(strides)
    + b'\x89'
    + glob('collections', 'OrderedDict')
    + b')RtR'
  )


def pid(key='0', count=4, kind=glob('torch', 'FloatStorage'), word='storage', last=b''):
  """Opcodes of the reference to a storage."""
  return b'(' + plain(word) + kind + plain(key) + plain('cpu') + plain(count) + last + b'tQ'


def dictionary(**values):
  return b'}(' + b''.join(plain(key) + value for key, value in values.items()) + b'u'


def zip_file(
  body, data=np.arange(4, dtype='<f4').tobytes(), byteorder='little', compression=zipfile.ZIP_STORED
):
  out = io.BytesIO()
  with zipfile.ZipFile(out, 'w', compression) as archive:
    archive.writestr('a/data.pkl', b'\x80\2' + body + b'.')
    archive.writestr('a/byteorder', byteorder)
    archive.writestr('a/data/0', data)
  return out.getvalue()


def legacy_file(body, data=np.arange(4, dtype='<f4').tobytes()):
  head = [
    pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {'little_endian': True})
  ]
  return (
    b''.join(head)
    + b'\x80\2'
    + body
    + b'.'
    + pickle.dumps(['0'], 2)
    + (4).to_bytes(8, 'little')
    + data
  )


class TensorFilesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = self.create_tempdir().full_path

  def path(self, name):
    return os.path.join(self.folder, name)

  def file(self, content, name='a.pt'):
    with open(self.path(name), 'wb') as file:
      file.write(content)
    return self.path(name)

  def refused(self, path, message):
    with self.assertRaisesRegex(UserError, message) as caught:
      open_tensors(path)
    self.assertNotIn('\n', str(caught.exception))
    self.assertIn(path, str(caught.exception))
    self.assertLess(len(str(caught.exception)) - len(path), 300)

  def check(self, source, arrays):
    self.assertEqual(source.shapes, {name: array.shape for name, array in arrays.items()})
    self.assertEqual(source.dtypes, {name: array.dtype.name for name, array in arrays.items()})
    for name, array in arrays.items():
      found = source.read(name)
      self.assertEqual((found.shape, found.dtype), (array.shape, array.dtype), name)
      self.assertTrue(found.flags.c_contiguous and found.flags.writeable, name)
      self.assertEqual(found.tobytes(), array.tobytes(), name)

  @parameterized.parameters(*FIXTURES)
  def test_files_of_pytorch(self, name):
    with open_tensors(os.path.join(cases.TESTDATA, name)) as source:
      self.check(source, expected())
      with self.assertRaisesRegex(UserError, "no tensor 'other' in .*; it has 'float32', .*"):
        source.read('other')
    with self.assertRaises(ValueError):
      source.read('float32')  # closed

  @parameterized.product(extension=tuple(WRITERS), nest=('', 'state_dict', 'ema'))
  def test_written_here(self, extension, nest):
    arrays = {name: value for name, value in expected().items() if value.dtype != bool}
    options = {'nest': nest} if extension == '.ckpt' else {}
    WRITERS[extension](self.path('a' + extension), released_layout.made(arrays), **options)
    self.assertEqual(os.listdir(self.folder), ['a' + extension])
    with open_tensors(self.path('a' + extension)) as source:
      self.check(source, arrays)

  def test_layout(self):
    tensors = released_layout.made({'x': np.zeros(3, np.float32)})
    released_layout.write_torch(self.path('a.pt'), tensors, nest='other')
    self.refused(self.path('a.pt'), "no tensors by name; it has 'other'")
    released_layout.write_safetensors(self.path('a.safetensors'), tensors)
    self.assertEqual(
      (os.path.getsize(self.path('a.safetensors')) - 12) % 8, 0
    )  # the tensors start at multiples of 8

  @parameterized.product(extension=tuple(WRITERS), other=(np.zeros(3, np.float32), np.zeros(2)))
  def test_an_unfinished_file_does_not_appear(self, extension, other):
    tensors = {
      'a': ((2,), np.float32, lambda: np.zeros(2, np.float32)),
      'b': ((2,), np.float32, lambda: other),
    }
    with self.assertRaisesRegex(
      ValueError, r'b was to be \(2,\) of float32, got \((2|3),\) of float(32|64)'
    ):
      WRITERS[extension](self.path('a' + extension), tensors)
    self.assertEqual(os.listdir(self.folder), [])

  @parameterized.parameters(*WRITERS)
  def test_one_tensor_in_memory(self, extension):
    size = 2**20
    tensors = {
      f'n{i}': ((size,), np.float16, lambda i=i: np.full(size, i, np.float16)) for i in range(8)
    }
    path = self.path('a' + extension)
    tracemalloc.start()
    try:
      WRITERS[extension](path, tensors)
      written = tracemalloc.get_traced_memory()[1]
      tracemalloc.reset_peak()
      with open_tensors(path) as source:
        opened = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        for i in range(8):
          np.testing.assert_equal(source.read(f'n{i}')[[0, -1]], i)
        read = tracemalloc.get_traced_memory()[1]
    finally:
      tracemalloc.stop()
    self.assertLess(opened, size // 2)
    self.assertLess(max(written, read), 3 * size)  # of 2 size each

  def test_old_forms(self):
    body = dictionary(a=tensor(rebuild='_rebuild_tensor'), b=tensor(pid(last=b'N'), 1, (2,), (2,)))
    arrays = {'a': np.arange(4, dtype=np.float32), 'b': np.float32([1, 3])}
    for content in (zip_file(body), legacy_file(body)):
      with open_tensors(self.file(content)) as source:
        self.check(source, arrays)

  def test_byteorder(self):
    with open_tensors(
      self.file(zip_file(dictionary(a=tensor()), np.arange(4, dtype='>f4').tobytes(), 'big'))
    ) as source:
      self.check(source, {'a': np.arange(4, dtype=np.float32)})
    self.refused(
      self.file(zip_file(dictionary(a=tensor()), byteorder='middle')),
      'is truncated or not a checkpoint',
    )

  def test_which_tensors(self):
    nested = dictionary(x=tensor())
    for body, names in (
      (dictionary(ema=nested, model=dictionary(y=tensor()), opt=dictionary(z=tensor())), ['x']),
      (dictionary(state_dict=nested, ema=dictionary(y=tensor())), ['x']),
      (dictionary(a=tensor(), ema=plain(3), n=plain(1), sub=nested), ['a']),
    ):
      with open_tensors(self.file(zip_file(body))) as source:
        self.assertEqual(list(source.shapes), names)
    self.refused(
      self.file(zip_file(dictionary(model=nested))),
      "no tensors by name; it has 'model': save the state_dict",
    )
    self.refused(self.file(zip_file(tensor())), 'no tensors by name; it has _Tensor')
    self.refused(self.file(zip_file(b'}')), 'no tensors by name')

  def test_shards(self):
    arrays = {name: np.float32([i]) for i, name in enumerate('abc')}
    for extension, write in (
      ('.safetensors', released_layout.write_safetensors),
      ('.bin', released_layout.write_torch),
    ):
      shards = {'a': '1' + extension, 'b': '2' + extension, 'c': '1' + extension}
      for shard in set(shards.values()):
        write(
          self.path(shard),
          released_layout.made({name: arrays[name] for name in 'abc' if shards[name] == shard}),
        )
      index = self.file(
        json.dumps({'metadata': {}, 'weight_map': shards}).encode(), f'w{extension}.index.json'
      )
      with open_tensors(index) as source:
        self.check(source, arrays)
    save = lambda **shards: self.file(json.dumps({'weight_map': shards}).encode(), 'w.index.json')
    self.refused(save(x='1.bin'), "places 'x' in 1.bin, which does not have it")
    self.refused(save(x='../1.bin'), "names the shard '../1.bin'")
    self.refused(save(x='w.index.json'), "names the shard 'w.index.json'")
    self.refused(save(), 'names no shards')
    self.refused(self.file(b'[]', 'w.index.json'), 'is truncated or not a checkpoint')
    self.refused(
      self.file(b'{"weight_map": {"a": 3}}', 'w.index.json'), 'is truncated or not a checkpoint'
    )
    with self.assertRaisesRegex(UserError, 'cannot read .*3.bin: No such file'):
      open_tensors(save(x='3.bin'))

  def test_what_training_left_is_ignored(self):
    with open(self.file(b'raise RuntimeError', 'omegaconf.py'), encoding='utf-8'):
      self.enter_context(absltest.mock.patch.object(sys, 'path', [self.folder] + sys.path))
    config = (
      b'\x81'.join([glob('omegaconf.dictconfig', 'DictConfig') + b')', b''])
      + plain({'_content': 3})
      + b'b'
    )
    callback = glob('pytorch_lightning.callbacks.model_checkpoint', 'ModelCheckpoint')
    score = plain(np.float64(2)) + b'0' + plain(np.arange(3)) + b'0' + plain(np.dtype('>f8'))
    body = dictionary(
      state_dict=dictionary(x=tensor()),
      epoch=plain(3),
      hyper_parameters=config,
      score=score,
      callbacks=b'}' + callback + plain({'best': None}) + b's',
      any=glob('typing', 'Any'),
      args=plain(argparse.Namespace(a=1)),
      path=plain(pathlib.PurePosixPath('a/b')),
      counts=plain(collections.defaultdict(list, {1: [2]})),
      size=glob('torch', 'Size') + b'((K\1ttR',
      dtype=glob('torch', 'float16'),
      device=glob('torch', 'device') + plain(('cuda',)) + b'R',
      optimizer=glob('torch.optim.adam', 'Adam') + b')R(' + plain('a') + plain(1) + b'u(K\1e',
    )
    for content in (zip_file(body), legacy_file(body)):
      with open_tensors(self.file(content)) as source:
        self.check(source, {'x': np.arange(4, dtype=np.float32)})
    self.assertNotIn('omegaconf', sys.modules)

  CODE = {
    'reduce': (glob('posix', 'system') + plain(('touch mark',)) + b'R', 'posix.system'),
    'eval': (glob('builtins', 'eval') + plain(("open('mark', 'w')",)) + b'R', 'builtins.eval'),
    'python 2': (
      glob('__builtin__', 'eval') + plain(("open('mark', 'w')",)) + b'R',
      '__builtin__.eval',
    ),
    'stack global': (stack_glob('os', 'system') + plain(('touch mark',)) + b'R', 'os.system'),
    'inst': (b'(' + plain('touch mark') + b'iposix\nsystem\n', 'posix.system'),
    'obj': (b'(' + glob('posix', 'system') + plain('touch mark') + b'o', 'posix.system'),
    'newobj': (
      glob('subprocess', 'Popen') + plain((['touch', 'mark'],)) + b'\x81',
      'subprocess.Popen',
    ),
    'getattr': (
      glob('builtins', 'getattr') + b'(' + glob('torch', 'Size') + plain('__class__') + b'tR',
      'builtins.getattr',
    ),
    'dotted': (
      stack_glob('collections', 'OrderedDict.__init__.__globals__'),
      'collections.OrderedDict.__init__',
    ),
    'set': (glob('builtins', 'set') + b')R', 'builtins.set'),
    'torch.load': (glob('torch', 'load') + plain(('mark',)) + b'R', 'torch.load'),
    'lines': (stack_glob('omegaconf\nos', 'system'), r'omegaconf\\nos.system'),
    'prefix': (glob('omegaconf_evil', 'x'), 'omegaconf_evil.x'),
    'suffix': (stack_glob('builtins', 'dict.update'), 'builtins.dict.update'),
    'model': (glob('torch.nn.modules.conv', 'Conv2d') + b')\x81', 'torch.nn.modules.conv.Conv2d'),
  }

  @parameterized.product(name=tuple(CODE), container=('zip', 'legacy', 'bare'))
  def test_code_is_refused(self, name, container):
    body, refers = self.CODE[name]
    content = {
      'zip': lambda: zip_file(dictionary(x=tensor(), y=body)),
      'legacy': lambda: legacy_file(dictionary(y=body)),
      'bare': lambda: b'\x80\2' + body + b'.',
    }[container]()
    self.enter_context(contextlib.chdir(self.folder))
    self.refused(
      self.file(content), f'refers to {refers}.*, which is code and not tensors; refused'
    )
    self.assertEqual(os.listdir(self.folder), ['a.pt'])

  def test_state_is_not_set(self):
    ignored = glob('omegaconf', 'A')
    found = glob('torch._utils', '_rebuild_tensor_v2')
    before = {
      name: dict(vars(value))
      for name, value in vars(torch_files).items()
      if isinstance(value, type)
    }
    state = (
      b'('
      + plain({'__setstate__': 1, 'x': 2})
      + plain({'__class__': 3, '__setitem__': 4, '__defaults__': ()})
      + b't'
    )
    body = dictionary(
      x=tensor() + state + b'b',
      **{
        f'y{i}': target + state + b'b'
        for i, target in enumerate((ignored, ignored + b')R', ignored + b')\x81', found, b'}'))
      },
    )
    with open_tensors(self.file(zip_file(body))) as source:
      self.check(source, {'x': np.arange(4, dtype=np.float32)})
    self.assertEqual(vars(torch_files._rebuild_tensor), {})
    self.assertEqual({name: dict(vars(getattr(torch_files, name))) for name in before}, before)

  @parameterized.parameters(
    (b'\x82\1', 'KeyError'),  # a number of the process's registry
    (plain('storage') + b'Q', 'storage'),
    (b'Pstorage\n', 'storage'),
    (pid(word='module'), 'storage'),
    (pid('1', kind=plain('Float')), 'storage'),
    (pid('1', kind=glob('torch', 'float32')), 'storage'),
    (pid(count=-1), 'storage'),
    (pid(count=4.0), 'storage'),
    (pid(key=0), 'storage'),
    (pid(last=plain(('0', 0, 4))), 'storage'),
    (pid() + pid(kind=glob('torch', 'HalfStorage')), 'storage'),
    (tensor(plain('0')), ''),
    (tensor(shape=3), 'TypeError'),
    (b'00', 'IndexError'),
    (b'j\0\0\0\xf0', 'UnpicklingError'),
  )
  def test_damaged_pickles(self, body, message):
    for make in (zip_file, legacy_file):
      self.refused(
        self.file(make(dictionary(x=tensor()) + body + b'N')),
        'is truncated or not a checkpoint.*' + message,
      )

  def test_a_large_memo_costs_nothing(self):
    with open_tensors(
      self.file(zip_file(dictionary(x=tensor()) + b'r\xff\xff\xff\xff'))
    ) as source:  # place 2^32 - 1
      self.check(source, {'x': np.arange(4, dtype=np.float32)})

  @parameterized.parameters(
    ('torch._utils', '_rebuild_sparse_tensor'),
    ('torch._utils', '_rebuild_qtensor'),
    ('torch', 'QInt8Storage'),
    ('torch', 'ComplexFloatStorage'),
    ('torch._tensor', '_rebuild_from_type_v2'),
  )
  def test_other_kinds_of_tensors(self, module, name):
    self.refused(
      self.file(zip_file(glob(module, name))), f'holds {module}.{name}; only dense tensors'
    )

  @parameterized.parameters(
    dict(offset=1),
    dict(offset=-1),
    dict(shape=(5,)),
    dict(shape=(2, 2), strides=(3, 1)),
    dict(strides=(2,)),
    dict(strides=(-1,)),
    dict(shape=(-4,)),
    dict(shape=(2, 2)),
    dict(shape=(2**70,), strides=(0,)),
    dict(shape=(1,), strides=(2**70,)),
    dict(shape=(4.0,)),
    dict(shape=('4',)),
    dict(offset=0.5),
    dict(storage=pid(count=2**40)),
    dict(storage=pid(count=5), shape=(5,)),
  )
  def test_tensors_outside_of_their_storage(self, **options):
    for make in (zip_file, legacy_file):
      self.refused(
        self.file(
          make(
            dictionary(ok=tensor() if 'storage' not in options else plain(1), x=tensor(**options))
          )
        ),
        "has no room for 'x'|has 16 bytes where",
      )

  @parameterized.parameters(
    ([0, 15], (4,), 'F32', 'no room'),
    ([1, 17], (4,), 'F32', 'no room'),
    ([-4, 12], (4,), 'F32', 'no room'),
    ([0, 16], (5,), 'F32', 'no room'),
    ([0, 16], (3,), 'F32', 'of shape .* in 16 bytes'),
    ([0, 16], (-4,), 'F32', 'no room'),
    ([0, 16], (4,), 'F4', "'x' of dtype 'F4'; valid: F64"),
    ([0, 16], ('4',), 'F32', ''),
    ([0], (4,), 'F32', 'ValueError'),
    (None, (4,), 'F32', 'TypeError'),
    ([0.0, 16], (4,), 'F32', 'no room'),
    ([8, 8], (2**62, 0), 'F32', 'no room'),
    ([0, 4], (1,) * 65, 'F32', 'no room'),
  )
  def test_bad_safetensors(self, offsets, shape, dtype, message):
    header = json.dumps({'x': {'dtype': dtype, 'shape': shape, 'data_offsets': offsets}}).encode()
    content = len(header).to_bytes(8, 'little') + header + bytes(16)
    self.refused(self.file(content, 'a.safetensors'), message)

  def test_lengths_that_a_file_claims_cost_nothing(self):
    head = (2**31).to_bytes(8, 'little')
    archive = zip_file(dictionary(x=tensor()))
    at = archive.index(b'PK\1\2') + 20  # in the directory: both sizes of data.pkl
    archive = archive[:at] + head[:4] + head[:4] + archive[at + 8 :]
    tracemalloc.start()
    try:
      self.refused(
        self.file(head + b'{"x": 1}', 'a.safetensors'), 'is truncated or not a checkpoint'
      )
      self.refused(self.file(archive), 'is truncated or not a checkpoint')
      self.assertLess(tracemalloc.get_traced_memory()[1], 2**23)
    finally:
      tracemalloc.stop()

  deep = b')' + b'\x85' * 60_000
  double = b')' + b'2\x86' * 60  # a tuple of 2^60 parts, in 121 bytes
  collide = lambda form: b''.join(form(i * (2**61 - 1)) for i in range(1, 20_000))
  torch_size = glob('torch', 'Size')
  # Each took minutes or gigabytes, or ended the interpreter, as Python does what a pickle says.
  HOSTILE = {
    'announced array': b'\x96' + (2**33).to_bytes(8, 'little'),
    'announced bytes': b'\x8e' + (2**33).to_bytes(8, 'little'),
    'announced text': b'\x8d' + (2**33).to_bytes(8, 'little'),
    'announced frame': b'\x95' + (2**33).to_bytes(8, 'little'),
    'deep key': b'}' + deep + b'Ns0',
    'deep keys': b'}(' + deep + b'Nu0',
    'deep dict': b'(' + deep + b'Nd0',
    'deep set': b'\x8f(' + deep + b'\x900',
    'deep frozenset': b'(' + deep + b'\x910',
    'deep ordered dict': glob('collections', 'OrderedDict') + b'](' + deep + b'N\x86e\x85R0',
    'double key': b'}' + double + b'Ns0',
    'double reference': double + b'Q',
    'double storage': b'(' + plain('storage') + 4 * double + b'tQ',
    'double shape': tensor().replace(plain((4,)), double),
    'keys of one hash': b'}(' + collide(lambda n: plain(n) + b'N') + b'u0',
    'places of one hash': collide(lambda n: b'p%d\n' % n),
    'copies': b'(' + b'N' * 10_000 + b'tq\0' + torch_size + b'q\1' + b'h\1h\0\x85R' * 10_000,
    'copied arguments': b'(' + b'N' * 10_000 + b'tq\0' + torch_size + b'q\1' + b'h\1h\0R' * 10_000,
    'long shape': tensor(shape=(1,) * 10_000, strides=(1,) * 10_000),
    'huge numbers': tensor(shape=(2**800_000,) * 4, strides=(2**800_000,) * 4),
    'long name': glob('a' * 10**6, 'b' * 10**6),
    'long names': plain('a' * 10**6) + b'q\0' + b'h\0h\0\x930' * 10_000,
    'long fraction': b'F' + b'1' * 10**6 + b'\n0',
    'many steps': b'N' * 60_000,
  }

  @parameterized.parameters(
    *((name, zip_file) for name in HOSTILE),
    *((name, legacy_file) for name in HOSTILE if name.startswith('announced')),
  )
  def test_hostile_pickles(self, name, make):
    # A tenth of what is allowed suffices for all but the one that takes many steps.
    self.enter_context(absltest.mock.patch.object(torch_files, '_STEPS', 200_000))
    content = make(dictionary(x=tensor(), y=self.HOSTILE[name] + b'N0N'))
    path = self.file(content)
    with self.quick(limit=60 * len(content) + 2**26):
      try:
        with open_tensors(path) as source:
          self.assertEqual(list(source.shapes), ['x'])
      except UserError as error:
        self.assertRegex(str(error), r'^[ -~]{20,500}$')

  @contextlib.contextmanager
  def quick(self, limit):
    """Stops after ten seconds of the processor, and fails above `limit` bytes of memory."""

    def stop(*_):
      raise SystemExit('the time is up')  # no Exception, which is caught

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, 10)
    tracemalloc.start()
    try:
      yield
      self.assertLess(tracemalloc.get_traced_memory()[1], limit)
    finally:
      tracemalloc.stop()
      signal.setitimer(signal.ITIMER_VIRTUAL, 0)
      signal.signal(signal.SIGVTALRM, before)

  @parameterized.parameters(
    (b'{"x":[' + b'[],' * 4_000_000 + b'[]]}', 'bytes of names and shapes, at most 8,388,608'),
    (b'[' * 100_000 + b']' * 100_000, 'RecursionError'),
    (b'{"x":' * 100_000 + b'1' + b'}' * 100_000, 'RecursionError'),
    (b'{"x":1.' + b'1' * 1_000_000 + b'}', 'TypeError'),
    (b'{"x":{"dtype":"F32","data_offsets":[0,4],"shape":[1' + b',1' * 10**5 + b']}}', 'no room'),
    (
      b'{"x":{"dtype":"F32","data_offsets":[0,4],"shape":[' + b'[],' * 10**5 + b'1]}}',
      'no room .* that is none',
    ),
    (b'{"x":{"dtype":"F32","data_offsets":[0,4],"shape":{}}}', 'no room .* that is none'),
    (
      b'{"x":{"dtype":"F32","data_offsets":[0,4],"shape":[' + b'9' * 4000 + b',1]}}',
      "no room for 'x'",
    ),
    (b'{"x\\n":1,"x\\n":2}', 'names a tensor twice'),
    (
      b'{"x":{"dtype":"F32","data_offsets":[0,8],"shape":[2]},'
      b'"y":{"dtype":"F32","data_offsets":[4,8],"shape":[1]}}',
      'tensors that overlap, or gaps',
    ),
    (b'{"x":{"dtype":"F32","data_offsets":[8,16],"shape":[2]}}', 'tensors that overlap, or gaps'),
    (
      b'{"\\n\\u001b":{"dtype":"F4","data_offsets":[0,4],"shape":[1]}}',
      r"'\\n\\x1b' of dtype 'F4'",
    ),
  )
  def test_hostile_headers(self, header, message):
    path = self.file(len(header).to_bytes(8, 'little') + header + bytes(16), 'a.safetensors')
    with self.quick(limit=30 * len(header) + 2**22):
      self.refused(path, message)

  def test_hostile_indices(self):
    lists = b'{"weight_map":{"x":[' + b'[],' * 4_000_000 + b'[]]}}'
    for content, message in (
      (lists, 'bytes of names and shapes, at most 8,388,608'),
      (b'{"weight_map":{"x":' + b'[' * 10**5 + b']' * 10**5 + b'}}', 'RecursionError'),
      (b'{"weight_map":{"x":"..","x":"."}}', 'names a tensor twice'),
      (b'{"weight_map":{"x":"a\\nb"}}', r"names the shard 'a\\nb'"),
      (b'{"weight_map":{"x":"' + b'k' * 10**5 + b'"}}', "names the shard 'kkk"),
    ):
      with self.quick(limit=2**22):
        self.refused(self.file(content, 'a.index.json'), message)
    with self.assertRaisesRegex(UserError, r'cannot read .*\.\.: Is a directory'):
      open_tensors(self.file(b'{"weight_map":{"x":".."}}', 'a.index.json'))

  def test_hostile_zips(self):
    body = dictionary(x=tensor())
    archive = zip_file(body)
    data = archive.index(np.arange(4, dtype='<f4').tobytes())
    with open_tensors(self.file(archive[:data] + b'\7' + archive[data + 1 :])) as source:
      with self.assertRaisesRegex(UserError, "the bytes of 'x' differ from their checksum"):
        source.read('x')
    storage = archive.index(plain('storage'))
    changed = archive[: storage + 4] + b'S' + archive[storage + 5 :]
    self.refused(self.file(changed), 'checksum of data.pkl differs')

    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w') as twice, self.assertWarns(UserWarning):
      twice.writestr('a/data.pkl', b'\x80\2' + body + b'.')
      for byte in (b'0', b'1'):
        twice.writestr('a/data/0', byte * 16)
    self.refused(self.file(out.getvalue()), 'two entries of one name')

    # a directory of 10 MB, as its end says; and a pickle of 65 MB
    end = archive.index(b'PK\5\6')
    start = archive.index(b'PK\1\2')
    large = archive[:start] + bytes(10**7) + archive[start:end]
    large += archive[end : end + 12] + (10**7 + end - start).to_bytes(4, 'little')
    large += archive[end + 16 :]
    with self.quick(limit=2**21):
      self.refused(self.file(large), 'bytes of names and shapes, at most 8,388,608')
    long = self.file(zip_file(body + b'.' + bytes(65 * 2**20)))
    with self.quick(limit=2**21):
      self.refused(long, 'bytes of data.pkl, at most 67,108,864 are read')

  def test_storages_of_old_files(self):
    head, keys = legacy_file(dictionary(x=tensor())).split(pickle.dumps(['0'], 2))
    for other in (
      b'\x80\2](' + self.deep + b'e.',
      b'\x80\2}.',
      pickle.dumps([0], 2),
      pickle.dumps(['0', '0'], 2),
      pickle.dumps(['1'], 2),
      b'.',
    ):
      self.refused(self.file(head + other + keys), 'is truncated or not a checkpoint')

  def test_a_pipe(self):
    os.mkfifo(self.path('a.pt'))
    self.refused(self.path('a.pt'), 'is a device or a pipe')

  def test_metadata_of_safetensors(self):
    header = b'{"__metadata__": {"format": "pt"}}'
    self.refused(
      self.file(len(header).to_bytes(8, 'little') + header, 'a.safetensors'), 'no tensors by name'
    )

  @parameterized.parameters(*FIXTURES, '.safetensors')
  def test_truncated_or_changed(self, name):
    path = self.path('a' + name)
    if name in FIXTURES:
      with open(os.path.join(cases.TESTDATA, name), 'rb') as file:
        whole = file.read()
    else:
      released_layout.write_safetensors(
        path, released_layout.made({k: v for k, v in expected().items() if v.dtype != bool})
      )
      with open(path, 'rb') as file:
        whole = file.read()
    for length in [*range(1, len(whole), 61), len(whole) - 1]:
      self.refused(self.file(whole[:length], 'a' + name), '')
    random = np.random.default_rng(0)
    for _ in range(300):
      changed = bytearray(whole)
      for at in random.integers(0, len(whole), 3):
        changed[at] = random.integers(256)
      try:
        with open_tensors(self.file(changed, 'a' + name)) as source:
          for tensor_name in source.shapes:
            source.read(tensor_name)
      except UserError as error:
        self.assertNotIn('\n', str(error))

  def test_cut_while_open(self):
    path = self.path('a.safetensors')
    released_layout.write_safetensors(
      path, released_layout.made({'x': np.zeros(10_000, np.float32)})
    )
    with open_tensors(path) as source:
      os.truncate(path, 5_000)
      with self.assertRaisesRegex(UserError, "cannot read 'x' of .*: the file was cut while open"):
        source.read('x')

  def test_no_checkpoints(self):
    self.refused(
      self.path('none.pt'), 'cannot read .*: No such file or directory; give a file of weights'
    )
    os.mkdir(self.path('folder.pt'))
    self.refused(self.path('folder.pt'), 'cannot read .*: Is a directory; give a file of weights')
    for extension in ('.pt', '.ckpt', '.safetensors'):
      self.refused(self.file(b'', 'a' + extension), 'is empty; copy or download it again')
      self.refused(
        self.file(b'version https://git-lfs.github.com/spec/v1\n', 'a' + extension),
        "with 'git lfs pull'",
      )
    self.refused(
      self.file(b'<html>Not found\n</html>', 'a.bin'),
      "starts with b'<html>No', not as a file of PyTorch",
    )
    self.refused(
      self.file(b'<html>Not found\n</html>', 'a.safetensors'), 'is truncated or not a checkpoint'
    )
    self.refused(
      self.file(b'x', 'a.h5'),
      "has the unknown extension '.h5'; valid: .safetensors, .pt, .pth, .ckpt, .bin, .index",
    )
    self.refused(self.file(pickle.dumps({'a': [1]}, 2)), 'is a pickle, but not a file of PyTorch')
    self.refused(
      self.file(zip_file(dictionary(x=tensor()), compression=zipfile.ZIP_DEFLATED)),
      'missing or compressed',
    )
    self.refused(
      self.file(zip_file(dictionary(x=tensor(pid(key='1'))))), "'data/1' is missing or compressed"
    )
    with zipfile.ZipFile(self.path('b.pt'), 'w') as archive:
      archive.writestr('data.pkl', '')
    self.refused(self.path('b.pt'), 'is a zip without NAME/data.pkl')


if __name__ == '__main__':
  absltest.main()
