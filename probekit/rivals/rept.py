"""RepT: a pair's hidden state and loss gradient at the prompt's last token, compared with the queries'.

Li et al., "Where Did It Go Wrong?" (arXiv 2510.02334); see reference/other_methods.md, section 2. There, rows
have one reply; of a pair it is the chosen one, or, with `loss="dpo"`, both. For z = (prompt x, reply y), and
one layer,

    H(z) = the residual stream at the last token of x, which predicts the first token of y
    g(z) = the gradient of L(x, y) with respect to H(z)
    influence(train, test) = cos(h(train), h(test)),    h(z) = H(z) joined with g(z)

The released code joins by plain concatenation; |H| is a thousand to a hundred thousand times |g|, so that its
cosine is that of H alone. So the default here makes each a unit vector first, and all four are offered.

Layer i is `block_out[i]`. The authors' `hidden_states[i + 1]` is the same but for the last, which they take
after the final norm and we before it. H hangs on the prompt alone, and g only looks past the reply's first
token through attention: after the last block not at all. What is similar need not be a cause.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import polars as pl

from probekit._reading import memory_budget
from probekit._texts import Text, contrast_texts, lengths_that_fit, pair_texts
from probekit._vector_set import check_finite
from probekit.checkpoints import Rendered
from probekit.packing import groups
from probekit.pairs import PairSet
from probekit.ranking import Cost, Ranking, ranking_of
from probekit.rivals import RivalError
from probekit.rivals._rept_gradients import check_texts, log_p, traced
from probekit.tokens import SCHEMA, reply_spans
from probekit.vectors import reply_states

if TYPE_CHECKING:
    import torch

    from probekit.checkpoints import Checkpoint

Join = Literal["normalised", "raw", "hidden", "gradient"]
Loss = Literal["sft", "dpo"]

BETA = 0.1  # of DPO: TRL's, and that of our recipes
TOKENS = 512  # of a pass, padding included: logits and a graph take several times what reading takes
SIGN = "higher = the pair's signature points where the queries' do; a mean of cosines, range [-1, 1]"


class _Signatures(NamedTuple):
    """Unit vectors, float64 (texts, width or twice that), those that are zero left so; and what they took."""

    values: torch.Tensor
    cost: Cost


def rank(
    checkpoint: Checkpoint,
    pairs: PairSet,
    queries: pl.DataFrame,
    *,
    layer: int | None = None,
    join: Join = "normalised",
    loss: Loss = "sft",
    reference: Checkpoint | None = None,
    beta: float = BETA,
    chat: bool = True,
    token_budget: int = TOKENS,
) -> Ranking:
    """Pairs by the mean, over queries, of the cosine of their signature with the query's.

    checkpoint: whose states and gradients are compared, M1 in the paper; the same on M0, which has not been
    trained on the pairs, is the control for mere similarity. queries: contrasts as `behaviour_vectors` takes
    them, whose `bad` reply is what the model itself said. layer: block index; None asks `layer_of`.

    join: "normalised" (H / |H| with g / |g|: the mean of the two cosines), "raw" (as released), "hidden" (H
    alone, forward only), "gradient" (g alone). loss: "sft" is the mean cross-entropy of the chosen reply, the
    bad one of a query. "dpo" is DPO's loss with the chosen reply against the rejected one, bad against good:

        g = -beta s(-m) (d log p(chosen) / dH - d log p(rejected) / dH),   s the logistic function

    with log p the sum over the reply's tokens, and m the margin over `reference`, 0 where that is None: the
    checkpoint is its own reference, as M0 is. beta s(-m) only changes the length of g, so the reference is
    read for join="raw" alone.

    token_budget: tokens of a pass, padding included. Gives a `Ranking` of method "rept" (normalised),
    "rept-raw", "rept-hidden" or "rept-gradient", with "-dpo" behind it where that is the loss; its cost
    counts the choice of the layer too.

    Raises RivalError for another join or loss, and for a checkpoint that is read remotely; VectorError for a
    layer that does not exist and texts that cannot be read.

    >>> from probekit.pairs import load_pairs
    >>> from probekit.testing import planted_contrasts, planted_pairs, tiny_checkpoint
    >>> pairs = load_pairs(planted_pairs(8))
    >>> rank(tiny_checkpoint(), pairs, planted_contrasts(2), layer=1, join="raw").method
    'rept-raw'
    """
    for name, given, choices in (("join", join, get_args(Join)), ("loss", loss, get_args(Loss))):
        if given not in choices:
            raise RivalError(f"{name} is {given!r}; choose one of {', '.join(choices)}.")
    ours, asked = pair_texts(pairs), contrast_texts(queries)
    lengths_that_fit((checkpoint, checkpoint), [*ours, *asked], chat=chat)
    cost = Cost()
    if layer is None:
        layer, cost = _chosen_layer(checkpoint, queries, interior=True, chat=chat)
    reader = _Reader(checkpoint, layer, join, loss, reference, beta, chat, token_budget)
    of_queries, of_pairs = reader.signatures(asked), reader.signatures(ours)
    cosines = (of_pairs.values @ of_queries.values.T).clamp(-1, 1).round(decimals=12) + 0.0
    apart = dict(zip(queries["contrast_id"], cosines.T.tolist(), strict=True))
    costs = (cost, of_queries.cost, of_pairs.cost)
    method = "rept" if join == "normalised" else f"rept-{join}"
    return ranking_of(
        pairs.ids,
        cosines.mean(dim=1).tolist(),
        method=f"{method}-dpo" if loss == "dpo" and join != "hidden" else method,
        sign=SIGN,
        layer=layer,
        zero_norm=(of_pairs.values == 0).all(dim=1).tolist(),
        cost=Cost(
            sum(one.forward_tokens for one in costs),
            sum(one.backward_tokens for one in costs),
            of_pairs.values.numel() * 4,  # a signature is stored in float32
        ),
        by_query=pl.DataFrame({"pair_id": pairs.ids, **apart}),
    )


class _Reader(NamedTuple):
    """Everything but the texts that signatures hang on."""

    checkpoint: Checkpoint
    layer: int
    join: Join
    loss: Loss
    reference: Checkpoint | None
    beta: float
    chat: bool
    token_budget: int

    def signatures(self, texts: Sequence[Text]) -> _Signatures:
        from torch.nn.functional import normalize

        states, gradients, cost = self.parts(texts)
        return _Signatures(normalize(_joined(states, gradients, self.join), dim=1, eps=1e-300), cost)

    def parts(self, texts: Sequence[Text]) -> tuple[torch.Tensor, torch.Tensor, Cost]:
        """H and g of each text, float64 (texts, width) both; for join="hidden" there is no g: (texts, 0)."""
        import torch

        first = self._rendered(texts, 0)
        if self.join == "hidden":
            states, tokens = _last_states(self.checkpoint, first, [self.layer])
            check_finite(states, [text.name for text in texts])
            return states[:, 0].double(), torch.empty(len(texts), 0).double(), Cost(tokens)
        every = first + (self._rendered(texts, 1) if self.loss == "dpo" else [])
        states, gradients = (torch.empty(len(every), self.checkpoint.width).double() for _ in range(2))
        sums, tokens = [0.0] * len(every), 0
        for one in traced(self.checkpoint, every, layer=self.layer, token_budget=self.token_budget):
            states[one.place], gradients[one.place] = one.states[0], one.gradients[0]
            sums[one.place], tokens = one.log_p, tokens + one.tokens
        names = [text.name for text in texts] * (len(every) // len(texts))
        check_finite(torch.cat([states, gradients], dim=1), names)
        of_loss, more = self._of_loss(gradients, sums, every)
        return states[: len(texts)], of_loss, Cost(tokens + more, tokens)

    def _rendered(self, texts: Sequence[Text], side: int) -> list[Rendered]:
        return [self.checkpoint.render(text.prompt, text.replies[side], chat=self.chat) for text in texts]

    def _of_loss(
        self, gradients: torch.Tensor, sums: Sequence[float], texts: Sequence[Rendered]
    ) -> tuple[torch.Tensor, int]:
        """g of each text, from the gradients of the replies' log-probabilities; and tokens that it took."""
        import torch

        if self.loss == "sft":
            lengths = torch.tensor([text.stop - text.start for text in texts])
            return -gradients / lengths[:, None], 0
        chosen, rejected = gradients.chunk(2)
        margin, tokens = torch.zeros(len(chosen)).double(), 0
        if self.reference is not None and self.join == "raw":
            theirs, tokens = log_p(self.reference, texts, token_budget=self.token_budget)
            gained, lost = (torch.tensor(sums).double() - torch.tensor(theirs).double()).chunk(2)
            margin = self.beta * (gained - lost)
        return -self.beta * margin.neg().sigmoid()[:, None] * (chosen - rejected), tokens


