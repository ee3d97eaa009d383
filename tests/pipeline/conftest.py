"""Before any test imports Ray: its private clusters get a token of their own (`pipeline.ray_cluster`)."""

from pipeline.ray_cluster import settle_environment

settle_environment()
