"""Silent rank promotion is an error in all tests."""

import os
import sys

import hypothesis
import jax
from absl import flags

sys.path.insert(0, os.path.dirname(__file__))  # helpers/
hypothesis.settings.register_profile(
  'fixed', deadline=None, derandomize=True
)  # the same cases on every machine
hypothesis.settings.load_profile('fixed')
flags.FLAGS.mark_as_parsed()  # absltest's temporary folders are flags
jax.config.update('jax_numpy_rank_promotion', 'raise')
