"""Protea: which generative model should I use, is the result any good, may I release it?"""

__version__ = "0.1.0"
