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
from pathlib import Path
from typing import Any
from urllib.error import URLError

from stage import PICTURES, ROOT, chromium

MINUTE = 60_000  # Playwright counts in milliseconds
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
IDLE = "window.jupyterapp?.shell.currentWidget?.context?.sessionContext?.session?.kernel?.status === 'idle'"


@contextmanager
def jupyter_lab(home: Path) -> Iterator[str]:
    """The address of a JupyterLab whose root is `home`, with the notebooks and data in it."""
    shutil.copytree(ROOT / "notebooks", home / "notebooks", dirs_exist_ok=True)
    (home / "data").symlink_to(ROOT / "data")
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
        yield address
    finally:
        server.terminate()
        server.wait(30)


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

    def picture(self, name: str) -> None:
        """Keep what is seen as runs/browser/<name>.png."""
        PICTURES.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=PICTURES / f"{name}.png")

    def serious(self, selector: str) -> list[str]:
        """What axe finds inside the selector that is serious or critical."""
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(self.page, context=selector).response["violations"]
        return [f"{one['id']}: {one['help']}" for one in found if one["impact"] in ("serious", "critical")]


@contextmanager
def opened(address: str, name: str, *, dark: bool = False) -> Iterator[Notebook]:
    """A notebook of `jupyter_lab` in a browser; that it asks another host for something is an error."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(2 * MINUTE)
        elsewhere: list[str] = []

        def sieve(route: Any) -> None:
            if route.request.url.startswith((address, "blob:", "data:")):
                route.continue_()
            else:
                elsewhere.append(route.request.url)
                route.abort()

        page.route("**/*", sieve)
        page.goto(f"{address}/doc/tree/notebooks/{name}?reset")
        page.wait_for_function(IDLE)
        if dark:
            page.evaluate(
                "window.jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Dark' })"
            )
        yield Notebook(page)
        browser.close()
    assert not elsewhere, f"The page asked for {elsewhere}"
