from __future__ import annotations

import base64
import math
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import altair as alt
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probekit import report
from probekit._report_text import text_html
from probekit.charts import ranking_chart
from probekit.report import Excerpt, Figure, KeyFigure, ReportError, Section, Table, format_number
from probekit.sources import SourceError
from probekit.testing import ranked

VOID = {"meta", "img", "source", "br", "link", "input", "hr"}
EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)> \"quoted\" & 'single'"


@dataclass
class Page(HTMLParser):
    """A page taken apart: its tags with their attributes, its text, and what is wrong with its nesting."""

    source: str
    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    words: list[tuple[str, str]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.feed(self.source)
        self.close()
        self.wrong += self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        self.words.append((self.open[-1] if self.open else "", data))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def text(self, *tags: str) -> str:
        return "".join(data for tag, data in self.words if tag != "style" and (not tags or tag in tags))


def written(path: Path, *blocks: report.Block, title: str = "Demo") -> Page:
    file = report.write_report(path / "report.html", title=title, sections=[Section("Part", blocks)])
    return Page(file.read_text(encoding="utf-8"))


FRAME = pl.DataFrame(
    {
        **{"arm": ["filter", "random filter"], "seeds": [5, 5], "n": [1500, 1234567]},
        **{"rate": [0.125, 0.8], "low": [0.081, None], "high": [0.17, None]},
        **{"reduction": [0.84, None], "reduction_low": [0.7, None], "reduction_high": [0.9, None]},
        **{"flagged": [True, False]},
    }
)
TABLE = Table(FRAME, "What each arm did.", percent=["rate", "reduction"])
CHART = ranking_chart(ranked("abcdefgh"), {"a", "b"}, k=2)
FIGURE = Figure(CHART, "Where the pairs rank.", Table(ranked("abcd").frame, "The ranking."))
EVERYTHING: list[report.Block] = [
    "One paragraph with `code`.\n\nAnother one.",
    [KeyFigure("Average precision", "0.97", "plain 0.58"), KeyFigure("Pairs", "320")],
    TABLE,
    FIGURE,
    Excerpt([("Prompt", "How?"), ("Reply", "Sure.")], "One sample."),
]


def test_the_page_is_well_formed_and_in_one_language(tmp_path: Path) -> None:
    page = written(tmp_path, *EVERYTHING)
    assert page.source.startswith("<!DOCTYPE html>")
    assert page.wrong == []
    assert page.all("html") == [{"lang": "en"}]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_page_needs_no_network_and_runs_no_script(tmp_path: Path) -> None:
    page = written(tmp_path, *EVERYTHING)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    addresses = [a[name] for _, a in page.tags for name in ("src", "srcset", "href") if name in a]
    assert addresses
    assert all(one.startswith(("data:image/svg+xml;base64,", "#")) for one in addresses)
    assert not re.search(r"url\(|@import", page.source)
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_headings_go_down_in_steps_and_name_their_sections(tmp_path: Path) -> None:
    page = written(tmp_path, *EVERYTHING)
    assert [tag for tag, _ in page.tags if re.fullmatch(r"h\d", tag)] == ["h1", "h2"]
    assert page.all("section")[0]["aria-labelledby"] == page.all("h2")[0]["id"]


def test_from_three_sections_on_there_are_contents_that_lead_to_them(tmp_path: Path) -> None:
    sections = [Section(name, ["Text."]) for name in ("One", "Two", "Three")]
    page = Page(report.write_report(tmp_path / "a.html", title="T", sections=sections).read_text())
    assert [f"#{one['id']}" for one in page.all("h2")] == [one["href"] for one in page.all("a")]
    assert "nav" not in {tag for tag, _ in written(tmp_path, "Text.").tags}


def test_tables_have_captions_and_headers_with_scope(tmp_path: Path) -> None:
    page = written(tmp_path, TABLE)
    scopes = [one["scope"] for one in page.all("th")]
    assert scopes.count("col") == 6
    assert scopes.count("row") == FRAME.height
    assert "What each arm did." in page.text("caption")


def test_what_scrolls_can_be_reached_by_keyboard_and_has_a_name(tmp_path: Path) -> None:
    page = written(tmp_path, TABLE, FIGURE)
    regions = [one for one in page.all("div") if one.get("class") == "scroll"]
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert len(regions) == 3
    assert all(one["tabindex"] == "0" and one["role"] == "region" for one in regions)
    assert all(one["aria-labelledby"] in ids for one in regions)


def test_numbers_are_formatted_by_their_kind(tmp_path: Path) -> None:
    text = written(tmp_path, TABLE).text()
    for shown in ("12.5% (8.1 to 17.0)", "84.0% (70.0 to 90.0)", "1,234,567", "80.0%", "yes", "no"):
        assert shown in text


def test_missing_values_are_a_dash_that_is_read_as_none(tmp_path: Path) -> None:
    page = written(tmp_path, TABLE)
    assert "–none" in page.text()
    assert "None" not in page.text()


def test_bounds_stand_with_their_value_and_not_in_columns_of_their_own(tmp_path: Path) -> None:
    head = written(tmp_path, TABLE).text("th")
    assert "low" not in head
    assert "reduction" in head
    assert TABLE.bounds() == {"rate": ("low", "high"), "reduction": ("reduction_low", "reduction_high")}
    given = Table(FRAME, "x", intervals={"n": ("low", "high")})
    assert given.bounds() == {"n": ("low", "high")}
    assert Table(FRAME.select("low", "high"), "x").bounds() == {}, "there is no column before them"


def test_headings_are_labels_or_names_with_spaces(tmp_path: Path) -> None:
    page = written(tmp_path, Table(FRAME, "x", labels={"n": "replies"}, intervals={}))
    assert "replies" in page.text("th")
    assert "reduction low" in page.text("th")


@pytest.mark.parametrize(
    ("value", "options", "shown"),
    [
        (0, {}, "0"),
        (1234567, {}, "1,234,567"),
        (-3, {}, "−3"),
        (0.5, {}, "0.50"),
        (-0.5, {"decimals": 1}, "−0.5"),
        (1234.5, {"decimals": 1}, "1,234.5"),
        (0.0, {}, "0.00"),
        (-0.0, {}, "0.00"),
        (0.0004, {}, "4.0e−4"),
        (-0.0004, {}, "−4.0e−4"),
        (0.125, {"percent": True}, "12.5%"),
        (1, {"percent": True}, "100.0%"),
        (-0.00001, {"percent": True}, "0.0%"),
        (math.nan, {}, "NaN"),
        (math.inf, {}, "∞"),
        (-math.inf, {"percent": True}, "−∞"),
    ],
)
def test_numbers_read_well(value: float, options: dict[str, int], shown: str) -> None:
    assert format_number(value, **options) == shown


def test_text_from_data_sets_and_models_is_only_text(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {EVIL: [EVIL], "prompt": [[{"role": "user", "content": EVIL}]], "other": [{"a": EVIL}]}
    )
    blocks: list[report.Block] = [
        EVIL,
        [KeyFigure(EVIL, EVIL, EVIL)],
        Table(frame, EVIL, labels={"other": EVIL}),
        Figure(CHART.properties(description=EVIL), EVIL),
        Excerpt([(EVIL, EVIL)], EVIL),
    ]
    page = written(tmp_path, *blocks, title=EVIL)
    assert page.wrong == []
    assert "script" not in {tag for tag, _ in page.tags}
    assert all("onerror" not in attributes for _, attributes in page.tags)
    assert page.all("img")[0]["alt"] == EVIL
    assert len(page.all("img")) == 1
    assert page.text().count(EVIL) == 15  # all but the cell of JSON, which escapes the quotes


@given(st.text(st.characters(exclude_categories=()), max_size=40))
def test_any_text_comes_through_to_the_reader_character_by_character(text: str) -> None:
    page = Page(f"<p>{text_html(text)}</p>")
    assert page.wrong == []
    assert {tag for tag, _ in page.tags} <= {"p", "span"}
    read = [chr(int(data[2:], 16)) if tag == "span" else data for tag, data in page.words]
    assert "".join(read) == text.replace("\r\n", "\n")


@pytest.mark.parametrize(
    ("character", "shown"),
    [
        ("\u202e", "U+202E"),  # turns the reading direction round
        ("\u2066", "U+2066"),
        ("\u200b", "U+200B"),  # has no width
        ("\ufeff", "U+FEFF"),
        ("\x00", "U+0000"),
        ("\x1b", "U+001B"),
        ("\ud800", "U+D800"),  # cannot be written as UTF-8
        ("\U000e0041", "U+E0041"),  # a letter of an invisible alphabet
    ],
)
def test_characters_that_hide_or_reorder_text_are_shown_by_number(
    tmp_path: Path, character: str, shown: str
) -> None:
    page = written(tmp_path, Excerpt([("Reply", f"a{character}b")]))
    assert f"a{shown}b" in page.text()
    assert character not in page.source


def test_titles_and_alt_texts_can_be_written_whatever_they_hold(tmp_path: Path) -> None:
    page = written(tmp_path, Figure(CHART.properties(description="a\u202eb"), "x"), title="c\ud800d")
    assert page.text("title") == "cU+D800d"
    assert page.all("img")[0]["alt"] == "aU+202Eb"


def test_line_breaks_accents_emoji_and_other_scripts_stay_as_they_are(tmp_path: Path) -> None:
    text = "one\ntwo\tnaïve 👩‍👩‍👧 العربية 中文"
    assert text in written(tmp_path, Excerpt([("Reply", text.replace("\n", "\r\n"))])).text()


def test_text_of_unknown_direction_is_set_apart(tmp_path: Path) -> None:
    page = written(tmp_path, Excerpt([("Reply", "العربية")]), Table(pl.DataFrame({"a": ["العربية"]}), "x"))
    assert page.all("dd")[0]["dir"] == "auto"
    assert page.all("th")[1]["dir"] == "auto"


def test_long_text_is_folded_and_nothing_of_it_is_lost(tmp_path: Path) -> None:
    text = " ".join(f"word{number}" for number in range(1000))
    frame = pl.DataFrame({"prompt": [[{"role": "user", "content": text}]]})
    page = written(tmp_path, Excerpt([("Reply", text)]), Table(frame, "x"))
    assert len(page.all("details")) == 2
    folded = re.sub(r"the other [\d,]+ characters", "", page.text())
    assert folded.count(text) == 2
    assert f"the other {len(text) - 1000:,} characters" in page.text("summary")


def test_tables_say_how_many_rows_they_leave_out(tmp_path: Path) -> None:
    page = written(tmp_path, Table(pl.DataFrame({"n": range(1200)}), "Counts.", rows=10))
    assert "Counts. The first 10 of 1,200 rows." in page.text("caption")
    assert len(page.all("tr")) == 11


def test_every_cell_of_every_type_has_a_rendering(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "list": [[1, 2], []],
            "struct": [{"a": 1, "b": None}, {"a": 2, "b": None}],
            "null": [None, None],
            "date": pl.Series(["2026-01-02", None]).str.to_date(),
            "category": pl.Series(["a", "b"], dtype=pl.Categorical),
            "decimal": pl.Series(["1.50", "2.25"]).str.to_decimal(scale=2),
        }
    )
    text = written(tmp_path, Table(frame, "x")).text()
    for shown in ("[1, 2]", "2026-01-02", "1.50"):
        assert shown in text


