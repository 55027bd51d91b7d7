"""The examples of gRPC classify and regress requests."""

from __future__ import annotations

from typing import Any


def serialized_examples(message: Any) -> list[bytes]:
    """Returns the serialized examples of an `Input`, its context in each."""
    kind = message.WhichOneof("kind")
    if kind is None:
        return []
    listed = getattr(message, kind)
    context = b""
    if kind == "example_list_with_context":
        context = listed.context.SerializeToString()
    return [context + example.SerializeToString() for example in listed.examples]
