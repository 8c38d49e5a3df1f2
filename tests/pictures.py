"""The docs' screenshots: `python tests/pictures.py PAGE.html PICTURE.png`; `make pictures` makes them all."""

import sys
from pathlib import Path

from browser import browser

if __name__ == "__main__":
    page, picture = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    picture.parent.mkdir(parents=True, exist_ok=True)
    with browser() as window:
        window.look(1100, height=1000)
        window.open(page.as_uri())
        window.whole_picture(picture, below=False)
