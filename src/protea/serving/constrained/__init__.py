"""Constrained decoding: texts that match a regular expression, a JSON schema or a grammar, by construction."""
