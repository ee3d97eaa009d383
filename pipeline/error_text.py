"""An error as a line of a log or a report."""


def one_line(error: BaseException) -> str:
    """Its type and its message, without line breaks."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
