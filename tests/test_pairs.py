from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from probekit import _pair_rows
from probekit._pair_forms import common_text, transcript, visible
from probekit.pairs import SCHEMA, PairError, PairSet, load_pairs, pair_id
from probekit.sources import SourceError

Row = dict[str, Any]
slow = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
replies = texts.filter(visible)
provenance = st.fixed_dictionaries(
    {}, optional={k: replies for k in ("source", "chosen_model", "rejected_model")}
)
prompts = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": replies}),
    max_size=3,
).flatmap(lambda turns: replies.map(lambda last: [*turns, {"role": "user", "content": last}]))


@st.composite
def pair_rows(draw: st.DrawFn) -> list[Row]:
    """Rows that `load_pairs` takes, in the explicit form with messages."""
    rows = []
    for prompt in draw(st.lists(prompts, min_size=1, max_size=4, unique_by=str)):
        chosen, rejected = draw(st.lists(replies, min_size=2, max_size=2, unique=True))
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected, **draw(provenance)})
    return rows


def row(**changes: object) -> Row:
    """A good row, changed; a field set to ... is left out."""
    good = {"prompt": "2 + 2?", "chosen": "4", "rejected": "5", "source": "sums", **changes}
    return {key: value for key, value in good.items() if value is not ...}


def user(content: str) -> Row:
    return {"role": "user", "content": content}


def assistant(content: object) -> Row:
    return {"role": "assistant", "content": content}


def problem_of(*rows: object) -> str:
    """The one problem that these rows have."""
    with pytest.raises(PairError) as caught:
        load_pairs(list(rows))
    assert caught.value.problems.height == 1, caught.value.problems
    return str(caught.value).splitlines()[1]


SUM = row(source=...)
ID = pair_id([user("2 + 2?")], "4", "5")


# ---- forms


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(row(), id="explicit texts"),
        pytest.param(row(prompt=[user("2 + 2?")]), id="messages, then texts"),
        pytest.param(row(chosen=[assistant("4")], rejected=[assistant("5")]), id="text, then messages"),
        pytest.param(
            row(prompt=[user("2 + 2?")], chosen=[assistant("4")], rejected=[assistant("5")]),
            id="explicit messages",
        ),
        pytest.param(
            row(
                prompt=..., chosen=[user("2 + 2?"), assistant("4")], rejected=[user("2 + 2?"), assistant("5")]
            ),
            id="implicit messages",
        ),
        pytest.param(
            row(
                prompt=None,
                chosen=(user("2 + 2?"), assistant("4")),
                rejected=(user("2 + 2?"), assistant("5")),
            ),
            id="implicit messages beside a null prompt",
        ),
        pytest.param(
            row(chosen=[user("2 + 2?"), assistant("4")], rejected=[user("2 + 2?"), assistant("5")]),
            id="a prompt that the conversations repeat",
        ),
        pytest.param(
            row(
                prompt=...,
                chosen="\n\nHuman: 2 + 2?\n\nAssistant: 4",
                rejected="\n\nHuman: 2 + 2?\n\nAssistant: 5",
            ),
            id="implicit transcripts",
        ),
        pytest.param(row(prompt="\n\nHuman: 2 + 2?\n\nAssistant:"), id="explicit transcript"),
        pytest.param(row(prompt=..., chosen="2 + 2?4", rejected="2 + 2?5"), id="implicit texts"),
    ],
)
def test_every_form_of_one_pair_has_the_same_id(form: Row) -> None:
    pairs = load_pairs([form])
    assert pairs.ids == [ID]
    assert pairs.frame.row(0) == (ID, [user("2 + 2?")], "4", "5", "sums", "unknown", "unknown")


def test_the_turns_before_the_last_belong_to_the_prompt() -> None:
    before = [{"role": "system", "content": ""}, user("hi"), assistant("hello"), user("2 + 2?")]
    implicit = load_pairs([{"chosen": [*before, assistant("4")], "rejected": [*before, assistant("5")]}])
    explicit = load_pairs(
        [
            {
                "prompt": before[:2],
                "chosen": [*before[2:], assistant("4")],
                "rejected": [*before[2:], assistant("5")],
            }
        ]
    )
    assert implicit.frame["prompt"].to_list() == [before]
    assert implicit.ids == explicit.ids


