"""The examples of gRPC classify and regress requests."""

from __future__ import annotations

from typing import Any

from tfcsmf.serving.status import invalid


def serialized_examples(message: Any) -> list[bytes]:
    """Returns the serialized examples of an `Input`, its context in each.

    Raises:
      RequestError: if it has none.
    """
    kind = message.WhichOneof("kind")
    if kind is None:
        raise invalid("Input is empty.")
    listed = getattr(message, kind)
    context = b""
    if kind == "example_list_with_context":
        context = listed.context.SerializeToString()
    examples = [context + example.SerializeToString() for example in listed.examples]
    if not examples:
        raise invalid("Input is empty.")
    return examples
