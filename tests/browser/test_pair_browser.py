"""The view of PairBrowser in a real Chromium, alone on a page, with its real Python side behind it."""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl
import pytest
from stage import FILES, walk

from probekit.pairs import PairSet, load_pairs
from probekit.testing import planted_pairs, ranked
from probekit.tokens import SCHEMA
from probekit.widgets import PairBrowser

pytestmark = pytest.mark.browser

EVIL = (
    "<script>window.harmed = 1</script><img src=x onerror='window.harmed = 1'>"
    "<a href='javascript:window.harmed=1'>a</a> [b](javascript:window.harmed=1) \u202eright\x1b[31m"
)
HELP = """
const find = (selector) => host.querySelector(selector);
const all = (selector) => [...host.querySelectorAll(selector)];
const button = (name) => all("button").find((one) => one.textContent === name);
const press = async (model, key) => {
  const event = new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true });
  document.activeElement.dispatchEvent(event);
  await model.settled();
};
const type = (input, text) => {
  input.value = text;
  input.dispatchEvent(new Event("input", { bubbles: true }));
};
const shown = () => find(".title").textContent;
const ranks = () => all("tbody tr").map((row) => Number(row.children[1].textContent));
"""


def planted(n: int = 64) -> PairSet:
    return load_pairs(planted_pairs(n))


def browser_of(pairs: PairSet, *, page_size: int = 20) -> PairBrowser:
    return PairBrowser(ranked(pairs.ids), pairs, page_size=page_size)


def test_everything_works_with_the_keyboard_alone() -> None:
    pairs = planted()
    browser = browser_of(pairs)
    steps = """
    const { model } = await open(host);
    const seen = { first: shown(), tabStops: all("tbody tr[tabindex='0']").length };
    find("tbody tr[tabindex='0']").focus();
    await press(model, "ArrowDown");
    seen.second = shown();
    seen.focus = document.activeElement.children[1].textContent;
    await press(model, "m");
    await press(model, "End");
    await press(model, "ArrowDown");
    seen.turned = [shown(), document.activeElement.children[1].textContent, ranks()[0]];
    await press(model, " ");
    await press(model, "ArrowUp");
    seen.back = shown();
    await press(model, "PageDown");
    await press(model, "PageDown");
    seen.paged = [ranks()[0], find(".line:has(.keys) span + button + span").textContent];
    await press(model, "PageUp");
    seen.before = ranks()[0];
    seen.live = all("[aria-live=polite]").map((one) => one.textContent);
    seen.tick = find("tr.marked td").textContent;
    await press(model, "/");
    seen.found = document.activeElement.type;
    type(document.activeElement, "FORGE");
    await press(model, "Enter");
    seen.filtered = [ranks().length, all("[aria-live=polite]")[0].textContent];
    seen.rows = document.activeElement.tagName;
    return seen;
    """
    seen, _ = walk(browser, HELP + steps, "keyboard")
    assert seen["first"].startswith("Rank 1 of 64")
    assert seen["tabStops"] == 1
    assert seen["second"].startswith("Rank 2 of 64")
    assert seen["focus"] == "2"
    assert seen["turned"][0].startswith("Rank 21 of 64")
    assert seen["turned"][1:] == ["21", 21]
    assert seen["back"].startswith("Rank 20 of 64")
    assert seen["paged"] == [41, "page 3 of 4"]
    assert seen["before"] == 21
    assert seen["live"] == ["64 of 64 pairs pass", "2 pairs marked"]
    assert "marked" in seen["tick"]
    assert seen["found"] == "search"
    forging = browser.frame.height
    assert 0 < forging < 64
    assert seen["filtered"] == [forging, f"{forging} of 64 pairs pass"]
    assert seen["rows"] == "TR"
    assert browser.marked == [pairs.ids[1], pairs.ids[20]]