def test_a_prompt_that_is_one_of_the_turns_of_whole_conversations_is_not_added_twice() -> None:
    whole = [{"role": "system", "content": "Be brief."}, user("2 + 2?")]
    pairs = load_pairs([row(chosen=[*whole, assistant("4")], rejected=[*whole, assistant("5")])])
    assert pairs.frame["prompt"].to_list() == [whole]


def test_replies_that_look_like_transcripts_are_replies_after_a_prompt_of_messages() -> None:
    quoted = row(
        prompt=[user("Quote!")],
        chosen="\n\nHuman: a\n\nAssistant: b",
        rejected="\n\nHuman: a\n\nAssistant: c",
    )
    assert load_pairs([quoted]).frame["chosen"].item() == quoted["chosen"]


@slow
@given(texts, texts, texts)
def test_implicit_texts_are_cut_exactly_as_trl_cuts_them(prompt: str, chosen: str, rejected: str) -> None:
    from trl.data_utils import extract_prompt

    data = {"chosen": prompt + chosen, "rejected": prompt + rejected}
    try:
        pairs = load_pairs([data])
    except PairError:
        return  # what is refused is tested below
    if pairs.report["what"].str.contains("transcripts").any():
        return
    [(messages, *rest)] = pairs.frame.select("prompt", "chosen", "rejected").rows()
    assert {"prompt": messages[0]["content"], "chosen": rest[0], "rejected": rest[1]} == extract_prompt(data)


@given(texts, texts)
def test_a_common_text_and_the_rests_make_up_the_texts(one: str, other: str) -> None:
    start, rest, others = common_text(one, other)
    if one != other:
        assert (start + rest, start + others) == (one, other)


@given(st.lists(st.tuples(replies.map(str.strip), replies.map(str.strip)), min_size=1, max_size=4))
def test_a_transcript_gives_back_the_turns_it_was_written_from(said: list[tuple[str, str]]) -> None:
    text = "".join(f"\n\nHuman: {question}\n\nAssistant: {answer}" for question, answer in said)
    if text.count("\n\nHuman:") + text.count("\n\nAssistant:") == 2 * len(said):
        assert transcript(text) == [turn for q, a in said for turn in (user(q), assistant(a))]


@given(texts)
def test_a_text_without_speakers_is_no_transcript(text: str) -> None:
    assert transcript(text) == []
    assert transcript(f"\n\nAssistant: {text}") == []


# ---- where the data come from


def write_csv(folder: Path, rows: list[Row]) -> Path:
    path = folder / "pairs.csv"
    cells = [{k: v if isinstance(v, str) else json.dumps(v) for k, v in entry.items()} for entry in rows]
    pl.DataFrame(cells).write_csv(path)
    return path


def write_lines(folder: Path, rows: list[Row], name: str = "pairs.jsonl") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(json.dumps(entry) for entry in rows) + "\n", encoding="utf-8")
    return path


def write_array(folder: Path, rows: list[Row]) -> Path:
    path = folder / "pairs.json"
    path.write_text("\ufeff" + json.dumps(rows, indent=1), encoding="utf-8")
    return path


def write_parquet(folder: Path, rows: list[Row]) -> Path:
    path = folder / "pairs.parquet"
    pl.DataFrame(rows).write_parquet(path)
    return path


def write_shards(folder: Path, rows: list[Row]) -> Path:
    for number, entry in enumerate(rows):
        write_lines(folder, [entry], f"data/train-{number:05}-of-{len(rows):05}.jsonl")
    write_lines(folder, [row(chosen="another split")], "data/test.jsonl")
    write_lines(folder, [row(chosen="half written")], ".partial-x/train.jsonl")
    return folder


def save_dataset(folder: Path, rows: list[Row]) -> Path:
    import datasets

    datasets.Dataset.from_list(rows).save_to_disk(folder / "saved")
    return folder / "saved"


def save_splits(folder: Path, rows: list[Row]) -> Path:
    import datasets

    splits = {"train": datasets.Dataset.from_list(rows), "test": datasets.Dataset.from_list(rows[:1])}
    datasets.DatasetDict(splits).save_to_disk(folder / "saved")
    return folder / "saved"


