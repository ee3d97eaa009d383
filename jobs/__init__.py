"""Command-line entry points: each parses settings, calls one function and exits with a status."""
