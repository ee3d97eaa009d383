"""Command-line entry points: each parses its settings, calls one function and exits with a meaningful status."""
