"""One run of a model for a batch of texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from termwise.server.errors import TermwiseError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from termwise.server.inference.base import Encoder, Expansion, Side, TokenizedText
    from termwise.server.inference.calls import Job
    from termwise.server.inference.turns import Turn


def tokenize(encoder: Encoder, jobs: Sequence[Job]) -> tuple[dict[Job, TokenizedText], dict[Job, Exception]]:
    """Cut a batch's texts, all of one side, into tokens; gives those that were cut and, with why, those refused."""
    side = jobs[0].side
    try:
        return dict(zip(jobs, encoder.tokenize([job.text for job in jobs], side), strict=True)), {}
    except TermwiseError:
        tokenized: dict[Job, TokenizedText] = {}
        refused: dict[Job, Exception] = {}
        for job in jobs:
            try:
                tokenized[job] = encoder.tokenize([job.text], side)[0]
            except TermwiseError as error:
                refused[job] = error
        return tokenized, refused


def encode(encoder: Encoder, texts: Sequence[TokenizedText], side: Side, turn: Turn) -> list[Expansion]:
    """Run the model, once for texts that are cut into the same tokens."""
    places: dict[tuple[tuple[int, ...], bool], int] = {}
    order = [places.setdefault((tuple(text.ids), text.truncated), len(places)) for text in texts]
    if len(places) == len(texts):
        return encoder.encode(texts, side, turn) if texts else []
    firsts = dict(zip(reversed(order), reversed(texts), strict=True))
    expansions = encoder.encode([firsts[place] for place in range(len(places))], side, turn)
    return [expansions[place] for place in order]
