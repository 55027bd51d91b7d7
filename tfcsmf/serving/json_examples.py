"""Classify and regress requests in JSON to `tf.Example` messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from tfcsmf.serving import json_text, json_values
from tfcsmf.serving.json_tensors import signature_of
from tfcsmf.serving.status import RequestError, invalid


@dataclass(frozen=True)
class ExamplesBody:
    """A parsed classify or regress request.

    Attributes:
      signature_name: "" where not given.
      examples: serialized `tf.Example` messages, the context merged into each.
    """

    signature_name: str
    examples: list[bytes]


def read_examples(body: bytes) -> ExamplesBody:
    """Reads a classify or regress request.

    Raises:
      RequestError: for anything that does not fit.
    """
    document = json_text.parse(body)
    signature = signature_of(document)
    context = b""
    if "context" in document:
        context = _example(document["context"])
    text = json_text.to_text
    if "examples" not in document:
        raise invalid(
            f"JSON Value: {text(document)} When method is classify, key 'examples' is "
            "expected and was not found"
        )
    examples = document["examples"]
    if not isinstance(examples, list):
        raise invalid(
            f"JSON Value: {text(document)} Expecting 'examples' value to be an "
            "list/array"
        )
    if not examples:
        raise invalid(
            f"JSON Value: {text(document)} 'examples' value is an empty array"
        )
    # Two serialized messages, one after the other, are their union.
    return ExamplesBody(signature, [context + _example(value) for value in examples])


def _example(value: Any) -> bytes:
    if not isinstance(value, dict):
        raise invalid(
            "Example must be JSON object but got JSON " + json_text.type_name(value)
        )
    example = tf.train.Example()
    for name, content in value.items():
        feature = example.features.feature[name]
        for item in content if isinstance(content, list) else [content]:
            _add(item, name, feature)
    return example.SerializeToString()


def _add(value: Any, name: str, feature: Any) -> None:
    if isinstance(value, bool):
        _values(feature, "int64", name).append(int(value))
    elif isinstance(value, str):
        _values(feature, "bytes", name).append(json_values.to_bytes(value))
    elif json_values.is_base64(value):
        _values(feature, "bytes", name).append(json_values.decode_base64(value))
    elif isinstance(value, int):
        values = _values(feature, "int64", name)
        if value > 2**63 - 1:
            raise invalid(
                f"Feature: {name} has uint64_t element. Only int64_t is supported."
            )
        values.append(value)
    elif isinstance(value, float):
        values = _values(feature, "float", name)
        values.extend(json_values.to_float([value], json_values.FLOAT).tolist())
    else:
        raise invalid(
            f"Feature: {name} has element with unexpected JSON type: "
            + json_text.type_name(value)
        )


def _values(feature: Any, kind: str, name: str) -> Any:
    present = (feature.WhichOneof("kind") or "").removesuffix("_list")
    if present not in ("", kind):
        raise _mixed(name, present)
    return getattr(feature, f"{kind}_list").value


def _mixed(name: str, present: str) -> RequestError:
    return invalid(
        f"Unexpected element type in feature: {name} expecting type: {present}"
    )
