from __future__ import annotations

from benchmarks.kills import kill, together


def test_a_run_killed_fifty_times_loses_no_more_than_the_block_it_was_at() -> None:
    survived = kill(50)
    assert survived.kills == 50
    assert survived.wrong == 0
    assert survived.blocks == 16
    assert survived.computed <= survived.blocks * survived.stores + survived.kills


def test_two_runs_that_fill_one_store_by_accident_leave_what_one_would() -> None:
    assert together(2) == together(1)
