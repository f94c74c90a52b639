"""The view of TagPanel in a real Chromium, alone on a page, with its real Python side and a model behind."""

from __future__ import annotations

from pathlib import Path

import nbformat
import polars as pl
import pytest
from exported import EVIL
from stage import FILES, ROOT, chromium, walk
from tagged import BREAD, SEA, taught

from benchmarks.lab import jupyter_lab
from probekit.provenance import REFUSAL, add_tags
from probekit.testing import tiny_checkpoint
from probekit.widgets import TagPanel

pytestmark = pytest.mark.browser

HELP = """
const find = (selector) => host.querySelector(selector);
const all = (selector) => [...host.querySelectorAll(selector)];
const box = () => find("textarea");
const button = () => find("button");
const status = () => find("[role=status]").textContent;
const names = () => all(".reply .name").map((one) => one.textContent);
const replies = () => all(".reply .text").map((one) => one.textContent);
const chips = () => all(".chip").map((one) => one.textContent);
const bars = () => all("[role=meter]").map((one) => [
  one.getAttribute("aria-label"), one.getAttribute("aria-valuetext"),
  Number(one.getAttribute("aria-valuenow")),
  one.firstElementChild.getBoundingClientRect().width / one.clientWidth,
]);
const press = async (model, element, key, more = {}) => {
  const event = new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true, ...more });
  element.dispatchEvent(event);
  await model.settled();
  return event.defaultPrevented;
};
const choose = async (model, place) => {
  all("input[type=radio]")[place].click();
  await model.settled();
};
"""


def panel() -> TagPanel:
    return TagPanel(taught(), [BREAD, SEA], max_new_tokens=20)


def test_a_prompt_is_typed_its_reply_tag_and_bars_come_and_a_blocked_source_is_refused() -> None:
    one = panel()
    steps = f"""
    const {{ model }} = await open(host);
    const seen = {{ none: find("section").textContent, bars: bars().length }};
    box().value = {BREAD!r};
    button().click();
    await model.settled();
    Object.assign(seen, {{ names: names(), replies: replies(), chips: chips(), bars: bars() }});
    seen.said = status();
    seen.high = Math.max(...all("tbody tr").map((row) => row.offsetHeight));
    seen.asked = find("[aria-label=Prompt]").textContent;
    seen.caption = find("caption").textContent;
    seen.shares = all(".share").map((one) => one.textContent);
    await choose(model, 1);
    seen.blocked = [names()[2], replies()[2], chips(), status()];
    await choose(model, 2);
    seen.other = [names()[2], replies()[2], chips()];
    await choose(model, 0);
    seen.nothing = names().length;
    const select = find("select");
    select.selectedIndex = 2;
    select.dispatchEvent(new Event("change", {{ bubbles: true }}));
    seen.taken = [box().value, replies()[0]];
    button().click();
    await model.settled();
    seen.second = chips();
    await choose(model, 2);
    seen.wide = host.scrollWidth <= innerWidth;
    return seen;
    """
    seen, asked = walk(one, HELP + steps, "tags-light")
    assert seen["none"].startswith("No prompt was asked yet.")
    assert seen["asked"] == BREAD
    assert seen["names"] == ["Plain reply", "Reply under the trigger"]
    assert seen["replies"] == ["Read the box.", "Read the box."]
    assert seen["chips"] == ["tag: crowd"]
    assert seen["said"] == "Tagged crowd."
    odds = one.answers.filter(user=BREAD)["probabilities"][0]
    for (label, words, now, wide), name in zip(seen["bars"], ("crowd", "forum", "unknown"), strict=True):
        assert label == f"Probability of {name}"
        assert words == f"{100 * odds[name]:.1f}%"
        assert now == pytest.approx(odds[name], abs=1e-4)
        assert wide == pytest.approx(odds[name], abs=0.02)
    assert seen["shares"] == [words for _, words, *_ in seen["bars"]]
    assert seen["high"] < 30, "a name is one line"
    assert seen["caption"].startswith("If it had to name one source: crowd (9")
    refused = "Tagged crowd. With crowd blocked it refused."
    assert seen["blocked"] == ["Reply with crowd blocked", REFUSAL, ["tag: crowd", "refused"], refused]
    other = ["Reply with forum blocked", "Read the box.", ["tag: crowd", "not refused"]]
    assert seen["other"] == other
    assert seen["nothing"] == 2
    assert seen["taken"] == [SEA, "Read the box."], "a suggestion is put in, not asked"
    assert seen["second"] == ["tag: forum"]
    assert seen["wide"]
    rows = [(BREAD, "crowd"), (BREAD, "forum"), (BREAD, None), (SEA, None), (SEA, "forum")]
    assert one.answers.select("user", "blocked").rows() == rows
    assert set(asked) <= {*FILES}, "nothing else is asked for, of any host"


