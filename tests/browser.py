"""A page in a real browser, measured by a script that is put into it."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NO_BROWSER = "no chromium to draw the page in"
_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=600,900 --dump-dom"
)


def measured(page: str, script: str, folder: Path) -> Any:
    """Return what `script` puts into `measured`, an object of JavaScript, once the page is drawn; 600 pixels wide."""
    told = f'<script>{script}\ndocument.title = "measured " + JSON.stringify(measured);</script>'
    (folder / "page.html").write_text(page.replace("</body>", f"{told}</body>"))
    dom = _printed([f"--user-data-dir={folder / 'profile'}", (folder / "page.html").as_uri()])
    return json.loads(dom.partition("<title>measured ")[2].partition("</title>")[0])


def _printed(arguments: list[str]) -> str:
    """Return what the browser prints; it and its children are gone afterwards, whatever happens."""
    command = [str(BROWSER), *_FLAGS.split(), *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    try:
        return process.communicate(timeout=60)[0]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
