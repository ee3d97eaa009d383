"""From WebDataset shards to token shards, and from token shards to packed shards."""