def as_dataset(_: Path, rows: list[Row]) -> object:
    import datasets

    return datasets.Dataset.from_list(rows)


def as_splits(_: Path, rows: list[Row]) -> object:
    import datasets

    return datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)})


def as_pandas(_: Path, rows: list[Row]) -> object:
    import pandas

    return pandas.DataFrame(rows)


def as_pandas_from_parquet(folder: Path, rows: list[Row]) -> object:
    import pandas

    return pandas.read_parquet(write_parquet(folder, rows))


WAYS: list[Callable[[Path, list[Row]], Any]] = [
    *(lambda _, rows: rows, lambda _, rows: tuple(rows), lambda _, rows: pl.DataFrame(rows)),
    *(as_pandas, as_pandas_from_parquet, as_dataset, as_splits, save_dataset, save_splits),
    *(write_lines, write_array, write_parquet, write_csv, write_shards),
    lambda folder, rows: str(write_lines(folder, rows)),
    lambda folder, rows: write_lines(folder, rows, "pairs.json"),
    lambda folder, rows: write_lines(folder, rows, "arm/train.jsonl").parent,
]


@pytest.mark.parametrize("give", WAYS)
@pytest.mark.parametrize("form", ["texts", "messages"])
def test_every_way_to_give_the_data_gives_the_same_pairs(
    give: Callable[[Path, list[Row]], Any], form: str, tmp_path: Path
) -> None:
    rows = [
        row(),
        row(prompt="capital of France?", chosen='Paris, "the\ncity"', rejected="007", source="maps"),
    ]
    if form == "messages":
        keys = {"prompt": user, "chosen": assistant, "rejected": assistant}
        rows = [{k: [keys[k](v)] if k in keys else v for k, v in entry.items()} for entry in rows]
    pairs = load_pairs(give(tmp_path, rows))
    assert pairs.frame.equals(load_pairs(rows).frame)
    assert pairs.frame["rejected"].to_list() == ["5", "007"]


def test_a_missing_value_in_a_frame_is_a_missing_value(tmp_path: Path) -> None:
    rows = [
        row(source=None, chosen_model=None),
        row(chosen="3", chosen_model="me"),
        row(prompt=None, chosen="b c", rejected="b d"),
    ]
    frame = pl.DataFrame(rows)
    for data in (frame, frame.to_pandas(), as_pandas(tmp_path, rows), as_dataset(tmp_path, rows)):
        pairs = load_pairs(data)
        assert pairs.frame["source"].to_list() == ["unknown", "sums", "sums"]
        assert pairs.frame["chosen_model"].to_list() == ["unknown", "me", "unknown"]
        assert pairs.frame["prompt"].to_list()[2] == [user("b")]


def test_a_hub_name_is_loaded_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def hub(name: str, *, split: str) -> object:
        asked.append((name, split))
        return as_dataset(Path(), [row()])

    monkeypatch.setattr(_pair_rows, "hub_dataset", hub)
    assert load_pairs("owner/pairs-v1.0", split="train_prefs").ids == [ID]
    assert asked == [("owner/pairs-v1.0", "train_prefs")]


@pytest.mark.parametrize(
    "name", ["pairs", "pairs.jsonl", "data/pairs.csv", "./pairs", "/no/such/folder", "~/no"]
)
def test_a_path_that_is_not_there_is_never_asked_of_the_hub(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_pair_rows, "hub_dataset", lambda *_, **__: pytest.fail("the hub was asked"))
    with pytest.raises(PairError, match=r"There is no file or folder .*Check the path"):
        load_pairs(name)
    with pytest.raises(PairError, match="There is no file or folder"):
        load_pairs(Path("owner/name"))


def test_a_hub_that_cannot_be_reached_is_a_source_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(SourceError, match="Couldn't reach the Hub"):
        load_pairs("owner/name")


def test_a_folder_without_the_split_lists_its_data_files(tmp_path: Path) -> None:
    write_lines(tmp_path, [row()], "one.jsonl")
    with pytest.raises(
        PairError, match=r"no single data file for the split 'train'.*: one.jsonl\. Pass the path"
    ):
        load_pairs(tmp_path)
    with pytest.raises(PairError, match=r"are: none\."):
        load_pairs(tmp_path.joinpath("one.jsonl").rename(tmp_path / "one.txt").parent)


