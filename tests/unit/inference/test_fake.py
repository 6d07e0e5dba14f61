from __future__ import annotations

import time

import pytest

from termwise.server.context import RequestContext
from termwise.server.errors import DeadlineExceededError, InvalidArgumentError, NotFoundError
from termwise.server.inference.base import Encoder, Expander, Side
from termwise.server.inference.fake import FakeEncoder, FakeExpander, word_weight


def test_same_words_get_the_same_weights_everywhere() -> None:
    left: Encoder = FakeEncoder()
    right: Encoder = FakeEncoder()
    right.tokenize(["other words first"], Side.QUERY)
    results = [
        each.encode(each.tokenize(["Salmon farm, salmon!"], Side.DOCUMENT), Side.DOCUMENT)[0] for each in (left, right)
    ]
    assert results[0].tokens == results[1].tokens
    assert results[0].weights.tolist() == results[1].weights.tolist() == sorted(results[0].weights, reverse=True)
    assert set(results[0].weights.tolist()) == {word_weight("salmon"), word_weight("farm")}
    assert results[0].token_count == 3


async def test_expander_answers_and_refuses() -> None:
    expander: Expander = FakeExpander(["one"])
    context = RequestContext("1")
    answer = await expander.expand(context, "one", ["a", ""], None)
    assert [expansion.tokens for expansion in answer.expansions] == [("a",), ()]
    with pytest.raises(NotFoundError, match='did you mean "one"'):
        await expander.expand(context, "ones", ["a"], None)
    with pytest.raises(InvalidArgumentError):
        await expander.expand(context, "one", [], None)
    with pytest.raises(DeadlineExceededError):
        await expander.expand(RequestContext("1", deadline=time.monotonic()), "one", ["a"], None)
