from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probekit import figures
from probekit.figures import (
    Figure,
    FigureError,
    fill_tables,
    main,
    markdown_table,
    read_figures,
    write_figures,
)
from probekit.sources import SourceError

ROOT = Path(__file__).parent.parent

SOME = (
    Figure("precision.control", 0.971, low=0.95, high=0.9871, n=5, target=">= 0.95"),
    Figure("precision.plain", 0.58, low=0.5, high=0.6, n=5),
    Figure("seconds.total", 2400, unit="s", target="<= 1500"),
)
TABLE = """\
| figure | value | interval | n | target | met |
| --- | ---: | --- | ---: | --- | --- |
| `precision.control` | 0.971 | 0.950 to 0.987 | 5 | ≥ 0.95 | yes |
| `precision.plain` | 0.580 | 0.500 to 0.600 | 5 |  |  |
| `seconds.total` | 2,400 s |  |  | ≤ 1500 | **no** |
"""

finite = st.floats(allow_nan=False, allow_infinity=False)
some_figures = st.lists(
    st.builds(
        lambda name, value, ends, n, target: Figure(
            name, value, low=ends and min(ends), high=ends and max(ends), n=n, target=target
        ),
        st.text("abc._-", min_size=1, max_size=8),
        finite | st.integers(),
        st.none() | st.tuples(finite, finite),
        st.none() | st.integers(0),
        st.none() | st.sampled_from([">= 0.95", "<= 10", ">= -1.5"]),
    ),
    max_size=5,
    unique_by=lambda figure: figure.name,
)


@pytest.fixture(autouse=True)
def fixed_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "_commit", lambda: "0123456789abcdef0123456789abcdef01234567-dirty")
    monkeypatch.setattr(figures, "_machine", lambda: "2 x CPU")


def written(folder: Path, name: str = "some.json") -> Path:
    return write_figures(folder / name, SOME, command="make bench")


def test_a_figures_file_has_the_common_form(tmp_path: Path) -> None:
    content = json.loads(written(tmp_path).read_text(encoding="utf-8"))
    assert list(content) == ["command", "commit", "machine", "figures"]
    assert [list(entry) for entry in content["figures"]] == 3 * [
        ["name", "value", "low", "high", "n", "unit", "target"]
    ]
    assert content["command"] == "make bench"
    assert content["figures"][2] == {
        **{"name": "seconds.total", "value": 2400, "low": None, "high": None, "n": None},
        **{"unit": "s", "target": "<= 1500"},
    }


@given(some_figures)
def test_figures_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, made: list[Figure]
) -> None:
    path = write_figures(tmp_path_factory.mktemp("figures") / "a.json", made, command="make é")
    assert read_figures(path).figures == tuple(made)
    assert read_figures(path).command == "make é"


def test_the_commit_and_the_machine_are_those_of_this_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.undo()
    content = read_figures(written(tmp_path))
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert content.commit.removesuffix("-dirty") == (
        head.stdout.strip() if head.returncode == 0 else "unknown"
    )
    assert "torch" in content.machine
    assert "\n" not in content.machine


def test_without_git_the_commit_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_figures(written(tmp_path)).commit == "unknown"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value": math.nan}, r"The value of a\.b is nan, not a finite number\. Write what was measured"),
        ({"value": None}, "The value of a.b is None"),
        ({"value": True}, "The value of a.b is True"),
        ({"value": "0.5"}, "The value of a.b is '0.5'"),
        ({"low": -math.inf, "high": 1}, "The low of a.b is -inf"),
        ({"low": 0.5}, "one end of an interval only: 0.5, None. Give both"),
        ({"low": 0.5, "high": 0.4}, "upside down: 0.5 to 0.4"),
        ({"name": "two words"}, "'two words' is no name of a figure"),
        ({"name": ""}, "'' is no name"),
        ({"target": "0.95"}, "The target of a.b is '0.95'. Write it like \">= 0.95\""),
        ({"target": ">=0.95"}, "The target of a.b"),
    ],
)
def test_a_figure_that_cannot_be_meant_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FigureError, match=message):
        Figure(**{"name": "a.b", "value": 0.5, **changes})


@pytest.mark.parametrize(
    ("value", "target", "met"),
    [
        (0.95, ">= 0.95", True),
        (0.94, ">= 0.95", False),
        (10, "<= 10", True),
        (10.1, "<= 10", False),
        (1, None, None),
    ],
)
def test_a_target_is_met_up_to_and_with_its_limit(value: float, target: str | None, met: bool | None) -> None:
    assert Figure("a", value, target=target).met is met


def test_a_name_that_is_there_twice_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(FigureError, match=r"more than once: precision\.plain\. Name each once"):
        write_figures(tmp_path / "a.json", [*SOME, SOME[1]], command="")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_a_source_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"Could not write b\.json"):
        write_figures(written(tmp_path) / "b.json", SOME, command="")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "There is no figures file .*a.json. Run the command that writes it first"),
        (b"{", "a.json is not a figures file: .*Run the command"),
        (b"\xff", "a.json is not a figures file: .*utf-8"),
        (b"[]", "has not the keys command, commit, machine and figures"),
        (b'{"command": "", "commit": "", "machine": ""}', "has not the keys"),
        (b'{"command": "", "commit": "", "machine": "", "figures": {}}', "has not the keys"),
        (b'{"command": "", "commit": "", "machine": "", "figures": [{"name": "a"}]}', "A figure in .*value"),
        (b'{"command": "", "commit": "", "machine": "", "figures": [3]}', "A figure in .*a.json is not of"),
        (b'{"command": "", "commit": "", "machine": "", "figures": [{"name": "a", "value": NaN}]}', "is nan"),
        (
            b'{"command": "", "commit": "", "machine": "", "figures": [{"name": "a", "value": 1, "hue": 2}]}',
            "A figure in .*hue",
        ),
    ],
)
def test_a_file_that_is_no_figures_file_is_named_with_the_reason(
    content: bytes | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FigureError, match=message):
        read_figures(path)


