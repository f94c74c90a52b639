from __future__ import annotations

import polars as pl
import pytest
import torch

from probekit.ranking import RankingError
from probekit.stability import STABILITY_COLUMNS, stability
from probekit.vectors import VectorSet


def vectors(rows: torch.Tensor, name: str, **fields: object) -> VectorSet:
    ids = [f"{name}{row}" for row in range(len(rows))]
    return VectorSet(ids, (0,), rows.float().unsqueeze(1), "0123", **fields)  # type: ignore[arg-type]


def behaviours(rows: torch.Tensor) -> VectorSet:
    prompts = [f"p{row}" for row in range(len(rows))]
    return vectors(rows, "b", kind="behaviour", prompt_ids=prompts)


PAIRS = vectors(torch.randn(30, 8, generator=torch.Generator().manual_seed(0)), "pair")
NOISE = torch.randn(12, 8, generator=torch.Generator().manual_seed(1))


def test_equal_prompts_leave_everything_as_it_was() -> None:
    found = stability(behaviours(torch.ones(6, 8)), PAIRS, layer=0, k=5)
    assert found.schema == pl.Schema(STABILITY_COLUMNS)
    assert found["cosine"].to_list() == pytest.approx([1.0] * 20)
    assert set(found["overlap"]) == {1.0}
    assert set(found["prompts"]) == {3}


def test_prompts_that_point_nowhere_in_common_give_other_tops() -> None:
    loose = stability(behaviours(NOISE), PAIRS, layer=0, k=5)
    firm = stability(behaviours(NOISE + 5), PAIRS, layer=0, k=5)
    assert loose["cosine"].mean() < 0.9 < 0.99 < firm["cosine"].mean()  # type: ignore[operator]
    assert loose["overlap"].mean() < firm["overlap"].mean()  # type: ignore[operator]


def test_a_seed_gives_the_same_draws_and_another_seed_others() -> None:
    first, again, other = (stability(behaviours(NOISE), PAIRS, layer=0, k=5, seed=s) for s in (3, 3, 4))
    assert first.equals(again)
    assert not first.equals(other)


def test_the_options_of_rank_are_passed_on() -> None:
    twins = vectors(NOISE[:3] + 1, "t", kind="twin", prompt_ids=["x", "y", "z"])
    found = stability(behaviours(NOISE), PAIRS, layer=0, k=5, control=twins, method="project", draws=2)
    assert found.height == 2
    with pytest.raises(RankingError, match="There is no method 'best'"):
        stability(behaviours(NOISE), PAIRS, layer=0, k=5, control=twins, method="best")


@pytest.mark.parametrize(("share", "draws", "n"), [(0, 5, 4), (1.1, 5, 4), (0.5, 0, 4), (0.5, 5, 1)])
def test_what_cannot_be_drawn_is_an_error(share: float, draws: int, n: int) -> None:
    with pytest.raises(RankingError, match="the share is above 0"):
        stability(behaviours(NOISE[:n]), PAIRS, layer=0, k=5, share=share, draws=draws)
