"""seed-pack: token shards mixed, templated and packed into training sequences."""
