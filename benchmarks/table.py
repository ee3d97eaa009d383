"""One form for what benchmarks find: a figure of ours beside a baseline, a limit and a target."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

HEAD = ("benchmark", "what", "ours", "baseline", "ratio", "limit", "share of limit", "target", "met")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure; where less is better, ratio and share are turned round, so that more is always better."""

    what: str
    ours: float
    unit: str
    baseline: float | None = None
    baseline_name: str = ""
    limit: float | None = None
    limit_name: str = ""
    less_is_better: bool = False
    least_ratio: float | None = None
    """Targets: each that is given must hold."""
    least_share: float | None = None
    most: float | None = None

    @property
    def ratio(self) -> float | None:
        """Times better than the baseline."""
        return self._over(self.baseline)

    @property
    def share(self) -> float | None:
        """Share of what is possible."""
        return self._over(self.limit)

    def _over(self, other: float | None) -> float | None:
        if other is None:
            return None
        top, bottom = (other, self.ours) if self.less_is_better else (self.ours, other)
        return top / bottom if bottom else None

    @property
    def is_met(self) -> bool | None:
        """Whether the targets hold; None where there is none."""
        checks = [
            value is not None and value >= least
            for value, least in ((self.ratio, self.least_ratio), (self.share, self.least_share))
            if least is not None
        ]
        checks += [self.ours <= self.most] if self.most is not None else []
        return all(checks) if checks else None

    def cells(self, benchmark: str) -> tuple[str, ...]:
        """As the table shows it, in the order of ``HEAD``."""
        targets = [
            f"ratio ≥ {self.least_ratio:g}" if self.least_ratio is not None else "",
            f"share ≥ {self.least_share:.0%}" if self.least_share is not None else "",
            f"≤ {self.most:g}" if self.most is not None else "",
        ]
        return (
            benchmark,
            self.what,
            f"{figure(self.ours)} {self.unit}".strip(),
            _named(self.baseline_name, self.baseline),
            f"{self.ratio:.2f}" if self.ratio is not None else "-",
            _named(self.limit_name, self.limit),
            f"{self.share:.0%}" if self.share is not None else "-",
            ", ".join(filter(None, targets)) or "-",
            {None: "-", True: "yes", False: "**no**"}[self.is_met],
        )


def _named(name: str, value: float | None) -> str:
    """A baseline or limit; that of a share is 1, which goes without saying."""
    if value is None:
        return "-"
    return name if value == 1.0 else f"{name} {figure(value)}"


def figure(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.2g}"


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table; bars in cells are escaped."""
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    rows = [list(head), ["---"] * len(head), *escaped]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def plain(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """The same for a terminal: columns aligned, no ruling."""
    rows = [list(head), *(list(line) for line in lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