def _joined(states: torch.Tensor, gradients: torch.Tensor, join: Join) -> torch.Tensor:
    import torch
    from torch.nn.functional import normalize

    if join in ("hidden", "gradient"):
        return states if join == "hidden" else gradients
    if join == "normalised":
        states, gradients = (normalize(one, dim=1, eps=1e-300) for one in (states, gradients))
    return torch.cat([states, gradients], dim=1)


def _last_states(
    checkpoint: Checkpoint, texts: Sequence[Rendered], layers: Sequence[int]
) -> tuple[torch.Tensor, int]:
    """The states at the last token of each prompt, (texts, layers, width), and the tokens of the passes.

    Read as the state of a "reply" of one token that ends the prompt.
    """
    import torch

    check_texts(checkpoint, texts)
    ends = [Rendered(text.ids[: text.start], text.start - 1, text.start) for text in texts]
    found = torch.empty(len(texts), len(layers), checkpoint.width)
    budget, lengths = memory_budget(checkpoint), [text.stop for text in ends]
    for place, states in reply_states(checkpoint, ends, layers=layers, token_budget=budget):
        found[place] = states[0]
    batches = groups(lengths, token_budget=budget)
    return found, sum(len(places) * lengths[places[0]] for places in batches)


def layer_of(
    checkpoint: Checkpoint, prompts: pl.DataFrame, *, interior: bool = True, chat: bool = True
) -> int:
    """The layer at which the state of the prompt's last token turns the most: RepT's "phase transition".

        similarity(i) = mean over prompts of cos(block_out[i], block_out[i + 1]) at the last prompt token

    Gives i + 1, a block index, for the least similar pair of blocks. interior: the first two pairs are left
    out as well as the last, since the jump right after the embedding outdoes any other in small models (the
    released rule picks block 1 of SmolLM2 for every prompt); False leaves out only the last, as released.
    Where that leaves no pair, it is the last block, as the paper says for models without a clear minimum.

    prompts: a frame with the column user; a query frame has one. Raises RivalError for a frame without it or
    without rows, and for a checkpoint that is read remotely.

    >>> from probekit.testing import planted_contrasts, tiny_checkpoint
    >>> layer_of(tiny_checkpoint(), planted_contrasts(2))  # of 4 blocks, no pair is left
    3
    """
    return _chosen_layer(checkpoint, prompts, interior=interior, chat=chat)[0]