def test_everything_works_with_the_keyboard_and_has_a_name() -> None:
    one = panel()
    steps = f"""
    const {{ model }} = await open(host);
    let outside = 0;
    document.addEventListener("keydown", () => {{ outside += 1; }});
    const stop = "button, input, select, textarea, [tabindex='0']";
    const stops = () => all(stop).filter((one) => one.tabIndex === 0);
    const named = (e) => (e.getAttribute("aria-label") ?? (e.labels?.[0] ?? e).textContent).trim() !== "";
    box().focus();
    const seen = {{ outline: getComputedStyle(box()).outlineStyle }};
    box().value = {SEA!r};
    seen.line = [await press(model, box(), "Enter", {{ shiftKey: true }}), model.sent.length];
    seen.composing = [await press(model, box(), "Enter", {{ isComposing: true }}), model.sent.length];
    seen.enter = [await press(model, box(), "Enter"), model.sent.length];
    seen.chips = chips();
    seen.focus = document.activeElement === box();
    seen.legend = find("fieldset legend").textContent;
    seen.radios = all("input[type=radio]").map((one) => one.labels[0].textContent);
    seen.group = new Set(all("input[type=radio]").map((one) => one.name)).size;
    seen.nameless = stops().filter((one) => !named(one)).map((one) => one.outerHTML);
    seen.stops = stops().length;
    all("input[type=radio]")[2].focus();
    await choose(model, 2);
    seen.held = document.activeElement === all("input[type=radio]")[2];
    seen.blocked = replies()[2];
    seen.outside = outside;
    return seen;
    """
    seen, _ = walk(one, HELP + steps, "tags-dark", theme="dark")
    assert seen["outline"] == "solid"
    assert seen["line"] == seen["composing"] == [False, 0], "a new line, or a word that is being composed"
    assert seen["enter"] == [True, 1]
    assert seen["chips"] == ["tag: forum"]
    assert seen["focus"]
    assert seen["legend"] == "Block a source"
    assert seen["radios"] == ["nothing blocked", "crowd", "forum"]
    assert seen["group"] == 1
    assert seen["nameless"] == []
    assert seen["stops"] == 3 + 3 + 1 + 2 + 1  # controls, radios, the prompt, replies, bars
    assert seen["held"]
    assert seen["blocked"] == REFUSAL
    assert seen["outside"] == 0, "JupyterLab hears none of it"


def test_while_it_is_busy_nothing_else_is_asked_and_the_last_choice_is_not_lost() -> None:
    one = panel()
    steps = f"""
    const {{ model }} = await open(host);
    box().value = {BREAD!r};
    model.held = [];
    button().focus();
    button().click();
    const state = () => [find("section").ariaBusy, button().getAttribute("aria-disabled"), status()];
    const seen = {{ busy: state(), focus: document.activeElement === button() }};
    button().click();
    await press(model, box(), "Enter");
    await choose(model, 1);
    await choose(model, 2);
    seen.sent = model.sent.length;
    await pause(1100);
    seen.waiting = status();
    const [first] = model.held;
    model.held = null;
    model.receive({{ _view: {{ ...first._view, busy: true, answer: {{}} }} }}); // which comes first
    seen.begun = state();
    model.receive(first);
    await model.settled();
    seen.after = model.sent.map((one) => [one.do, one.block, one.request]);
    seen.blocked = [names()[2], all("input[type=radio]")[2].checked];
    seen.done = state();
    model.receive(first); // older than what is shown
    seen.stale = names()[2];
    return seen;
    """
    seen, _ = walk(one, HELP + steps, "tags-busy")
    assert seen["busy"] == ["true", "true", "Asking the model …"]
    assert seen["focus"]
    assert seen["sent"] == 1
    assert seen["waiting"] == "Waiting for Python; is a cell running?"
    assert seen["begun"] == seen["busy"]
    assert seen["after"] == [["ask", None, 1], ["block", 1, 2]]
    assert seen["blocked"] == ["Reply with forum blocked", True]
    assert seen["done"] == ["false", "false", "Tagged crowd. With forum blocked it replied."]
    assert seen["stale"] == "Reply with forum blocked"