def test_numbers_stand_right_short_words_stay_on_one_line_and_long_ones_wrap(tmp_path: Path) -> None:
    frame = pl.DataFrame({"name": ["filter"], "reply": ["word " * 20], "n": [1]})
    assert [one["class"] for one in written(tmp_path, Table(frame, "x")).all("th")[:3]] == [
        "short",
        "words",
        "number",
    ]


def test_charts_are_images_for_light_and_dark_pages_with_alt_text_and_their_numbers(tmp_path: Path) -> None:
    page = written(tmp_path, FIGURE)
    image, dark = page.all("img")[0], page.all("source")[0]
    assert image["alt"] == CHART.to_dict()["description"]
    assert dark["media"] == "(prefers-color-scheme: dark)"
    light_svg, dark_svg = (
        base64.b64decode(one.removeprefix("data:image/svg+xml;base64,")).decode()
        for one in (image["src"], dark["srcset"])
    )
    assert light_svg.startswith("<svg")
    assert "#e8eaed" in dark_svg
    assert "#e8eaed" not in light_svg
    assert f'width="{image["width"]}"' in light_svg, "so that the page does not jump while it loads"
    assert "The numbers as a table" in page.text("summary")


def test_prose_is_split_into_paragraphs_and_code_is_set_as_code(tmp_path: Path) -> None:
    page = written(tmp_path, "One `a < b` here.\n\n\n  Two.\n")
    assert len(page.all("p")) == 2
    assert page.text("code") == "a < b"


