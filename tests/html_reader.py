"""A report as a browser would take it, and texts that would do harm if they became markup."""

import base64
from html.parser import HTMLParser
from pathlib import Path

ATTACKS = [
    "<script>alert(1)</script>",
    "<img src=http://127.0.0.1/x onerror=alert(1)>",
    "</title></style></p>&lt;",
    "\"'`<!--",
]


class HtmlPage(HTMLParser):
    """What a browser would find in the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.source = text
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def pictures(self) -> list[bytes]:
        sources = [attributes["src"] or "" for tag, attributes in self.tags if tag == "img"]
        return [
            base64.b64decode(source.removeprefix("data:image/jpeg;base64,"), validate=True)
            for source in sources
        ]

    def check_needs_nothing_else(self) -> None:
        """Nothing runs and nothing is loaded; a policy forbids both once more."""
        assert not {tag for tag, _ in self.tags} & {"script", "iframe", "link", "object", "base", "form"}
        for tag, attributes in self.tags:
            assert not any(name.startswith("on") or name in ("href", "xlink:href") for name in attributes), (
                tag
            )
            assert (attributes.get("src") or "data:").startswith("data:"), tag
        assert "url(" not in self.source
        assert "@import" not in self.source
        policy = next(attributes["content"] for _, attributes in self.tags if "http-equiv" in attributes)
        assert policy is not None
        assert policy.startswith("default-src 'none'")
        for tag, attributes in self.tags:
            if tag == "img":
                assert attributes["alt"], "a picture without a description"
            if attributes.get("role") == "img":
                assert attributes["aria-label"], "a chart without a description"


def chromium_command(profile: Path) -> list[str]:
    """Chromium without a window, and without requests of its own."""
    return [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={profile}",
    ]  # fmt: skip