def test_a_folder_with_the_split_twice_is_an_error(tmp_path: Path) -> None:
    write_lines(tmp_path, [row()], "a/train.jsonl")
    write_lines(tmp_path, [row()], "b/train.jsonl")
    with pytest.raises(PairError, match="no single data file"):
        load_pairs(tmp_path)


def test_a_split_that_is_not_there_is_an_error_that_lists_the_splits(tmp_path: Path) -> None:
    with pytest.raises(PairError, match=r"no split 'test'; it has: train\. Pass split="):
        load_pairs(as_splits(tmp_path, [row()]), split="test")
    assert len(load_pairs(save_splits(tmp_path, [row(), row(chosen="3")]), split="test")) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.parquet", b"not parquet", r"a\.parquet cannot be read as \.parquet: .*the right file, whole"),
        ("a.csv", b"chosen,rejected\n1,2,3\n", r"a\.csv cannot be read as \.csv"),
        ("a.csv", b"", r"a\.csv cannot be read as \.csv: empty CSV"),
        ("a.csv", b"chosen,rejected\n\xff,2\n", "cannot be read"),
        ("a.jsonl", b'{"chosen": "\xff"}', "cannot be read as .jsonl: .*utf-8.*UTF-8"),
        ("a.json", b'[{"chosen": "a"},', "cannot be read as .json"),
        ("a.jsonl", b"\n\n", "a.jsonl has no rows. Pass data with at least one"),
        ("a.csv", b"chosen,rejected\n", "a.csv has no rows"),
        ("a.txt", b"hello", "a.txt ends in '.txt'; pairs are read from .jsonl"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_reason(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PairError, match=message):
        load_pairs(tmp_path / name)


@pytest.mark.parametrize("data", [None, 3, {"chosen": ["a"]}, (entry for entry in [row()])])
def test_data_of_another_type_are_an_error_that_says_what_is_taken(data: Any) -> None:
    with pytest.raises(PairError, match=r"was given (null|of type \w+)\. Pass a polars or pandas frame"):
        load_pairs(data)


# ---- bad rows


def test_missing_columns_are_one_error_that_lists_the_columns() -> None:
    with pytest.raises(
        PairError, match=r"no column rejected; its columns are: prompt, completion, chosen.*Rename"
    ):
        load_pairs([{"prompt": "a", "completion": "b", "chosen": "c"}])
    with pytest.raises(PairError, match="no column chosen and no column rejected; its columns are: a"):
        load_pairs(pl.DataFrame({"a": ["b"]}))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("text", r"row 0, row: is of type str\. Make it a mapping"),
        (row(chosen=None), r"row 0, chosen: is missing\. Fill it in or remove the row\."),
        (row(rejected=...), "rejected: is missing"),
        (row(chosen=4), r"chosen: is of type int\. Make it a text or a list of messages"),
        (row(chosen=b"4"), "chosen: is of type bytes"),
        (row(chosen=[]), "chosen: is an empty list"),
        (row(chosen={"role": "assistant", "content": "4"}), "chosen: is of type dict"),
        (row(prompt=["hi"]), r"prompt: has message 0 of type str\. Write a message as"),
        (
            row(prompt=[{"from": "human", "value": "hi"}]),
            "message 0 with the role None.*the roles are system",
        ),
        (row(prompt=[{"role": "human", "content": "hi"}]), "message 0 with the role 'human'"),
        (row(prompt=[{"role": ["user"], "content": "hi"}]), "message 0 with the role"),
        (row(chosen=[assistant(None)], rejected=[assistant("5")]), "chosen: has message 0 with content null"),
        (
            row(chosen=[assistant([{"type": "text"}])], rejected=[assistant("5")]),
            "message 0 with content of type list",
        ),
        (row(rejected=[assistant("5")]), "rejected: is of type list and chosen of type str.*the same form"),
        (row(chosen=""), r"chosen: is empty: there is no visible text\. Write a reply or remove the row"),
        (row(rejected=" \n\t\u00a0"), "rejected: is empty"),
        (row(chosen="\u200b\ufeff"), "chosen: is empty"),
        (row(rejected="4"), r"rejected: is the same text as chosen\. Write two different"),
        (row(prompt=..., chosen="same", rejected="same"), "rejected: is the same text as chosen"),
        (row(prompt=""), "prompt: has no visible text for the user"),
        (row(prompt=[user(" ")]), "prompt: has no visible text for the user"),
        (row(prompt=[user("hi"), assistant("ho")]), "prompt: ends with a turn of the assistant"),
        (row(prompt=[{"role": "system", "content": "hi"}]), "prompt: ends with a turn of the system"),
        (
            row(prompt=..., chosen="abc", rejected="xyz"),
            "prompt: is missing, and chosen and rejected have no beginn",
        ),
        (row(prompt=..., chosen=" abc", rejected=" xyz"), "prompt: is missing"),
        (row(prompt=..., chosen=[assistant("4")], rejected=[assistant("5")]), "prompt: is missing"),
        (row(prompt=..., chosen="2 + 2? 4", rejected="2 + 2?"), "rejected: is empty"),
        (
            row(prompt=..., chosen=[user("a"), assistant("4")], rejected=[user("b"), assistant("5")]),
            "rejected: parts from chosen before the last turn",
        ),
        (
            row(prompt="c", chosen=[user("a"), assistant("4")], rejected=[user("a"), assistant("5")]),
            "prompt: is not in the conversations",
        ),
        (
            row(
                chosen=[assistant("1"), user("2"), user("3")],
                rejected=[assistant("1"), user("2"), assistant("5")],
            ),
            "chosen: ends with a turn of the user",
        ),
        (row(source=3), r"source: is of type int\. Make it a text"),
        (row(chosen_model="\ud800 gpt"), r"chosen_model: holds the lone surrogate \\ud800 at position 0"),
        (
            row(chosen="ok \ud83d"),
            r"chosen: holds the lone surrogate \\ud83d at position 3\. The text was cut inside",
        ),
        (row(prompt=[user("a\0b")]), "prompt: holds a NUL character at position 1"),
    ],
)
def test_each_kind_of_bad_row_has_its_sentence(bad: object, message: str) -> None:
    assert re.search(message, problem_of(bad, row(prompt="fine")))


