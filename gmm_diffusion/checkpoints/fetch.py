"""Downloads a public weights file: resumed after a break, checked, and whole or absent.

Until it is whole and checked the file is called `<path>.partial`; beside it, `<path>.partial.etag`
holds the server's name for the version, without which a later run could glue two versions together.
"""

import hashlib
import http.client
import os
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib

from tqdm import tqdm

from gmm_diffusion import files
from gmm_diffusion.errors import UserError

TRIES = 5  # requests in a row that bring nothing new
WAIT = 1.0  # seconds before the second request; each further wait is twice as long
TIMEOUT = 30.0  # seconds without a byte
CHUNK = 1 << 20  # bytes


def needed(url: str, path: str, size: int = 0, sha256: str = '') -> str:
  """What to put where by hand: 'download <url> on another machine and put it at <path> (...)'.

  Arguments as in fetch.
  """
  return _by_hand(url, url, path, size, sha256)


def fetch(url: str, path: str, size: int = 0, sha256: str = '') -> None:
  """Downloads url to path, unless it is there; what is there but wrong is an error, and stays.

  If url ends in .zip and path does not, path becomes the one member of the archive with path's
  extension. size and sha256 are then those of the archive, so a path that exists is not checked.

  Args:
    url: http or https.
    path: file to make; its folder is made too.
    size: bytes; 0 if not known.
    sha256: in hex, or its first digits; '' if not known.

  Raises:
    UserError: no connection, no such file, a wrong size or hash, or a path that cannot be written.
  """
  path = os.path.abspath(path)
  if urllib.parse.urlsplit(url).scheme not in ('http', 'https'):
    raise UserError(
      f'cannot download {url!r}; valid: an address that begins with https:// or http://'
    )
  if os.path.exists(path):
    check(url, path, size, sha256)
    return
  try:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with files.locked(path):  # of several processes one downloads
      there = os.path.exists(path)
      if not there:
        _make(url, path, size, sha256)
  except (OSError, http.client.HTTPException) as error:
    raise UserError(
      f'cannot download {url} ({_reason(error)}); {_by_hand("it", url, path, size, sha256)}'
    ) from error
  finally:
    files.remove_lock(path)
  if there:
    check(url, path, size, sha256)


def _make(url, path, size, sha256):
  partial = path + ('.zip.partial' if _zipped(url, path) else '.partial')
  _download(url, partial, size)
  _verify(url, partial, size, sha256)
  if _zipped(url, path):
    _extract(url, partial, path)
  else:
    os.replace(partial, path)
  _remove(partial, partial + '.etag')


def _zipped(url, path):
  return urllib.parse.urlsplit(url).path.lower().endswith('.zip') and not path.lower().endswith(
    '.zip'
  )


def _by_hand(what, url, path, size, sha256):
  """`what` is how the sentence calls the url."""
  facts = ', '.join([f'{size:,} bytes'] * bool(size) + [f'sha256 {sha256}'] * bool(sha256))
  facts, path = f' ({facts})' * bool(facts), os.path.abspath(path)
  if _zipped(url, path):
    inside = f'unpack it and put its {_extension(path)} file at {path}'
    return f'download {what}{facts} on another machine, {inside}'
  return f'download {what} on another machine and put it at {path}{facts}'


def check(url: str, path: str, size: int = 0, sha256: str = '') -> None:
  """Says that the file at path is there; raises UserError if it is not the one at url. Arguments as
  in fetch."""
  if not os.path.isfile(path):
    raise UserError(f'{path} is not a file; give the name of a file, or remove it')
  have = os.path.getsize(path)
  if _zipped(url, path):
    print(
      f'{path} is there already ({have:,} bytes, not checked: only its archive has a known size or '
      f'hash)'
    )
    return
  wrong = _wrong(path, size, sha256)
  if wrong:
    raise UserError(
      f'{path} {wrong}; remove it and run again, or {needed(url, path, size, sha256)}'
    )
  print(
    f'{path} is there already ({have:,} bytes, '
    f'{"sha256 as expected" if sha256 else "no public sha256 to compare with"})'
  )


def _wrong(path, size, sha256):
  """What is wrong with the file, or ''."""
  have = os.path.getsize(path)
  if size and have != size:
    return f'has {have:,} bytes, not {size:,}'
  found = sha256_of(path) if sha256 else ''
  return '' if found.startswith(sha256.lower()) else f'has sha256 {found}, not {sha256}'


def _verify(url, partial, size, sha256):
  """Raises UserError, and removes the file, if it is not the one that is meant."""
  wrong = _wrong(partial, size, sha256)
  if wrong:
    _remove(partial, partial + '.etag')
    raise UserError(
      f'the file at {url} {wrong}; it was removed: run again, and if this repeats the public file '
      f'has changed'
    )
  if not sha256:
    print(f'{url}: sha256 {sha256_of(partial)}; no public sha256 is known to compare it with')


