"""Before any test imports Ray: its private clusters get a token of their own (`pipeline.ray_token`)."""

from pipeline.ray_token import settle_authentication

settle_authentication()