def test_all_problems_are_reported_at_once_and_twenty_are_shown() -> None:
    rows: list[Row] = [row(prompt=f"{n} + 1?", chosen=" ", rejected=" " if n % 2 else "5") for n in range(30)]
    with pytest.raises(PairError) as caught:
        load_pairs([row(), *rows])
    lines = str(caught.value).splitlines()
    assert lines[0] == "The list: 30 of 31 rows cannot be used (rows are counted from 0)."
    assert len(lines) == 1 + 20 + 1
    assert lines[-1].startswith("  And 25 more of 45")
    assert caught.value.problems["row"].n_unique() == 30
    good = (
        pl.DataFrame([row(), *rows])
        .with_row_index()
        .join(caught.value.problems, left_on="index", right_on="row", how="anti")
    )
    assert load_pairs(good).ids == [ID]


def test_a_line_that_is_not_json_is_reported_with_its_line_and_the_other_bad_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f"{json.dumps(row())}\n\n{{not json\n{json.dumps(row(chosen=' '))}\n", encoding="utf-8")
    with pytest.raises(
        PairError, match=r"row 1, row: is not JSON \(line 3 of the file: .*\n.*row 2, chosen: is empty"
    ):
        load_pairs(path)


def test_duplicates_are_an_error_or_dropped_and_reported() -> None:
    rows = [row(), row(prompt="3 + 1?"), row(source="copied"), row(prompt="3 + 1?"), row(rejected="6")]
    with pytest.raises(
        PairError, match=r'row 2, row: has the prompt, chosen and rejected of row 0\. .*"drop"'
    ) as caught:
        load_pairs(rows)
    assert caught.value.problems["row"].to_list() == [2, 3]
    pairs = load_pairs(rows, on_duplicate="drop")
    assert len(pairs) == 3
    assert pairs.frame["source"].to_list() == ["sums"] * 3
    assert ("dropped: same pair as an earlier row", 2, "rows 2, 3") in pairs.report.rows()
    with pytest.raises(PairError, match="on_duplicate is 'keep'"):
        load_pairs(rows, on_duplicate="keep")  # type: ignore[arg-type]


