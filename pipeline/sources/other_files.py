"""Files that are no tar shards by their name, and what reads them."""

_LOOSE = "loose files become a shard by `tar cf 00000.tar --sort=name -C FOLDER .`"
_NOT_TARS = {
    (
        ".parquet",
    ): "published OBELICS is read by tokenize_obelics.py with --images FOLDER; URLs are downloaded"
    " by jobs/ingest.py",
    (".csv", ".tsv", ".txt"): "URLs are downloaded by jobs/ingest.py; a list of shards is named @FILE",
    (".json", ".jsonl", ".ndjson", ".json.gz", ".jsonl.gz"): "chats are read by jobs/tokenize_chats.py;"
    " other documents become WebDataset shards first",
    (".jpg", ".jpeg", ".png", ".webp", ".gif", ".mp4", ".webm", ".mkv", ".mov"): _LOOSE,
    (".zip", ".7z", ".rar"): f"unpack it; {_LOOSE}",
}


def remedy_for(url: str) -> str | None:
    """What to do with such a file; None for a tar, and for a name that tells nothing."""
    name = url.partition("?")[0].lower()
    for suffixes, remedy in _NOT_TARS.items():
        if name.endswith(suffixes):
            return remedy
    return None
