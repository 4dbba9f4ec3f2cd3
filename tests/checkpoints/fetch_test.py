"""Downloads: only the missing bytes are asked for, and what stands at path is whole and checked, or
not there."""

import contextlib
import hashlib
import http.server
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from concurrent import futures
from unittest import mock

from absl.testing import absltest, parameterized

from gmm_diffusion.checkpoints import fetch
from gmm_diffusion.errors import UserError
from helpers import cases

DATA = bytes(range(256)) * 400  # 102,400 bytes
HASH = hashlib.sha256(DATA).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
  """Serves server.data; the n-th answer ends after server.cuts[n] bytes."""

  def log_message(self, *_):
    pass

  def do_GET(self):
    server, asked = self.server, self.headers.get('Range')
    server.asked.append(asked)
    if self.path.startswith('/missing'):
      self.send_error(404)
      return
    if server.busy:
      server.busy -= 1
      self.send_error(503)
      return
    first, size = 0, len(server.data)
    if asked and server.ranges and (server.sloppy or self.headers.get('If-Range') == server.etag):
      first = int(re.fullmatch(r'bytes=(\d+)-', asked).group(1))
    if first >= size:
      self.send_response(416)
      self.send_header('Content-Range', f'bytes */{size}')
      self.send_header('Content-Length', '0')
      self.end_headers()
      return
    self.send_response(206 if first else 200)
    if first:
      self.send_header('Content-Range', f'bytes {first}-{size - 1}/{size}')
    if server.length:
      self.send_header('Content-Length', str(size - first))
    if server.etag:
      self.send_header('ETag', server.etag)
    self.end_headers()
    body = server.data[first:]
    if server.cuts:
      body = body[: server.cuts.pop(0)]
    for start in range(0, len(body), 1024 if server.pause else len(body)):
      self.wfile.write(body[start : start + 1024 if server.pause else None])
      time.sleep(server.pause)


class FetchTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    self.server.handle_error = lambda *_: None  # a client that goes away is part of the test
    self.set(
      data=DATA,
      etag='"one"',
      ranges=True,
      sloppy=False,
      length=True,
      cuts=[],
      pause=0,
      busy=0,
      asked=[],
    )
    threading.Thread(
      target=self.server.serve_forever, kwargs={'poll_interval': 0.01}, daemon=True
    ).start()
    self.addCleanup(self.server.server_close)
    self.addCleanup(self.server.shutdown)
    self.enter_context(mock.patch.dict(os.environ, {'no_proxy': '127.0.0.1'}))
    self.enter_context(mock.patch.object(fetch, 'WAIT', 0.001))
    self.folder = self.create_tempdir().full_path
    self.path = os.path.join(self.folder, 'net.pt')

  def set(self, **server):
    for name, value in server.items():
      setattr(self.server, name, value)

  def url(self, name='net.pt'):
    return f'http://127.0.0.1:{self.server.server_port}/{name}'

  def fetch(self, name='net.pt', **options):
    """What is printed."""
    with (
      contextlib.redirect_stdout(io.StringIO()) as out,
      contextlib.redirect_stderr(io.StringIO()),
    ):
      fetch.fetch(self.url(name), self.path, **options)
    return out.getvalue()

  def write(self, suffix, content):
    with open(self.path + suffix, 'wb') as file:
      file.write(content)

  def assert_whole(self, data=DATA):
    with open(self.path, 'rb') as file:
      self.assertEqual(file.read(), data)
    self.assertEqual(os.listdir(self.folder), ['net.pt'])

  @parameterized.parameters(
    {}, {'size': len(DATA)}, {'sha256': HASH}, {'size': len(DATA), 'sha256': HASH[:8].upper()}
  )
  def test_download(self, **options):
    printed = self.fetch(**options)
    self.assert_whole()
    self.assertEqual(self.server.asked, [None])
    self.assertEqual(
      printed,
      ''
      if 'sha256' in options
      else f'{self.url()}: sha256 {HASH}; no public sha256 is known to compare it with\n',
    )

  def test_folders_are_made(self):
    self.path = os.path.join(self.folder, 'a', 'b', 'net.pt')
    self.fetch()
    self.assertTrue(os.path.exists(self.path))

  def test_already_there(self):
    self.write('', DATA)
    self.assertRegex(
      self.fetch(size=len(DATA), sha256=HASH),
      r'net.pt is there already \(102,400 bytes, sha256 as expected\)\n$',
    )
    self.assertRegex(
      self.fetch(),
      r'net.pt is there already \(102,400 bytes, no public sha256 to compare with\)\n$',
    )
    with self.assertRaisesRegex(
      UserError, r'net.pt has 102,400 bytes, not 7; remove it and run again, or download http'
    ):
      self.fetch(size=7)
    with self.assertRaisesRegex(UserError, f'net.pt has sha256 {HASH}, not 1234; remove it'):
      self.fetch(sha256='1234')
    self.assert_whole()
    self.assertEqual(self.server.asked, [])

  def test_a_folder_is_not_a_file(self):
    os.makedirs(self.path)
    with self.assertRaisesRegex(UserError, 'is not a file'):
      self.fetch()

  def test_dropped_connections_are_resumed(self):
    self.server.cuts = [1000, 50_000, 0]
    printed = self.fetch(sha256=HASH)
    self.assert_whole()
    self.assertEqual(self.server.asked, [None, 'bytes=1000-', 'bytes=51000-', 'bytes=51000-'])
    self.assertIn(
      'the connection ended after 1,000 of 102,400 bytes; trying again in 0.001 s\n', printed
    )

  def test_progress_is_worth_any_number_of_requests(self):
    self.server.cuts = 3 * fetch.TRIES * [100]
    self.fetch(sha256=HASH)
    self.assertLen(self.server.asked, 3 * fetch.TRIES + 1)

  def test_busy_server(self):
    self.server.busy = 2
    self.fetch(sha256=HASH)
    self.assert_whole()

  def test_gives_up_and_a_later_run_resumes(self):
    self.server.cuts = [1000] + 10 * [0]
    with self.assertRaisesRegex(
      UserError, r'^cannot download .* \(the connection ended after 1,000 of 102,400 bytes\)'
    ):
      self.fetch()
    self.assertLen(self.server.asked, fetch.TRIES)
    self.assertEqual(sorted(os.listdir(self.folder)), ['net.pt.partial', 'net.pt.partial.etag'])
    self.server.cuts, self.server.asked = [], []
    self.fetch(sha256=HASH)
    self.assert_whole()
    self.assertEqual(self.server.asked, ['bytes=1000-'])

  @parameterized.parameters(
    (dict(ranges=False), ['bytes=1000-']),  # the whole file, because the server knows no ranges
    (dict(etag='"two"'), ['bytes=1000-']),  # the whole file, because of If-Range
    (
      dict(etag='"two"', sloppy=True),
      ['bytes=1000-', None],
    ),  # a range of another version, in spite of If-Range
    (dict(etag=None, cuts=[2000]), ['bytes=1000-', None]),  # "one" must not outlive its bytes
  )
  def test_starts_anew(self, server, asked):
    self.write('.partial', 1000 * b'?')
    self.write('.partial.etag', b'"one"')
    self.set(**server)
    self.fetch(sha256=HASH)
    self.assert_whole()
    self.assertEqual(self.server.asked, asked)

  def test_no_ranges_and_drops(self):
    self.server.ranges, self.server.cuts = False, [5000, 4000]
    self.fetch(sha256=HASH)
    self.assert_whole()

  @parameterized.parameters('', 'W/"one"')
  def test_without_a_strong_etag_nothing_is_resumed(self, etag):
    self.server.etag, self.server.cuts = etag, [1000]
    self.fetch(sha256=HASH)
    self.assert_whole()
    self.assertEqual(self.server.asked, [None, None])

  @parameterized.parameters(
    (DATA, {}, ['bytes=102400-']),
    (DATA, {'size': len(DATA)}, []),
    (DATA + b'!', {'sha256': HASH}, ['bytes=102401-', None]),
  )
  def test_stopped_after_the_last_byte(self, partial, options, asked):
    self.write('.partial', partial)
    self.write('.partial.etag', b'"one"')
    self.fetch(**options)
    self.assert_whole()
    self.assertEqual(self.server.asked, asked)

  def test_wrong_hash(self):
    with self.assertRaisesRegex(
      UserError, rf'^the file at {self.url()} has sha256 {HASH}, not {"0" * 64}; it was removed'
    ):
      self.fetch(sha256='0' * 64)
    self.assertEqual(os.listdir(self.folder), [])

  def test_wrong_size(self):
    with self.assertRaisesRegex(
      UserError,
      r'\(the file there has 102,400 bytes, not 7\); .* put it at /.*/net.pt \(7 bytes\)$',
    ):
      self.fetch(size=7)
    self.assertEqual(os.listdir(self.folder), [])

  def test_unknown_length(self):
    self.server.length = False
    with self.assertRaisesRegex(UserError, 'the server does not say how long the file is'):
      self.fetch()
    self.fetch(size=len(DATA))
    self.assert_whole()

  def test_missing(self):
    message = (
      rf'^cannot download {self.url("missing")} \(HTTP 404 Not Found\); download it on another '
      rf'machine and put it at '
      rf'{self.path} \(2,215,000,000 bytes, sha256 abc\)$'
    )
    with self.assertRaisesRegex(UserError, message):
      self.fetch('missing', size=2_215_000_000, sha256='abc')
    self.assertLen(self.server.asked, 1)
    self.assertEqual(os.listdir(self.folder), [])

  def test_offline(self):
    with self.assertRaisesRegex(
      UserError,
      r'^cannot download http://127.0.0.1:1/a \(Connection refused\); download it .*[^)]$',
    ):
      with contextlib.redirect_stdout(io.StringIO()) as out:
        fetch.fetch('http://127.0.0.1:1/a', self.path)
    self.assertEqual(out.getvalue(), '')  # not tried again

  def test_full_disk(self):
    os.symlink('/dev/full', self.path + '.partial')
    with self.assertRaisesRegex(
      UserError, r'^cannot download .* \(No space left on device\); download it on another machine'
    ):
      self.fetch()
    self.assertLen(self.server.asked, 1)

  def test_unwritable_folder(self):
    self.write('', DATA)
    self.path = os.path.join(self.path, 'net.pt')
    with self.assertRaisesRegex(
      UserError, r'^cannot download .* \((Not a directory|File exists)\); download it'
    ):
      self.fetch()

  @parameterized.parameters('file:///etc/hostname', 'ftp://a/b', 'net.pt')
  def test_other_addresses(self, url):
    with self.assertRaisesRegex(
      UserError,
      f'^cannot download {url!r}; valid: an address that begins with https:// or http://$',
    ):
      fetch.fetch(url, self.path)

  def test_needed(self):
    self.assertEqual(
      fetch.needed('https://a/b.pt', '/c/d.pt', 12345, 'ff'),
      'download https://a/b.pt on another machine and put it at /c/d.pt (12,345 bytes, sha256 ff)',
    )
    self.assertEqual(
      fetch.needed('https://a/b.zip', '/c/d.ckpt', 5),
      'download https://a/b.zip (5 bytes) on another machine, unpack it and put its .ckpt file at '
      '/c/d.ckpt',
    )

  def test_two_at_once_download_it_once(self):
    self.set(pause=0.002)
    run = lambda: fetch.fetch(self.url(), self.path, len(DATA), HASH)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
      with futures.ThreadPoolExecutor() as pool:
        for done in [pool.submit(run) for _ in range(2)]:
          done.result()
    self.assertLen(self.server.asked, 1)
    self.assertEqual(os.listdir(self.folder), ['net.pt'])

  @parameterized.parameters(b'\xff\xfe', b'"a"\r\nHost: b', b'')
  def test_a_damaged_etag_starts_anew(self, content):
    for name, data in (('net.pt.partial', b'other'), ('net.pt.partial.etag', content)):
      with open(os.path.join(self.folder, name), 'wb') as file:
        file.write(data)
    self.fetch(sha256=HASH)
    self.assertEqual(self.server.asked, [None])

  def test_killed(self):
    self.server.pause = 0.005
    code = (
      f'from gmm_diffusion.checkpoints import fetch; fetch.fetch({self.url()!r}, {self.path!r})'
    )
    with subprocess.Popen(
      [sys.executable, '-c', code], cwd=cases.ROOT, stderr=subprocess.DEVNULL
    ) as process:
      deadline = time.monotonic() + 60
      while fetch._size(self.path + '.partial') < 10_000 and time.monotonic() < deadline:
        time.sleep(0.01)
      process.send_signal(signal.SIGKILL)
    self.assertCountEqual(
      os.listdir(self.folder), ['net.pt.lock', 'net.pt.partial', 'net.pt.partial.etag']
    )
    have = os.path.getsize(self.path + '.partial')
    self.assertBetween(have, 10_000, len(DATA) - 1)
    self.server.pause, self.server.asked = 0, []
    self.fetch(sha256=HASH)
    self.assert_whole()
    self.assertEqual(self.server.asked, [f'bytes={have}-'])

  def archive(self, files):
    """Serves a zip of name -> bytes."""
    with zipfile.ZipFile(stream := io.BytesIO(), 'w') as file:
      for name, data in files.items():
        file.writestr(name, data)
    self.server.data = stream.getvalue()

  def test_zip(self):
    self.archive({'../../model.PT': DATA, 'a.pt/': b'', 'about.txt': b'a'})
    self.server.cuts = [1000]
    self.assertEqual(
      self.fetch(
        'net.zip?x=.pt',
        size=len(self.server.data),
        sha256=hashlib.sha256(self.server.data).hexdigest(),
      ),
      f'the connection ended after 1,000 of {len(self.server.data):,} bytes; trying again in 0.001 '
      f's\n',
    )
    self.assert_whole()
    self.assertEqual(self.server.asked, [None, 'bytes=1000-'])
    self.assertIn('not checked: only its archive', self.fetch('net.zip', size=1, sha256='0'))

  def test_a_zip_stays_one_if_path_says_so(self):
    self.archive({'a.pt': DATA})
    self.path = os.path.join(self.folder, 'net.zip')
    self.fetch('net.zip')
    self.assertTrue(zipfile.is_zipfile(self.path))

  def test_unpacking_was_killed(self):
    self.archive({'a.pt': DATA})
    self.write('.zip.partial', self.server.data)
    self.write('.zip.partial.etag', b'"one"')
    self.write('.partial', DATA[:100])
    self.fetch('net.zip')
    self.assert_whole()

  @parameterized.parameters(({'a.txt': b''}, '0 files'), ({'a.pt': b'', 'b/c.pt': b''}, '2 files'))
  def test_zip_without_the_one_member(self, files, count):
    self.archive(files)
    with self.assertRaisesRegex(
      UserError, rf"^cannot unpack {self.url('net.zip')} \({count} end in '.pt', not 1\); "
    ):
      self.fetch('net.zip')
    self.assertEqual(os.listdir(self.folder), [])

  def test_damaged_zip(self):
    self.archive({'a.pt': DATA})
    middle = len(self.server.data) // 2
    self.server.data = self.server.data[:middle] + b'???' + self.server.data[middle + 3 :]
    with self.assertRaisesRegex(UserError, r'cannot unpack .* \(Bad CRC-32 .*\); it was removed'):
      self.fetch('net.zip')
    self.assertEqual(os.listdir(self.folder), [])

  def test_wrong_hash_of_a_zip(self):
    self.archive({'a.pt': DATA})
    with self.assertRaisesRegex(UserError, 'it was removed: run again'):
      self.fetch('net.zip', sha256=64 * '0')
    self.assertEqual(os.listdir(self.folder), [])


if __name__ == '__main__':
  absltest.main()