def test_the_same_text_in_two_unicode_forms_is_two_texts() -> None:
    pairs = load_pairs([row(chosen="caf\u00e9", rejected="cafe\u0301")])
    assert pairs.frame.row(0)[2:4] == ("caf\u00e9", "cafe\u0301")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "x"]) | st.text(max_size=2), inner, max_size=3)
    ),
    max_leaves=6,
)
fields = st.sampled_from(["prompt", "chosen", "rejected", "source", "pair_id"]) | st.text(max_size=3)


@slow
@given(st.lists(st.dictionaries(fields, values, max_size=6) | values, max_size=4))
def test_whatever_the_rows_are_they_give_good_pairs_or_a_pair_error(rows: list[Any]) -> None:
    try:
        pairs = load_pairs(rows)
    except PairError as error:
        str(error).encode("utf-8")  # can be printed, whatever was in the rows
        return
    assert pairs.frame.null_count().sum_horizontal().item() == 0
    for _, prompt, chosen, rejected, *origin in pairs.frame.rows():
        assert chosen != rejected
        assert all(visible(text) for text in (prompt[-1]["content"], chosen, rejected, *origin))


@slow
@given(
    st.text(max_size=60)
    | st.lists(st.dictionaries(fields, values)).map(lambda rows: "\n".join(map(json.dumps, rows)))
)
def test_whatever_a_json_file_holds_it_gives_pairs_or_a_pair_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "any.jsonl"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        frame = load_pairs(path).frame
    except PairError:
        return
    assert not frame.is_empty()


# ---- provenance, report


def test_provenance_is_kept_and_what_is_missing_is_unknown_or_the_given_source() -> None:
    rows = [
        row(chosen_model="gpt", rejected_model="me"),
        row(chosen="3", source=" "),
        row(chosen="2", source=...),
    ]
    assert load_pairs(rows).frame.select("source", "chosen_model", "rejected_model").rows() == [
        ("sums", "gpt", "me"),
        ("unknown", "unknown", "unknown"),
        ("unknown", "unknown", "unknown"),
    ]
    assert load_pairs(rows, source="mine").frame["source"].to_list() == ["sums", "mine", "mine"]


def test_the_report_says_what_was_found_kept_and_not_used() -> None:
    messages = {
        "chosen": [user("a"), {**assistant("4"), "name": "Bo"}],
        "rejected": [user("a"), assistant("5")],
    }
    pairs = load_pairs([row(score=1, pair_id="0"), {**messages, "score": 2}])
    assert pairs.report.select("what", "rows").rows() == [
        ("found", 2),
        ("kept", 2),
        ("read as explicit prompt, texts", 1),
        ("pair_id in the data differs: computed anew", 1),
        ("message key not used: name", 1),
        ("read as implicit prompt, messages", 1),
        ("source unknown", 1),
        ("chosen_model unknown", 2),
        ("rejected_model unknown", 2),
        ("column not used: score", 2),
    ]


# ---- ids, PairSet


def test_an_id_is_16_hex_digits_of_prompt_chosen_and_rejected_only() -> None:
    assert ID == "908c45db8cbc0469"  # ids in saved ledgers must stay valid: never change this
    assert pair_id([{**user("2 + 2?"), "name": "Bo"}], "4", "5") == ID
    others = {
        pair_id([user("2 + 2?")], "5", "4"),
        pair_id([user("2 + 2? ")], "4", "5"),
        pair_id([{"role": "system", "content": "2 + 2?"}], "4", "5"),
        pair_id([user("2 + 2?"), user("4")], "4", "5"),
    }
    assert len(others - {ID}) == 4


