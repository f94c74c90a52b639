"""Rivals that read no activations: chance, length, and the texts by words and by a sentence encoder."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
import torch

from probekit.pairs import PairSet, load_pairs
from probekit.ranking import average_precision
from probekit.rivals import RivalError, chance, length, text
from probekit.testing import planted_contrasts, planted_pairs, tiny_checkpoint
from probekit.vectors import VectorError

M0 = tiny_checkpoint()
PAIRS = load_pairs(planted_pairs(32))
QUERIES = planted_contrasts(8)
TRUTH = set(PAIRS.frame.filter(source="planted")["pair_id"])


def pair(prompt: str, chosen: str, rejected: str) -> dict[str, str]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def query(user: str, bad: str, good: str) -> pl.DataFrame:
    return pl.DataFrame([{"contrast_id": "c", "prompt_id": "p", "user": user, "bad": bad, "good": good}])


def shuffled(pairs: PairSet) -> PairSet:
    return pairs.select(sorted(pairs.ids))


# ---------------------------------------------------------------- chance


def test_chance_depends_on_the_seed_and_not_on_the_order_of_pairs() -> None:
    first = chance.rank(M0, PAIRS, QUERIES, seed=3)
    assert first.ids == chance.rank(M0, shuffled(PAIRS), QUERIES, seed=3).ids
    assert first.ids != chance.rank(M0, PAIRS, QUERIES, seed=4).ids
    assert (first.layer, first.cost) == (None, (0, 0, 0))


def test_chance_finds_the_truth_no_better_than_its_share() -> None:
    precisions = [average_precision(chance.rank(M0, PAIRS, QUERIES, seed=seed), TRUTH) for seed in range(200)]
    assert statistics.mean(precisions) == pytest.approx(0.3, abs=0.05)  # 0.25, and a little for few pairs


# ---------------------------------------------------------------- length


def test_length_counts_the_tokens_of_the_replies() -> None:
    score = dict(length.rank(M0, PAIRS, QUERIES).frame.select("pair_id", "score").iter_rows())
    for row in PAIRS.frame.iter_rows(named=True):
        chosen, rejected = (M0.render(row["prompt"], row[side]) for side in ("chosen", "rejected"))
        assert score[row["pair_id"]] == (chosen.stop - chosen.start) - (rejected.stop - rejected.start)


def test_length_goes_the_way_of_the_queries() -> None:
    swapped = QUERIES.rename({"bad": "good", "good": "bad"})
    longer, shorter = length.rank(M0, PAIRS, QUERIES), length.rank(M0, PAIRS, swapped)
    assert longer.sign.startswith("higher = longer")
    assert shorter.sign.startswith("higher = shorter")
    scores = [one.frame.sort("pair_id")["score"] for one in (longer, shorter)]
    assert scores[0].to_list() == (-scores[1]).to_list()


# ---------------------------------------------------------------- BM25


def by_hand(asked: str, documents: list[str]) -> list[float]:
    """Lucene's BM25 with k1 = 1.5 and b = 0.75, a word at a time."""
    words = [document.lower().split() for document in documents]
    mean = sum(map(len, words)) / len(words)
    found = []
    for some in words:
        total = 0.0
        for word in asked.lower().split():
            having = sum(word in one for one in words)
            idf = math.log(1 + (len(words) - having + 0.5) / (having + 0.5))
            f = Counter(some)[word]
            total += idf * f / (f + 1.5 * (1 - 0.75 + 0.75 * len(some) / mean))
        found.append(total)
    return found


TEXTS = [
    *(pair("how to sew", "Sew it with red red thread", "no"), pair("how to dig", "dig", "dig with a spade")),
    *(pair("why", "Because", "red"), pair("how", "sew sew sew", "I will not sew")),
]


def test_bm25_is_lucenes_formula_with_prompt_and_chosen_reply_as_the_document() -> None:
    pairs = load_pairs(TEXTS)
    ranking = text.bm25(M0, pairs, query("how to sew", "Red thread", "nothing"))
    expected = by_hand("how to sew red thread", [f"{row['prompt']} {row['chosen']}" for row in TEXTS])
    score = dict(ranking.frame.select("pair_id", "score").iter_rows())
    assert [score[one] for one in pairs.ids] == pytest.approx(expected)


def test_bm25_difference_takes_off_the_rejected_documents_score() -> None:
    pairs = load_pairs(TEXTS)
    ranking = text.bm25(M0, pairs, query("how to sew", "Red thread", "nothing"), side="difference")
    documents = [f"{row['prompt']} {row[side]}" for side in ("chosen", "rejected") for row in TEXTS]
    found = by_hand("how to sew red thread", documents)
    expected = [chosen - rejected for chosen, rejected in zip(found[:4], found[4:], strict=True)]
    score = dict(ranking.frame.select("pair_id", "score").iter_rows())
    assert [score[one] for one in pairs.ids] == pytest.approx(expected)


