from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from termwise.server.inference.packing import group_lengths, plan_batches

_LENGTHS = st.lists(st.integers(0, 600), max_size=60)


@given(lengths=_LENGTHS, budget=st.integers(1, 2000), most=st.none() | st.integers(1, 8))
def test_batches_hold_every_text_once_and_keep_the_budget(lengths: list[int], budget: int, most: int | None) -> None:
    batches = plan_batches(lengths, budget, most)
    flat = [position for batch in batches for position in batch]
    assert sorted(flat) == [position for position, length in enumerate(lengths) if length]
    assert [lengths[position] for position in flat] == sorted(length for length in lengths if length)
    for batch in batches:
        assert len(batch) == 1 or sum(lengths[position] for position in batch) <= budget
        assert most is None or len(batch) <= most
    # No two neighbours would fit into one.
    for left, right in itertools.pairwise(batches):
        assert len(left) == most or sum(lengths[position] for position in left) + lengths[right[0]] > budget


@given(lengths=_LENGTHS)
def test_groups_cover_the_rows_in_order(lengths: list[int]) -> None:
    lengths = sorted(length for length in lengths if length)
    groups = group_lengths(lengths)
    assert [group.length for group in groups for _ in range(group.count)] == lengths
    start = 0
    for group in groups:
        assert group.start == start
        start += group.count * group.length
    assert len({group.length for group in groups}) == len(groups)
