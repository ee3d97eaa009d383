"""Contracts between the stages: records, file formats, vocabulary. Imports numpy and pyarrow only."""