def _chosen_layer(
    checkpoint: Checkpoint, prompts: pl.DataFrame, *, interior: bool, chat: bool
) -> tuple[int, Cost]:
    import torch

    if "user" not in prompts.columns or prompts.is_empty():
        raise RivalError(
            "To choose a layer, give prompts: a frame with the column user and at least one row."
        )
    candidates = range(2 if interior else 0, checkpoint.n_blocks - 2)
    if not candidates:
        return checkpoint.n_blocks - 1, Cost()
    texts = [
        checkpoint.render([{"role": "user", "content": user}], "Yes", chat=chat)
        for user in prompts["user"].unique(maintain_order=True)
    ]
    states, tokens = _last_states(checkpoint, texts, range(checkpoint.n_blocks))
    similarity = torch.cosine_similarity(states[:, :-1], states[:, 1:], dim=2).mean(dim=0)
    return min(candidates, key=lambda i: float(similarity[i])) + 1, Cost(tokens)


def tokens(
    checkpoint: Checkpoint,
    pairs: PairSet,
    queries: pl.DataFrame,
    *,
    layer: int | None = None,
    pair_ids: Iterable[str] | None = None,
    chat: bool = True,
    token_budget: int = TOKENS,
) -> pl.DataFrame:
    """One score for each token of the chosen replies, a frame with the columns of `probekit.tokens.SCHEMA`.

        I_token(train, test)_k = (sum_i g^(test)_i) . g^(train)_k,    averaged over the queries

    g^_k is the unit vector along the gradient of the reply's loss with respect to the state that predicts its
    k-th token (the authors' rows from the prompt's last token to the one before the end). The length of a
    gradient drops out, so there is no other loss to choose. pair_ids: of the pairs to score, in this order;
    None for all. The rest as in `rank`.

    >>> from probekit.pairs import load_pairs
    >>> from probekit.testing import planted_contrasts, planted_pairs, tiny_checkpoint
    >>> scored = tokens(tiny_checkpoint(), load_pairs(planted_pairs(4)), planted_contrasts(2), layer=1)
    >>> scored["pair_id"].n_unique()
    4
    """
    import torch
    from torch.nn.functional import normalize

    if layer is None:
        layer = layer_of(checkpoint, queries, chat=chat)
    ours = pair_texts(pairs if pair_ids is None else pairs.select(pair_ids))
    asked = contrast_texts(queries)
    lengths_that_fit((checkpoint, checkpoint), [*ours, *asked], chat=chat)
    rendered = [checkpoint.render(text.prompt, text.replies[0], chat=chat) for text in [*asked, *ours]]
    direction = torch.zeros(checkpoint.width).double()
    for one in traced(checkpoint, rendered[: len(asked)], layer=layer, token_budget=token_budget):
        direction += normalize(one.gradients.double(), dim=1, eps=1e-300).sum(dim=0) / len(asked)
    scores: dict[int, list[float]] = {}
    for one in traced(checkpoint, rendered[len(asked) :], layer=layer, token_budget=token_budget):
        scores[one.place] = (normalize(one.gradients.double(), dim=1, eps=1e-300) @ direction).tolist()
    rows = [
        (text.id, "chosen", *span, score)
        for place, text in enumerate(ours)
        for span, score in zip(
            reply_spans(checkpoint, text.prompt, text.replies[0], chat=chat), scores[place], strict=True
        )
    ]
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")
