"""Opens a page of ours in headless Chromium, and returns what a probe posts."""

from __future__ import annotations

import html
import json
import pathlib
import re
import shutil
import subprocess
from typing import Any

import pytest

_ERRORS = """<script>
window.problems = [];
addEventListener("error", (e) => problems.push(e.message));
addEventListener("unhandledrejection", (e) => problems.push(String(e.reason)));
document.addEventListener("securitypolicyviolation",
  (e) => problems.push(`${e.violatedDirective} ${e.blockedURI}`));
</script>"""

_FRAME = """<body><iframe src="page.html" width="{width}" height="800"
style="border:0"></iframe><pre id="result"></pre><script>
addEventListener("message", (e) => {{
  document.getElementById("result").textContent = JSON.stringify(e.data);
}});
</script>"""


def look(
    path: pathlib.Path,
    probe: str,
    folder: pathlib.Path,
    width: int,
    *options: str,
) -> Any:
    """Opens a page in a frame; skips the test if there is no Chromium.

    Args:
      path: the page.
      probe: a script element at its end, which posts a message to its parent.
        It finds errors of the page in `problems`.
      folder: a folder for the files of the browser.
      width: the width of the frame, pixels.
      *options: further options of the browser.
    """
    browser = _find_browser()
    source = path.read_text(encoding="utf-8")
    source = source.replace("<head>", "<head>" + _ERRORS, 1)
    end = source.rindex("</body>")
    source = source[:end] + probe + source[end:]
    (folder / "page.html").write_text(source, encoding="utf-8")
    frame = folder / "frame.html"
    frame.write_text(_FRAME.format(width=width), encoding="utf-8")
    result = subprocess.run(
        [
            browser,
            "--headless",
            # The sandbox refuses to run as root, as in containers.
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            f"--user-data-dir={folder / 'profile'}",
            "--window-size=1400,900",
            "--virtual-time-budget=30000",
            *options,
            "--dump-dom",
            frame.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    found = re.search(r'<pre id="result">(.+?)</pre>', result.stdout, re.S)
    assert found, result.stderr[-2000:]
    return json.loads(html.unescape(found[1]))


def _find_browser() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("no Chromium on the PATH")