def test_the_same_report_is_written_as_the_same_bytes(tmp_path: Path) -> None:
    assert written(tmp_path, *EVERYTHING).source == written(tmp_path, *EVERYTHING).source


def test_a_report_replaces_the_one_before_only_when_it_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text("the old one")
    broken = alt.Chart("http://127.0.0.1:9/data.csv").mark_point().encode(x="x:Q").properties(description="d")
    with pytest.raises(ValueError, match=r"127\.0\.0\.1"):
        written(tmp_path, Figure(broken, "x"))
    assert file.read_text() == "the old one"
    assert list(tmp_path.iterdir()) == [file]


def test_missing_folders_are_made_and_unwritable_ones_refused(tmp_path: Path) -> None:
    sections = [Section("Part", ["Text."])]
    assert report.write_report(tmp_path / "runs" / "demo" / "r.html", title="T", sections=sections).is_file()
    (tmp_path / "file").write_text("")
    with pytest.raises(SourceError, match="Could not write r"):
        report.write_report(tmp_path / "file" / "r.html", title="T", sections=sections)


def test_what_a_reader_could_not_understand_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="title and at least one section"):
        report.write_report(tmp_path / "r.html", title="T", sections=[])
    with pytest.raises(ReportError, match="caption that says what it shows"):
        Table(FRAME, " ")
    with pytest.raises(ReportError, match="no column 'precision'"):
        Table(FRAME, "x", percent=["precision"])
    with pytest.raises(ReportError, match="no column 'worst'"):
        Table(FRAME, "x", intervals={"rate": ("worst", "best")})
    with pytest.raises(ReportError, match=r"cannot hold DataFrame as it is.*go into a Table"):
        written(tmp_path, FRAME)  # type: ignore[arg-type]
    with pytest.raises(ReportError, match="cannot hold list"):
        written(tmp_path, [])
    with pytest.raises(ReportError, match="must be in a list"):
        Section("Part", "Text.")
    with pytest.raises(ReportError, match="no description"):
        Figure(CHART.properties(description=" "), "x")
