"""Silent rank promotion is an error in all tests."""

import os
import sys

import jax

sys.path.insert(0, os.path.dirname(__file__))  # cases.py and torch_names.py
jax.config.update('jax_numpy_rank_promotion', 'raise')