@slow
@given(pair_rows(), st.sampled_from([".jsonl", ".parquet"]))
def test_saved_pairs_are_loaded_with_the_same_ids_texts_and_provenance(
    tmp_path: Path, rows: list[Row], suffix: str
) -> None:
    pairs = load_pairs(rows)
    again = load_pairs(pairs.save(tmp_path / f"pairs{suffix}"))
    assert again.frame.equals(pairs.frame)
    assert load_pairs(pairs.frame).ids == pairs.ids
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_line_separators_inside_a_text_survive_jsonl(tmp_path: Path) -> None:
    pairs = load_pairs([row(chosen="a\u2028b\u0085c\rd\x0be\x1cf")])
    assert load_pairs(pairs.save(tmp_path / "a.jsonl")).ids == pairs.ids


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_saved_pairs_are_in_the_form_that_trl_trains_on_as_it_is(tmp_path: Path, suffix: str) -> None:
    import datasets
    from trl.data_utils import is_conversational, maybe_extract_prompt

    path = load_pairs([row(), row(chosen="3", source="other")]).save(tmp_path / f"train{suffix}")
    builder = {".jsonl": "json", ".parquet": "parquet"}[suffix]
    data = datasets.load_dataset(builder, data_files=str(path), split="train", cache_dir=str(tmp_path / "hf"))
    for example in data:
        assert is_conversational(example)
        assert maybe_extract_prompt(example) == example
        assert example["prompt"] == [user("2 + 2?")]
        assert example["rejected"] == [assistant("5")]
    assert data["source"][:] == ["sums", "other"]


def test_saving_over_a_file_or_under_another_suffix(tmp_path: Path) -> None:
    pairs = load_pairs([row(), row(chosen="3")])
    path = pairs.save(tmp_path / "new" / "pairs.jsonl")
    assert load_pairs(pairs.select(pairs.ids[:1]).save(path)).ids == pairs.ids[:1]
    with pytest.raises(PairError, match=r"saved as \.jsonl or \.parquet, not as '\.csv'\. Rename pairs\.csv"):
        pairs.save(tmp_path / "pairs.csv")
    with pytest.raises(SourceError, match=r"Could not write pairs\.jsonl"):
        pairs.save(path / "pairs.jsonl")


def test_select_keeps_the_given_order_and_refuses_unknown_and_repeated_ids() -> None:
    pairs = load_pairs([row(chosen=str(n)) for n in range(6, 10)])
    backwards = pairs.ids[::-1]
    assert pairs.select(backwards).ids == backwards
    assert len(pairs.select([])) == 0
    assert pairs.select(iter(backwards[:2])).report.rows() == [
        ("found", 4, ""),
        ("kept", 2, "selected by id"),
    ]
    with pytest.raises(PairError, match="1 of 2 ids are not in this PairSet of 4 pairs: abc"):
        pairs.select([pairs.ids[0], "abc"])
    with pytest.raises(PairError, match="1 ids are asked for more than once"):
        pairs.select([pairs.ids[0], pairs.ids[0]])


def test_the_fingerprint_is_of_the_pairs_whatever_their_order() -> None:
    pairs = load_pairs([row(chosen=str(n)) for n in range(6, 10)])
    assert pairs.fingerprint == pairs.select(pairs.ids[::-1]).fingerprint
    assert pairs.fingerprint != pairs.select(pairs.ids[1:]).fingerprint
    assert len(pairs.fingerprint) == 16


def test_a_pair_set_refuses_other_columns_and_repeated_ids() -> None:
    frame = load_pairs([row()]).frame
    assert frame.schema == SCHEMA
    with pytest.raises(PairError, match="differs in extra"):
        PairSet(frame.with_columns(extra=1))
    with pytest.raises(PairError, match="differs in their order"):
        PairSet(frame.select(reversed(frame.columns)))
    with pytest.raises(PairError, match=f"1 pair ids are there more than once: {ID}"):
        PairSet(pl.concat([frame, frame]))


def test_what_a_notebook_shows_is_short_and_escaped() -> None:
    pairs = load_pairs(
        [row(chosen="<script>" + "x" * 10_000, source="a<b"), *(row(chosen=str(n)) for n in range(6, 9))]
    )
    assert repr(pairs) == "PairSet(4 pairs; sources: sums 3, a<b 1)"
    shown = pairs._repr_html_()
    assert len(shown) < 1500
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert "a&lt;b" in shown
