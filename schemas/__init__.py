"""Contracts between the stages: records, file formats, vocabulary. Imports numpy and pyarrow only."""

__version__ = "0.1.0"
"""The version of the whole package: pyproject.toml and ``seed-shards --version`` take it from here."""