def test_a_table_shows_value_interval_count_and_target_and_where_they_come_from(tmp_path: Path) -> None:
    origin = "\n`bench.json`, from `make bench` at 0123456789-dirty on 2 x CPU.\n"
    assert markdown_table(written(tmp_path), title="bench.json") == TABLE + origin


def test_a_table_has_the_figures_asked_for_in_that_order_without_empty_columns(tmp_path: Path) -> None:
    lines = markdown_table(written(tmp_path), ["seconds.*", "precision.plain", "*.plain"]).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:4]] == ["`seconds.total`", "`precision.plain`"]
    assert lines[4] == ""
    assert markdown_table(written(tmp_path), ["*.plain"]).startswith("| figure | value | interval | n |\n")
    with pytest.raises(FigureError, match=r"has no figure that matches 'speed\.\*'"):
        markdown_table(written(tmp_path), ["seconds.*", "speed.*"])


def test_a_pattern_with_a_row_and_a_column_gives_a_wide_table(tmp_path: Path) -> None:
    some = (
        Figure("arms.random_filter.rate", 0.75, low=0.7, high=0.8, n=5),
        Figure("arms.random_filter.perplexity", 1.5, n=5),
        Figure("arms.swap.rate", 0.25, n=3),
        Figure("arms.swap.rate.seed_min", 0.2, n=3),
        Figure("gate.rate", 1),
    )
    path = write_figures(tmp_path / "wide.json", some, command="make bench")
    assert markdown_table(path, ["arms.{row}.{column}"]).splitlines()[:4] == [
        "|  | n | rate | perplexity |",
        "| --- | ---: | --- | --- |",
        "| random filter | 5 | 0.750 (0.700 to 0.800) | 1.500 |",
        "| swap | 3 | 0.250 |  |",
    ]
    assert markdown_table(path, ["arms.{row}.r*"]).startswith("| figure | value")
    with pytest.raises(FigureError, match=r"no figure that matches 'arms\.\{row\}'"):
        markdown_table(path, ["arms.{row}"])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *[(0, "0"), (0.5, "0.500"), (0.0004, "4.0e-04"), (-0.0004, "-4.0e-04"), (3.14159, "3.142")],
        *[(31.4159, "31.4"), (314.159, "314"), (31415.9, "31,416"), (2, "2"), (2.0, "2"), (0.9999, "1.000")],
    ],
)
def test_numbers_have_the_digits_that_a_reader_needs(value: float, text: str, tmp_path: Path) -> None:
    path = write_figures(tmp_path / "a.json", [Figure("a", value)], command="x")
    assert markdown_table(path).splitlines()[2] == f"| `a` | {text} |"


def test_tables_between_markers_are_filled_in_and_stay_as_they_are(tmp_path: Path) -> None:
    written(tmp_path, "deep/some.json")
    text = (
        "# Title\n\n    <!-- figures:an/example.json -->\n\n"
        "<!-- figures:deep/some.json -->\nold\n<!-- /figures -->\n"
        "between\n<!-- figures:deep/some.json seconds.* *.plain -->\n<!-- /figures -->\nend\n"
    )
    filled = fill_tables(text, folder=tmp_path)
    assert f"<!-- figures:deep/some.json -->\n{TABLE}\n`deep/some.json`, from" in filled
    assert "old" not in filled
    assert filled.count("precision.control") == 1
    assert filled.startswith("# Title\n\n    <!-- figures:an/example.json -->\n\n<!--")
    assert "<!-- /figures -->\nbetween\n<!--" in filled
    assert filled.endswith("<!-- /figures -->\nend\n")
    assert fill_tables(filled, folder=tmp_path) == filled


@pytest.mark.parametrize(
    "text",
    [
        "<!-- figures:some.json -->\nno end\n",
        "<!-- /figures -->\n",
        "<!-- figures:some.json -->\n<!-- figures:some.json -->\n<!-- /figures -->\n",
        "<!-- figures:some.json -->\n<!-- figures:some.json -->\n<!-- /figures -->\n<!-- /figures -->\n",
        "<!-- figures: -->\n<!-- /figures -->\n",
    ],
)
def test_a_marker_without_its_partner_is_an_error(text: str, tmp_path: Path) -> None:
    written(tmp_path)
    with pytest.raises(FigureError, match=r"figures markers .* in turn, each on a line of its own"):
        fill_tables(text, folder=tmp_path)


def test_the_command_writes_tables_anew_and_with_check_only_looks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path)
    readme = tmp_path / "README.md"
    stale = "<!-- figures:some.json -->\n<!-- /figures -->\n"
    readme.write_text(stale, encoding="utf-8")
    assert main(["--check", str(readme)]) == 1
    assert "README.md: tables are out of date" in capsys.readouterr().err
    assert readme.read_text(encoding="utf-8") == stale
    assert main([str(readme)]) == 0
    assert TABLE in readme.read_text(encoding="utf-8")
    assert main(["--check", str(readme)]) == 0
    assert capsys.readouterr().err.count("README.md") == 1


def test_the_tables_in_the_documents_of_this_repository_are_up_to_date(
    capsys: pytest.CaptureFixture[str],
) -> None:
    documents = [str(path) for path in sorted(ROOT.glob("*.md"))]
    assert str(ROOT / "README.md") in documents
    status = main(["--check", *documents])
    assert (status, capsys.readouterr().err) == (0, "")