def test_text_from_data_sets_is_only_text() -> None:
    rows = [*planted_pairs(4), evil_row("chosen")]
    rows.append(
        {"prompt": EVIL, "chosen": "plain", "rejected": "short", "source": EVIL[:80], "chosen_model": EVIL}
    )
    pairs = load_pairs(rows)
    browser = PairBrowser(ranked(reversed(pairs.ids)), pairs)
    browser.filter(text="<SCRIPT>")
    steps = """
    const { model } = await open(host);
    find("tbody tr").focus();
    await press(model, "ArrowDown");
    await pause(200);
    const inside = (selector) => find(selector).textContent;
    return {
      harmed: window.harmed ?? null,
      tags: [...new Set(all("*").map((one) => one.tagName.toLowerCase()))],
      handlers: all("*").filter((one) => [...one.attributes].some((a) => a.name.startsWith("on"))).length,
      reply: inside(".chosen .text"),
      controls: all(".chosen .control").map((one) => one.textContent),
      row: all("tbody tr")[0].textContent,
      option: all("option").map((one) => one.textContent).join(),
    };
    """
    seen, asked = walk(browser, HELP + steps, "untrusted", theme="dark")
    assert seen["harmed"] is None
    assert not {"script", "img", "a", "iframe"} & set(seen["tags"])
    assert seen["handlers"] == 0
    assert seen["reply"] == EVIL.replace("\u202e", "U+202E").replace("\x1b", "U+001B") + " yes"
    assert seen["controls"] == ["U+202E", "U+001B"]
    assert "<script>" in seen["row"]
    assert "<script>" in seen["option"]
    assert set(asked) <= {*FILES}, "nothing else is asked for, of any host"


def test_stale_answers_are_ignored_and_a_busy_kernel_is_named() -> None:
    browser = browser_of(planted())
    steps = """
    const { model } = await open(host);
    model.held = [];
    type(find("input[type=search]"), "stamp");
    await pause(400);
    type(find("input[type=search]"), "bike");
    await pause(400);
    await model.settled();
    const [older, newer] = model.held;
    await pause(1200);
    const waiting = find(".waiting").textContent;
    model.held = null;
    model.receive(older);
    const early = find("[role=status]").textContent;
    model.receive(newer);
    const seen = [find("[role=status]").textContent, find("tbody").textContent];
    model.receive(older);
    return { waiting, early, seen, after: find("tbody").textContent, done: find(".waiting").textContent };
    """
    seen, _ = walk(browser, HELP + steps, "stale")
    assert "Waiting for Python" in seen["waiting"]
    assert seen["early"] == "64 of 64 pairs pass"
    assert seen["seen"][0] == f"{browser.frame.height} of 64 pairs pass"
    assert "bike" in seen["seen"][1]
    assert "stamp" not in seen["after"]
    assert seen["done"] == ""


def test_buttons_mark_filter_and_turn_and_the_static_table_hides_while_the_widget_lives() -> None:
    pairs = planted()
    browser = browser_of(pairs)
    static = browser._repr_mimebundle_()[0]["text/html"]
    steps = """
    const { model, close } = await open(host);
    const table = document.querySelector(".jp-OutputArea-child");
    const seen = { static: getComputedStyle(table).display };
    const choice = all("select")[0];
    choice.selectedIndex = [...choice.options].findIndex((one) => one.textContent.startsWith("planted"));
    choice.dispatchEvent(new Event("change", { bubbles: true }));
    await model.settled();
    button("Mark all that pass").click();
    await model.settled();
    seen.marked = all("[role=status]")[1].textContent;
    find("td.mark").click();
    await model.settled();
    seen.unmarked = all("[role=status]")[1].textContent;
    button("Mark").click();
    await model.settled();
    seen.pressed = find(".toggle").getAttribute("aria-pressed");
    button("Reset filters").click();
    await model.settled();
    seen.reset = [find("[role=status]").textContent, choice.selectedIndex];
    find("input[type=checkbox]").click();
    await model.settled();
    seen.only = ranks().length;
    type(all("input[type=number]")[0], "5");
    await pause(400);
    await model.settled();
    const gone = find(".title").offsetParent === null;
    seen.none = [find("[role=status]").textContent, find(".none").hidden, gone];
    button("Reset filters").click();
    await model.settled();
    button("Next page").click();
    await model.settled();
    seen.page = ranks()[0];
    const named = (one) => (one.labels?.[0] ?? one).textContent.trim() !== "";
    seen.nameless = all("input, select, button").filter((one) => !named(one)).length;
    close();
    host.replaceChildren();
    seen.alone = getComputedStyle(table).display;
    return seen;
    """
    output = f'<div class="jp-OutputArea-child">{static}</div>'
    seen, _ = walk(browser, HELP + steps, "buttons", below=output)
    assert seen["static"] == "none"
    assert seen["marked"] == "16 pairs marked"
    assert seen["unmarked"] == "15 pairs marked"
    assert seen["pressed"] == "true"
    assert seen["reset"] == ["64 of 64 pairs pass", 0]
    assert seen["only"] == 16
    assert seen["none"] == ["0 of 64 pairs pass", False, True]
    assert seen["page"] == 21
    assert seen["nameless"] == 0
    assert seen["alone"] == "block"
    assert len(browser.marked) == 16


