"""Screenshots of the reports for docs/reports.md, in headless Chromium, light and dark, laptop and phone.

make demo
.venv/bin/python docs/screenshots.py
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
PAGES = {
    "token_shards": ("out/pairs.html", True),
    "videos": ("out/videos.html", True),
    "packed": ("out/packed/report.html", False),
    "curves": ("out/pretrain_tiny/curves.html", False),
}
"""Name of the picture -> page, and whether it has photographs."""
PHONE = """<body style="margin:0;display:flex;gap:24px;background:#7a828a;padding:24px">
{}</body>"""
FRAME = '<iframe src="{}" style="width:390px;height:844px;border:0;border-radius:16px"></iframe>'
MAX_BYTES = 250_000


def shoot(page: Path, picture: Path, width: int, height: int, is_dark: bool, has_photos: bool) -> None:
    """Draw a page; in 256 colours where it has no photographs."""
    with tempfile.TemporaryDirectory() as profile:
        raw = Path(profile) / "raw.png"
        command = [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--hide-scrollbars", f"--user-data-dir={profile}/profile", f"--window-size={width},{height}",
            f"--screenshot={raw}",
        ]  # fmt: skip
        if is_dark:
            command.append("--blink-settings=preferredColorScheme=0")
        subprocess.run([*command, page.as_uri()], check=True, capture_output=True, timeout=120)
        with Image.open(raw) as image:
            colours = image.convert("RGB")
            few = colours.quantize(256, dither=Image.Dither.NONE)
            (colours if has_photos else few).save(picture, optimize=True)
    print(f"{picture.relative_to(ROOT)}: {picture.stat().st_size / 1000:.0f} kB")
    if picture.stat().st_size > MAX_BYTES:
        sys.exit(f"{picture} is larger than {MAX_BYTES / 1000:.0f} kB")


def main() -> None:
    """Take all of them."""
    if shutil.which("chromium") is None:
        sys.exit("chromium is not installed: apt-get install chromium")
    missing = [path for path, _ in PAGES.values() if not (ROOT / path).exists()]
    if missing:
        sys.exit(f"{', '.join(missing)}: not there; `make demo` writes them")
    IMAGES.mkdir(exist_ok=True)
    for is_dark in (False, True):
        scheme = "dark" if is_dark else "light"
        for name, (path, has_photos) in PAGES.items():
            shoot(ROOT / path, IMAGES / f"{name}_{scheme}.png", 1280, 1000, is_dark, has_photos)
        with tempfile.TemporaryDirectory() as folder:
            page = Path(folder) / "phone.html"
            names = ("token_shards", "packed", "curves")
            frames = "".join(FRAME.format((ROOT / PAGES[name][0]).as_uri()) for name in names)
            page.write_text(PHONE.format(frames))
            shoot(page, IMAGES / f"phone_{scheme}.png", 1266, 892, is_dark, True)


if __name__ == "__main__":
    main()