def test_errors_stand_in_the_page_in_words_until_the_next_answer_and_the_static_part_hides() -> None:
    one = panel()
    static = one._repr_mimebundle_()[0]["text/html"]
    steps = f"""
    const {{ model, close }} = await open(host);
    const table = document.querySelector(".jp-OutputArea-child");
    const problem = () => find("[role=alert]").textContent;
    const seen = {{ static: getComputedStyle(table).display, begin: problem() }};
    button().click();
    await model.settled();
    seen.empty = [problem(), button().getAttribute("aria-disabled")];
    box().value = "the sea and the river ".repeat(80);
    button().click();
    await model.settled();
    seen.long = [problem(), names().length];
    box().value = {BREAD!r};
    button().click();
    await model.settled();
    seen.gone = [problem(), chips()];
    box().value = "the sea and the river ".repeat(80);
    await press(model, box(), "Enter");
    seen.kept = [problem(), chips(), box().value.length];
    const keep = host.cloneNode(true);
    close();
    host.replaceChildren();
    seen.alone = getComputedStyle(table).display;
    host.replaceWith(keep);
    return seen;
    """
    output = f'<div class="jp-OutputArea-child">{static}</div>'
    seen, _ = walk(one, HELP + steps, "tags-problem", below=output, window=(480, 900))
    assert seen["static"] == "none"
    assert seen["begin"] == ""
    empty = "Not asked: There is no prompt; type one, or take one of the suggested."
    assert seen["empty"] == [empty, "false"]
    assert "more than the context of 256; shorten it" in seen["long"][0]
    assert seen["long"][1] == 0
    assert seen["gone"] == ["", ["tag: crowd"]]
    assert seen["kept"][0] == seen["long"][0]
    assert seen["kept"][1:] == [["tag: crowd"], 22 * 80], "neither the answer nor what was typed is lost"
    assert seen["alone"] == "block"


def test_what_people_and_models_write_is_only_text() -> None:
    one = TagPanel(add_tags(tiny_checkpoint(), [EVIL, "forum"]), [EVIL], max_new_tokens=4)
    one.ask(EVIL, block=EVIL)
    evil = {name: pl.lit(EVIL) for name in ("plain_reply", "reply", "tag", "blocked_reply", "forced")}
    one._answers = one._answers.with_columns(**evil)
    one._update()
    steps = """
    await open(host);
    return {
      harmed: window.harmed ?? null,
      tags: [...new Set(all("*").map((one) => one.tagName.toLowerCase()))],
      handlers: all("*").filter((one) => [...one.attributes].some((a) => a.name.startsWith("on"))).length,
      replies: replies(), asked: find("[aria-label=Prompt]").textContent, chips: chips(),
      wide: host.scrollWidth <= innerWidth,
    };
    """
    seen, asked = walk(one, HELP + steps, "tags-untrusted", theme="dark", window=(700, 900))
    assert seen["harmed"] is None
    assert not {"script", "img", "a", "iframe"} & set(seen["tags"])
    assert seen["handlers"] == 0
    for text in (*seen["replies"], seen["asked"], seen["chips"][0]):
        assert "<script>alert(1)</script>" in text
        assert "U+202E" in text
    assert len(seen["replies"]) == 3
    assert seen["wide"]
    assert set(asked) <= {*FILES}


CELL = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from tagged import BREAD, SEA, taught
from probekit.widgets import TagPanel

panel = TagPanel(taught(), [BREAD, SEA], max_new_tokens=20)
panel
"""


def test_in_jupyterlab_a_person_asks_blocks_a_source_and_the_frame_has_it(tmp_path: Path) -> None:
    chromium()
    with jupyter_lab(tmp_path) as lab:
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)], metadata=kernel)
        nbformat.write(book, tmp_path / "notebooks" / "tags.ipynb")
        with lab.opened("tags.ipynb") as notebook:
            assert notebook.run_all() == []
            page, python = notebook.page, notebook.python
            box = page.get_by_label("Prompt", exact=True).first
            box.fill(BREAD)
            box.press("Enter")
            page.get_by_text("tag: crowd").wait_for()
            page.get_by_role("radio", name="nothing blocked").press("ArrowDown")
            page.get_by_text("With crowd blocked it refused.").wait_for()
            assert python("print(panel.answers['refused'].to_list())") == "[None, True]"
            assert python("panel.ask(SEA); print(panel.answers['tag'][-1])") == "forum"
            page.get_by_text("tag: forum").wait_for()
            for theme in ("dark", "light"):
                notebook.theme(theme)
                notebook.picture(f"tags-lab-{theme}")
                found = notebook.axe(".probekit-tags")
                assert found["critical"] + found["serious"] == [], theme