def sha256_of(path: str) -> str:
  """The SHA-256 of a file in hexadecimal digits."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _download(url, partial, size):
  """Fills `partial`, with as many requests as it takes while they bring something."""
  most, failures = 0, 0
  while True:
    try:
      return _request(url, partial, size)
    except (
      ConnectionError,
      TimeoutError,
      ssl.SSLError,
      http.client.HTTPException,
      urllib.error.URLError,
    ) as error:
      refused = isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code != 429
      offline = (
        isinstance(error, urllib.error.URLError)
        and not isinstance(error, urllib.error.HTTPError)
        and not failures
      )
      have = _size(partial)
      failures = 1 if have > most else failures + 1
      most = max(most, have)
      if refused or offline or failures >= TRIES:
        raise
      wait = WAIT * 2 ** (failures - 1)
      print(f'{_reason(error)}; trying again in {wait:g} s')
      time.sleep(wait)


def _request(url, partial, size):
  """Asks once for the bytes that `partial` lacks; ConnectionError if it still lacks some."""
  have, tag = _size(partial), partial + '.etag'
  if size and have == size:  # ended between the last byte and the check
    return
  request = urllib.request.Request(url, headers={'User-Agent': 'gmm_diffusion'})
  etag = _read(tag)
  if have and etag:  # If-Range: the whole file instead of the rest, should it have changed
    request.headers |= {'Range': f'bytes={have}-', 'If-range': etag}
  try:
    response = urllib.request.urlopen(request, timeout=TIMEOUT)
  except urllib.error.HTTPError as error:
    if error.code != 416:
      raise
    if error.headers.get('Content-Range') == f'bytes */{have}':  # nothing is left to send
      return
    _remove(tag)
    raise ConnectionError('the server has another version of the file') from error
  with response:
    if response.status != 206:
      have = 0
    elif (
      not response.headers.get('Content-Range', '').startswith(f'bytes {have}-')
      or response.headers.get('ETag', etag) != etag
    ):
      _remove(tag)
      raise ConnectionError('the server sent another part of the file')
    length = response.headers.get('Content-Length')
    total = have + int(length) if length else size
    if not total:
      raise OSError('the server does not say how long the file is')
    if size and total != size:
      raise OSError(f'the file there has {total:,} bytes, not {size:,}')
    if not have:
      _remove(
        tag
      )  # before the old bytes go, so that it never stands beside bytes of another version
    with (
      open(partial, 'ab' if have else 'wb') as file,
      tqdm(
        total=total,
        initial=have,
        desc=os.path.basename(partial).removesuffix('.partial'),
        unit='B',
        unit_scale=True,
        dynamic_ncols=True,
      ) as bar,
    ):
      if not have:
        _write_etag(tag, response.headers.get('ETag', ''))
      while block := response.read1(CHUNK):
        file.write(block)
        have += len(block)
        bar.update(len(block))
  if have != total:
    raise ConnectionError(f'the connection ended after {have:,} of {total:,} bytes')


def _write_etag(tag, etag):
  if etag and not etag.startswith('W/'):  # a weak one does not promise the same bytes
    with open(tag, 'w', encoding='utf-8') as file:
      file.write(etag)


def _extract(url, archive, path):
  """Moves the one member with path's extension to path. Its own name, which may point anywhere, is
  not used."""
  try:
    with zipfile.ZipFile(archive) as file:
      members = [
        member for member in file.infolist() if _extension(member.filename) == _extension(path)
      ]
      if len(members) != 1:
        raise zipfile.BadZipFile(f'{len(members)} files end in {_extension(path)!r}, not 1')
      with (
        file.open(members[0]) as source,
        open(path + '.partial', 'wb') as target,
        tqdm(
          total=members[0].file_size,
          desc='unpacking',
          unit='B',
          unit_scale=True,
          dynamic_ncols=True,
        ) as bar,
      ):
        while block := source.read(CHUNK):
          target.write(block)
          bar.update(len(block))
    os.replace(path + '.partial', path)
  except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
    _remove(archive, archive + '.etag', path + '.partial')
    raise UserError(
      f'cannot unpack {url} ({_reason(error)}); it was removed; check the address and {path}'
    ) from error


def _extension(path):
  return os.path.splitext(path)[1].lower()


def _size(path):
  return os.path.getsize(path) if os.path.exists(path) else 0


def _read(path):
  """A name that the server gave, which can be sent back; '' where there is none or it is
  damaged."""
  if not os.path.exists(path):
    return ''
  with open(path, encoding='ascii', errors='replace') as file:
    found = file.read()
  return found if found.isascii() and found.isprintable() else ''


def _remove(*paths):
  for path in paths:
    if os.path.lexists(path):
      os.remove(path)


def _reason(error):
  """The error in a few words on one line."""
  if isinstance(error, urllib.error.HTTPError):
    return f'HTTP {error.code} {error.reason}'
  cause = error.reason if isinstance(error, urllib.error.URLError) else error
  return ' '.join(str(getattr(cause, 'strerror', None) or cause or type(cause).__name__).split())
