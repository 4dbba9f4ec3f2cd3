"""What an installation holds: all that the package and its configs need, and nothing else."""

import glob
import os
import shutil
import subprocess
import sys
import zipfile

from absl.testing import absltest

from helpers import cases

PACKAGES = 'configs', 'gmm_diffusion'
BUILD = 'import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])'


class WheelTest(absltest.TestCase):
  def test_holds_the_packages_with_their_data(self):
    # of a copy, since building leaves files beside the sources
    source, out = (self.create_tempdir().full_path for _ in range(2))
    for name in ('setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE'):
      shutil.copy(os.path.join(cases.ROOT, name), source)
    for name in PACKAGES:
      shutil.copytree(
        os.path.join(cases.ROOT, name),
        os.path.join(source, name),
        ignore=shutil.ignore_patterns('__pycache__'),
      )
    there = glob.glob('**', root_dir=source, recursive=True)
    expected = [path for path in there if os.path.isfile(os.path.join(source, path))]
    expected = [path for path in expected if path.startswith(PACKAGES)]
    self.assertContainsSubset(
      {'configs/digits.py', 'gmm_diffusion/py.typed', 'gmm_diffusion/data/imagenet_classes.txt'},
      expected,
    )

    done = subprocess.run(
      [sys.executable, '-c', BUILD, out], cwd=source, capture_output=True, text=True
    )
    self.assertEqual(done.returncode, 0, done.stderr[-2000:])
    (path,) = glob.glob(os.path.join(out, '*.whl'))
    with zipfile.ZipFile(path) as wheel:
      found = [name for name in wheel.namelist() if '.dist-info/' not in name]
      (points,) = (name for name in wheel.namelist() if name.endswith('entry_points.txt'))
      self.assertIn(b'gmm-diffusion = gmm_diffusion.main:start', wheel.read(points))
    self.assertCountEqual(found, expected)


if __name__ == '__main__':
  absltest.main()
