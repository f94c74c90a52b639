"""A local server with a widget's real Python side behind it, and a real Chromium that walks through steps."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from anywidget import AnyWidget

from benchmarks import lab
from benchmarks.lab import PICTURES

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
FILES = ("/", "/harness.js", "/widget.js", "/widget.css", "/steps.js", "/state")
TRAITS = ("_setup", "_view", "_pair", "_card", "_cells")  # what our widgets show
SCRIPT = "text/javascript"
PAGE = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>Widget</title><link rel="icon" href="data:,">
<link rel="stylesheet" href="/widget.css"><style>body { margin: 12px; THEME }</style></head>
<body BODY><main id="host"></main>BELOW<script type="module" src="/harness.js"></script></body>
</html>
"""
# JupyterLab says so which theme is on, and gives these colours
THEMES = {
    "light": (
        'data-jp-theme-light="true"',
        "background: #fff; --jp-layout-color0: #fff; --jp-layout-color2: #eee; --jp-ui-font-color1: #212121;",
    ),
    "dark": (
        'data-jp-theme-light="false"',
        "background: #111; --jp-layout-color0: #111; --jp-layout-color2: #424242; --jp-ui-font-color1: #eee;",
    ),
}


def chromium() -> str:
    """The path of the Chromium to use; without one the test is skipped, and fails where CI is set."""
    try:
        return lab.chromium()
    except FileNotFoundError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


class Stage(ThreadingHTTPServer):
    """Serves the page, gives messages to the widget, and keeps what was asked for and what came out."""

    def __init__(self, browser: AnyWidget, page: str, steps: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.browser = browser
        self.texts = {
            "/": (page, "text/html"),
            "/steps.js": (f"export default async ({{ open, pause, host }}) => {{\n{steps}\n}};", SCRIPT),
            "/harness.js": ((HERE / "harness.js").read_text(), SCRIPT),
            "/widget.js": (str(browser._esm), SCRIPT),
            "/widget.css": (str(browser._css), "text/css"),
        }
        self.asked: list[str] = []
        self.results: dict[str, Any] | None = None
        self.one_at_a_time = threading.Lock()  # as messages reach a kernel


class _Handler(BaseHTTPRequestHandler):
    server: Stage

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.path == "/state":
            self._state()
        elif self.path in self.server.texts:
            self._reply(*self.server.texts[self.path])
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/results":
            self.server.results = content
            self._reply("{}", "application/json")
            return
        with self.server.one_at_a_time:
            self.server.browser._handle_custom_msg(content, [])
            self._state()

    def _state(self) -> None:
        browser = self.server.browser
        traits = {name: getattr(browser, name) for name in TRAITS if browser.has_trait(name)}
        self._reply(json.dumps(traits, default=_encoded), "application/json")

    def _reply(self, text: str, kind: str) -> None:
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _encoded(value: bytes) -> dict[str, str]:
    """Bytes, which cross to JupyterLab as they are, for JSON."""
    return {"bytes": base64.b64encode(value).decode()}


def walk(
    browser: AnyWidget,
    steps: str,
    picture: str,
    *,
    theme: str = "light",
    below: str = "",
    window: tuple[int, int] = (1000, 900),
) -> tuple[Mapping[str, Any], list[str]]:
    """What the steps, the body of an async function, gave back, and the paths that the page asked for.

    The last sight is kept as runs/browser/<picture>.png, for people.
    """
    body, style = THEMES[theme]
    page = PAGE.replace("THEME", style).replace("BODY", body).replace("BELOW", below)
    PICTURES.mkdir(parents=True, exist_ok=True)
    with Stage(browser, page, steps) as stage, tempfile.TemporaryDirectory() as profile:
        threading.Thread(target=stage.serve_forever, daemon=True).start()
        command = [
            *(
                chromium(),
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                "--no-first-run",
            ),
            *(f"--user-data-dir={profile}", f"--window-size={window[0]},{window[1]}"),
            *(f"--screenshot={PICTURES / picture}.png", "--virtual-time-budget=20000"),
            f"http://127.0.0.1:{stage.server_port}/",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        stage.shutdown()
    assert stage.results is not None, f"The page did not finish its steps.\n{done.stderr[-2000:]}"
    assert "error" not in stage.results, stage.results["error"]
    return stage.results, stage.asked
