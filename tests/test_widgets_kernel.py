"""RetrainPanel in a real kernel, spoken to as JupyterLab does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager

HERE = Path(__file__).parent
CODE = """
import sys, time
from pathlib import Path
sys.path[:0] = [{here!r}, {root!r}]
import test_widgets_retrain as tests
tests.REST = 0.3
one = tests.done(Path({out!r}))
one
"""


class Talk:
    """A notebook's side of a kernel, and what it has been told of each widget."""

    def __init__(self, client: BlockingKernelClient) -> None:
        self.client = client
        self.state: dict[str, dict[str, Any]] = {}
        self.outputs: list[dict[str, Any]] = []
        self.errors: list[str] = []

    def listen(self, until: Any, *, seconds: float = 60) -> None:
        """Take messages until this is so."""
        end = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < end, (self.errors, self.state)
            if self.client.iopub_channel.msg_ready():
                self._take(self.client.get_iopub_msg(timeout=1))
            else:
                time.sleep(0.02)

    def _take(self, message: dict[str, Any]) -> None:
        kind, content = message["msg_type"], message["content"]
        if kind in ("comm_open", "comm_msg"):
            state = self.state.setdefault(content["comm_id"], {})
            state.update(content["data"].get("state", {}))
        elif kind == "error":
            self.errors.append("\n".join(content["traceback"]))
        elif kind == "stream" and "Traceback" in content["text"]:
            self.errors.append(content["text"])
        elif kind in ("display_data", "execute_result"):
            self.outputs.append(content["data"])

    def run(self, code: str, **asked: str) -> dict[str, str]:
        """Run a cell to its end; what the expressions are then."""
        request = self.client.execute(code, user_expressions=asked)
        reply = self.client.get_shell_msg(timeout=120)
        while reply["parent_header"]["msg_id"] != request:
            reply = self.client.get_shell_msg(timeout=120)
        assert reply["content"]["status"] == "ok", reply["content"]
        found = reply["content"]["user_expressions"]
        return {name: one["data"]["text/plain"].strip("'") for name, one in found.items()}

    def click(self, button: str) -> None:
        data = {"method": "custom", "content": {"event": "click"}}
        message = self.client.session.msg("comm_msg", {"comm_id": button, "data": data})
        self.client.shell_channel.send(message)


@pytest.fixture
def talk() -> Iterator[Talk]:
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(HERE.parent))
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=120)
        yield Talk(client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_clicks_are_heard_and_progress_passes_by_a_cell_that_runs(talk: Talk, tmp_path: Path) -> None:
    ids = talk.run(
        CODE.format(here=str(HERE), root=str(HERE.parent), out=str(tmp_path)),
        start="one._buttons['start'].comm.comm_id",
        stop="one._buttons['stop'].comm.comm_id",
        status="one._status.comm.comm_id",
        bars="one._bars.comm.comm_id",
    )

    def shown(name: str) -> str:
        return str(talk.state.get(ids[name], {}).get("value", ""))

    def tables() -> list[Any]:
        return [one for one in talk.outputs if "0 finished" in one.get("text/html", "")]

    talk.listen(lambda: len(tables()) == 1)
    assert any("application/vnd.jupyter.widget-view+json" in one for one in talk.outputs)
    talk.click(ids["start"])
    talk.listen(lambda: "Now running" in shown("status"))
    busy = talk.client.execute("while one.frame.filter(state='finished').is_empty(): time.sleep(0.05)")
    talk.listen(lambda: "training, step 1 of 2" in shown("bars"))
    talk.listen(lambda: "1 of 3 finished" in shown("bars"))
    assert talk.client.get_shell_msg(timeout=60)["parent_header"]["msg_id"] == busy
    talk.click(ids["stop"])
    talk.listen(lambda: "the others take about" in shown("status") and "Now" not in shown("status"))
    talk.listen(lambda: talk.state[ids["start"]]["disabled"] is False)
    assert talk.state[ids["start"]]["description"] == "Resume"
    assert len([one for one in talk.state.values() if "spec" in one]) == 1, "the chart"
    assert "waiting" in talk.run("", states="one.frame['state'].to_list()")["states"]
    assert talk.errors == []
