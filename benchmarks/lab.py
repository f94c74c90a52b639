"""A real JupyterLab with its kernel, and a real Chromium in which every other host is blocked."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import nbformat

from benchmarks.loop import ROOT

PICTURES = ROOT / "runs" / "browser"
MINUTE = 60_000  # Playwright counts in milliseconds
SEVERITIES = ("critical", "serious", "moderate", "minor")  # as axe calls them
RUN = """async () => {
  const panel = window.jupyterapp.shell.currentWidget;
  await window.jupyterapp.commands.execute('notebook:run-all-cells');
  const found = [];
  for (const cell of panel.content.model.cells) {
    for (const output of cell.outputs?.toJSON?.() ?? []) {
      if (output.output_type === 'error') found.push(`${output.ename}: ${output.evalue}`);
    }
  }
  return found;
}"""
ASK = """async (code) => {
  const kernel = window.jupyterapp.shell.currentWidget.context.sessionContext.session.kernel;
  const asked = kernel.requestExecute({ code, store_history: false });
  let said = '';
  asked.onIOPub = (message) => {
    if (message.header.msg_type === 'stream') said += message.content.text;
    if (message.header.msg_type === 'error') said += `${message.content.ename}: ${message.content.evalue}`;
  };
  await asked.done;
  return said.trim();
}"""
END = "window.jupyterapp.shell.currentWidget.context.sessionContext.shutdown()"  # or kernels add up
IDLE = "window.jupyterapp?.shell.currentWidget?.context?.sessionContext?.session?.kernel?.status === 'idle'"


def chromium() -> str:
    """The path of the Chromium to use. Raises FileNotFoundError, with what to do, where there is none."""
    found = (
        os.environ.get("PROBEKIT_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    )
    if not found:
        raise FileNotFoundError(
            "There is no Chromium: apt-get install chromium, or name one in PROBEKIT_CHROMIUM."
        )
    return found


def cut(path: Path, words: str) -> None:
    """Cut a notebook's file off before the first cell with these words."""
    notebook = nbformat.read(path, as_version=4)
    place = next(place for place, cell in enumerate(notebook.cells) if words in cell.source)
    notebook.cells = notebook.cells[:place]
    nbformat.write(notebook, path)


class Notebook:
    """A notebook that is open in the browser."""

    def __init__(self, page: Any) -> None:
        self.page = page

    def run_all(self) -> list[str]:
        """Run all cells; the errors that they raised."""
        found: list[str] = self.page.evaluate(RUN)
        return found

    def python(self, code: str) -> str:
        """What this code prints in the notebook's kernel."""
        said: str = self.page.evaluate(ASK, code)
        return said

    def theme(self, name: str) -> None:
        """Show JupyterLab in its "light" or "dark" theme."""
        change = "(theme) => window.jupyterapp.commands.execute('apputils:change-theme', { theme })"
        self.page.evaluate(change, f"JupyterLab {name.capitalize()}")
        light = "true" if name == "light" else "false"
        self.page.wait_for_function(f"document.body.dataset.jpThemeLight === '{light}'")
        # until the theme has come Lab hides the page behind a picture of its own
        self.page.wait_for_function("!document.querySelector('#jupyterlab-splash')")

    def picture(self, name: str) -> None:
        """Keep what is seen as runs/browser/<name>.png."""
        PICTURES.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=PICTURES / f"{name}.png")

    def axe(self, selector: str) -> dict[str, list[str]]:
        """What axe finds inside the selector, by severity; each of `SEVERITIES` is a key."""
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(self.page, context=selector).response["violations"]
        return {
            severity: [f"{one['id']}: {one['help']}" for one in found if one["impact"] == severity]
            for severity in SEVERITIES
        }


@dataclass(frozen=True)
class Lab:
    """A JupyterLab at this address, and the browser that opens its notebooks."""

    address: str
    browser: Any

    @contextmanager
    def opened(
        self, name: str, *, window: tuple[int, int] = (1400, 1000), pixels: int = 1
    ) -> Iterator[Notebook]:
        """A notebook in a new window; that it asks another host for something is an error.

        window: width and height; pixels: how many of the screen's, across, to one of these.
        """
        size = {"width": window[0], "height": window[1]}
        page = self.browser.new_page(viewport=size, device_scale_factor=pixels)
        page.set_default_timeout(2 * MINUTE)
        elsewhere: list[str] = []

        def sieve(route: Any) -> None:
            if route.request.url.startswith((self.address, "blob:", "data:")):
                route.continue_()
            else:
                elsewhere.append(route.request.url)
                route.abort()

        page.route("**/*", sieve)
        page.goto(f"{self.address}/doc/tree/notebooks/{name}?reset")
        page.wait_for_function(IDLE)
        try:
            yield Notebook(page)
        finally:
            page.evaluate(END)
            page.close()
        assert not elsewhere, f"The page asked for {elsewhere}"


@contextmanager
def jupyter_lab(home: Path) -> Iterator[Lab]:
    """A JupyterLab whose root is `home`, with the notebooks and data in it, and a browser for it."""
    from playwright.sync_api import sync_playwright

    shutil.copytree(ROOT / "notebooks", home / "notebooks", dirs_exist_ok=True)
    (home / "data").symlink_to(ROOT / "data")
    # else Lab asks in the first sight of each browser whether to fetch news
    quiet = home / "jupyter_config_dir/lab/user-settings/@jupyterlab/apputils-extension"
    quiet.mkdir(parents=True)
    (quiet / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {name: str(home / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR")}
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser"),
        *("--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0", "--IdentityProvider.token="),
        f"--ServerApp.root_dir={home}",
    ]
    log = home / "server.log"
    env = os.environ | settings | {"PYTHONPATH": str(ROOT), "XDG_RUNTIME_DIR": str(home)}
    with open(log, "w") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, env=env, cwd=home)
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/api", timeout=5).close()
                break
            except (URLError, OSError):
                assert server.poll() is None, log.read_text()
                time.sleep(0.25)
        else:
            raise AssertionError(log.read_text())
        with sync_playwright() as play:
            browser = play.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
            yield Lab(address, browser)
            browser.close()
    finally:
        server.terminate()
        server.wait(30)