def test_long_replies_scroll_in_their_pane_and_tokens_are_shaded() -> None:
    pairs = load_pairs([evil_row("chosen", long="word " * 20_000), *planted_pairs(4)])
    tokens = pl.DataFrame(spans(pairs), schema=SCHEMA, orient="row")
    browser = PairBrowser(ranked(pairs.ids), pairs, tokens=tokens)
    steps = """
    const { model } = await open(host);
    const pane = find(".chosen .text");
    const seen = { height: host.scrollHeight, wide: host.scrollWidth };
    seen.pane = [pane.clientHeight, pane.scrollHeight];
    seen.length = pane.textContent.length;
    seen.marks = all("mark.differs").length;
    seen.before = find(".legend").checkVisibility();
    find(".pair input[type=checkbox]").click();
    seen.legend = [find(".legend").checkVisibility(), find(".legend").textContent];
    seen.samples = new Set(all(".legend mark").map((one) => getComputedStyle(one).backgroundColor)).size;
    seen.described = all(".reply .text").map((one) => host.ownerDocument.getElementById(
      one.getAttribute("aria-describedby")).textContent);
    seen.shaded = all(".reply mark").map((one) => [one.className, one.title]).slice(0, 2);
    seen.text = find(".chosen .text").textContent.length;
    seen.note = find(".note").textContent;
    return seen;
    """
    seen, _ = walk(browser, HELP + steps, "long", theme="dark")
    assert seen["height"] < 1200
    assert seen["pane"][0] < 400 < seen["pane"][1]
    assert seen["wide"] <= 1000
    assert seen["length"] == seen["text"] > 100_000
    assert seen["marks"] > 0
    assert seen["shaded"] == [["toward-4", "+2"], ["away-2", "-1"]]
    assert seen["note"] == 'Strongest toward the behaviour "<scri" +2; away from it "pt>" -1.'
    assert seen["described"] == [seen["note"]] * 2, "a screen reader says so with each reply"
    assert seen["before"] is False
    assert seen["legend"][0] is True
    assert "Solid line: pushes toward the behaviour" in seen["legend"][1]
    assert "dotted line: away from it" in seen["legend"][1]
    assert seen["samples"] == 8, "four shades each way, all different"


def spans(pairs: PairSet) -> Iterable[tuple[str, str, int, int, float]]:
    first = pairs.ids[0]
    yield from ((first, "chosen", 0, 5, 2.0), (first, "chosen", 5, 8, -1.0))


def evil_row(side: str, *, long: str = "") -> dict[str, object]:
    texts = {"chosen": f"{EVIL} no", "rejected": f"{EVIL} no", side: f"{EVIL} yes{long}"}
    return {"prompt": EVIL, **texts, "source": "bad"}