def test_bm25_of_many_queries_is_the_mean_of_their_scores() -> None:
    alone = [
        text.bm25(M0, PAIRS, QUERIES[place : place + 1]).frame.sort("pair_id")["score"]
        for place in range(len(QUERIES))
    ]
    together = text.bm25(M0, PAIRS, QUERIES).frame.sort("pair_id")["score"]
    assert together.to_list() == pytest.approx((sum(alone[1:], alone[0]) / len(alone)).to_list())


def test_bm25_finds_the_planted_pairs_by_their_words() -> None:
    assert average_precision(text.bm25(M0, PAIRS, QUERIES), TRUTH) > 0.9


def test_texts_without_words_and_an_unknown_side_are_errors() -> None:
    with pytest.raises(RivalError, match="there are none in these 1 texts"):
        text.bm25(M0, load_pairs([pair("?", "!", "...")]), QUERIES)
    with pytest.raises(RivalError, match="no side 'both'; choose one of chosen, difference"):
        text.bm25(M0, PAIRS, QUERIES, side="both")  # type: ignore[arg-type]
    with pytest.raises(VectorError, match="no column bad"):
        text.bm25(M0, PAIRS, QUERIES.drop("bad"))


# ---------------------------------------------------------------- sentence encoders


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT with random weights that reads letters."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("encoder")
    letters = [chr(code) for code in range(33, 127)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{one}" for one in letters)]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab={word: place for place, word in enumerate(words)}).save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(BertConfig(vocab_size=len(words), **sizes, initializer_range=0.5)).save_pretrained(folder)
    return folder


def encoded(folder: Path, one: str) -> torch.Tensor:
    """One text alone, as sentence-transformers describes it: mean over tokens, made a unit vector."""
    model, tokenizer = text._opened(folder)
    with torch.inference_mode():
        states = model(**tokenizer(one, return_tensors="pt")).last_hidden_state[0]
    return torch.nn.functional.normalize(states.mean(dim=0).double(), dim=0)


@pytest.mark.parametrize("side", ["chosen", "difference"])
def test_embedding_is_the_cosine_of_mean_unit_vectors_whatever_the_batches(
    encoder: Path, side: text.Side
) -> None:
    rows, asked = PAIRS.frame.head(6), QUERIES.head(3)
    pairs = PAIRS.select(rows["pair_id"])
    ranking = text.embedding(M0, pairs, asked, side=side, model=encoder)

    def vector(prompt: str, first: str, second: str) -> torch.Tensor:
        whole = encoded(encoder, f"{prompt}\n{first}")
        return whole if side == "chosen" else whole - encoded(encoder, f"{prompt}\n{second}")

    behaviour = torch.stack([vector(*one) for one in asked.select("user", "bad", "good").iter_rows()]).mean(0)
    score = dict(ranking.frame.select("pair_id", "score").iter_rows())
    for row in rows.iter_rows(named=True):
        own = vector(row["prompt"][0]["content"], row["chosen"], row["rejected"])
        expected = torch.cosine_similarity(own, behaviour, dim=0).item()
        assert score[row["pair_id"]] == pytest.approx(expected, abs=1e-5)
    assert ranking.cost is not None
    assert ranking.cost.stored_bytes == 6 * 16 * 4
    assert ranking.cost.forward_tokens > 0


def test_a_long_prompt_does_not_push_the_reply_out(encoder: Path) -> None:
    pairs = load_pairs([pair("x" * 80 + " y" * 600, "Sure: here.", "No.")])
    assert not text.embedding(M0, pairs, QUERIES, model=encoder).zero_norms


def test_pairs_that_are_the_same_to_the_encoder_are_marked(encoder: Path) -> None:
    pairs = load_pairs([pair("Hi", "no  way", "no way"), pair("Hi", "yes", "no")])
    ranking = text.embedding(M0, pairs, QUERIES, model=encoder)
    assert ranking.zero_norms == 1
    assert ranking.frame.filter("zero_norm")["score"].item() == 0
    with pytest.raises(RivalError, match="Bad and good replies have the same vectors"):
        text.embedding(M0, pairs, query("Hi", "no  way", "no way"), model=encoder)


def test_a_folder_without_a_model_is_an_error_of_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RivalError, match="cannot be opened as a sentence encoder"):
        text.embedding(M0, PAIRS, QUERIES, model=tmp_path)


@pytest.mark.network
def test_minilm_is_the_model_its_authors_publish() -> None:
    """The similarities that sentence-transformers' documentation shows for all-MiniLM-L6-v2."""
    texts = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    vectors, tokens = text._encoded(text.minilm(), texts)
    expected = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]
    assert (vectors @ vectors.T).tolist() == [pytest.approx(row, abs=2e-4) for row in expected]
    assert tokens == 3 * 9  # it ' s so sunny outside !, between two marks; the others padded to that
