"""Numbers with their noun, in singular or plural: what summaries for people are made of."""


def counted(number: int, noun: str) -> str:
    """``1 token shard``, ``1,200 token shards``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def were(number: int) -> str:
    """The verb that goes with a number of things."""
    return "was" if number == 1 else "were"
