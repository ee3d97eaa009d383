"""Sources: each turns one kind of input shard into documents with raw pictures, or quarantine records."""
