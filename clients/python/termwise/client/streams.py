"""The bookkeeping of a stream of texts: what was sent, what is answered, what has to be sent again. It does no I/O.

One text goes in a message, so that one which cannot be expanded takes no other with it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from termwise.client.errors import TermwiseError, error_from_status
from termwise.client.inference import INPUT_TYPES, read_expansion
from termwise.client.parsing import choose, invalid, utf8
from termwise.client.types import ExpandedText
from termwise.v1 import trained_models_pb2 as pb

if TYPE_CHECKING:
    from termwise.client.inference import InputType

WINDOW = 256
"""Most texts without an answer: what the server takes before it slows a stream down."""
WINDOW_BYTES = 8 << 20
"""Most bytes of them; one longer text goes alone."""
ENVELOPE_BYTES = 1_024
"""Room left in a message for what surrounds a text."""


@dataclass(slots=True)
class InferSession:
    """One stream of texts over as many connections as it takes.

    Attributes:
        deployment_id: The deployment.
        input_type: Which side of the model reads them.
        include_token_ids: Whether vocabulary ids are given too.
        max_message_bytes: Longer texts are refused before they are sent.
        raise_on_error: Whether the first text that cannot be expanded ends it.
    """

    deployment_id: str
    input_type: InputType | None
    include_token_ids: bool
    max_message_bytes: int = 32 << 20
    raise_on_error: bool = True
    _taken: int = 0
    _pending: deque[pb.StreamInferRequest] = field(default_factory=deque)
    _pending_bytes: int = 0

    @property
    def method(self) -> str:
        """The call that it is."""
        return "TrainedModels/StreamInfer"

    def opening(self) -> pb.StreamInferRequest:
        """Give the first message of every connection."""
        return pb.StreamInferRequest(
            options=pb.StreamInferOptions(
                deployment_id=self.deployment_id,
                input_type=choose(self.input_type, INPUT_TYPES, "input_type"),
                include_token_ids=self.include_token_ids,
            )
        )

    def take(self, item: Any) -> pb.StreamInferRequest:
        """Give the message that sends one text. Raises InvalidArgumentError where it is none, or too long to send."""
        path = f"texts[{self._taken}]"
        text = utf8(item, path)
        request = pb.StreamInferRequest(texts=pb.StreamInferTexts(request_id=str(self._taken), texts=[text]))
        size = request.ByteSize()
        if size + ENVELOPE_BYTES > self.max_message_bytes:
            raise invalid(path, f"{size} bytes are more than a message of {self.max_message_bytes} holds")
        self._taken += 1
        self._pending.append(request)
        self._pending_bytes += size
        return request

    @property
    def full(self) -> bool:
        """Whether answers have to come before more is sent."""
        return len(self._pending) >= WINDOW or self._pending_bytes >= WINDOW_BYTES

    @property
    def pending_count(self) -> int:
        """How many texts wait for their answer."""
        return len(self._pending)

    def acknowledge(self, response: pb.StreamInferResponse) -> ExpandedText:
        """Take one answer in. Raises the text's error, where that is wanted."""
        if not self._pending or self._pending[0].texts.request_id != response.request_id:
            raise TermwiseError(f'The server answered "{response.request_id}", which is not the next to be answered.')
        request = self._pending.popleft()
        self._pending_bytes -= request.ByteSize()
        position, text = int(response.request_id), request.texts.texts[0]
        if response.HasField("error"):
            error = error_from_status(response.error)
            if self.raise_on_error:
                raise error
            return ExpandedText(position, text, error=error)
        return ExpandedText(position, text, read_expansion(response.results[0]))

    def resume(self) -> list[pb.StreamInferRequest]:
        """Give what has to be sent again over a new connection, in order: expanding twice does no harm."""
        return [*self._pending]

    def give_up(self, error: TermwiseError) -> TermwiseError:
        """Give the error of a stream that broke for good."""
        return error


def check_texts(texts: object) -> None:
    """Refuse what is surely a mistake: one text where many are expected."""
    if isinstance(texts, str):
        raise invalid("texts", "expected many strings, got one; use expand() for one text")
