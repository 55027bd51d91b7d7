"""TensorFlow Serving's REST API, as a function of requests; no network in here."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from google.protobuf import json_format
from tensorflow_serving.apis import get_model_metadata_pb2

from tfcsmf.serving import example_inference, inference, json_answers
from tfcsmf.serving.batching import DESCRIPTION
from tfcsmf.serving.json_examples import read_examples
from tfcsmf.serving.json_tensors import read_predict
from tfcsmf.serving.json_text import encode, error_body
from tfcsmf.serving.models import Handle, Models, ModelSpec
from tfcsmf.serving.status import Code, RequestError, from_exception, invalid, not_found

JSON = "application/json"
_SPEC = r"(?:(?:/versions/([0-9]+))|(?:/labels/([^/:]+)))?"
_PREDICTION = re.compile(
    rf"/v1/models/([^/:]+){_SPEC}:(classify|regress|predict)", re.IGNORECASE
)
_STATUS = re.compile(rf"/v1/models(?:/([^/:]+))?{_SPEC}(?:/(metadata))?", re.IGNORECASE)
_DESCRIPTION = re.compile(rf"/tfcsmf/v1/models/([^/:]+){_SPEC}/description")
_MODELS = "/tfcsmf/v1/models"
_API = re.compile(r"/v1/.*", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Answer:
    """What a request is answered with.

    Attributes:
      status: HTTP status.
      body: the content.
      content_type: its type.
      code: the error code, for metrics.
      model: the model that was asked for, "" where there is no such model.
      api: the method, such as "predict".
    """

    status: int
    body: bytes
    content_type: str = JSON
    code: Code = Code.OK
    model: str = ""
    api: str = ""


def answer_error(error: RequestError, model: str = "", api: str = "") -> Answer:
    """Returns the answer that reports an error."""
    return Answer(
        error.http_status, error_body(error.message), JSON, error.code, model, api
    )


class RestApi:
    """Answers requests.

    Args:
      models: what is served.
    """

    def __init__(self, models: Models) -> None:
        self._models = models

    def answer(self, method: str, path: str, body: bytes) -> Answer:
        """Answers one request.

        Args:
          method: GET, POST, ...
          path: as received, still percent-encoded, without the query.
          body: the content, decompressed.
        """
        model = api = ""
        try:
            if method == "POST":
                found = _PREDICTION.fullmatch(path)
                if found and found.group(4) in _METHODS:
                    api, spec = found.group(4), _spec(found)
                    # Other names would let clients add series of metrics at will.
                    model = spec.name if spec.name in self._models.names else ""
                    result = _METHODS[api](self, spec, body)
                    return Answer(200, result, model=model, api=api)
            elif method == "GET":
                found = _STATUS.fullmatch(path)
                if found:
                    return Answer(200, self._get(_spec(found), found.group(4)))
                if path == _MODELS:
                    return Answer(200, _dump({"models": list(self._models.names)}))
                found = _DESCRIPTION.fullmatch(path)
                if found:
                    return Answer(200, self._description(_spec(found)))
            if not _API.fullmatch(path):
                raise not_found("Not Found")
            raise invalid(f"Malformed request: {method} {path}")
        except RecursionError:
            error = invalid("JSON Parse error: the document is nested too deeply")
            return answer_error(error, model, api)
        except Exception as error:  # TensorFlow raises many kinds
            return answer_error(from_exception(error), model, api)

    def _get(self, spec: ModelSpec, resource: str | None) -> bytes:
        if not spec.name:
            raise invalid("Missing model name in request.")
        return self._metadata(spec) if resource else self._status(spec)

    def _status(self, spec: ModelSpec) -> bytes:
        statuses = [
            {
                "version": str(version),
                "state": status.state,
                "status": {
                    "error_code": status.code.name,
                    "error_message": status.message,
                },
            }
            for version, status in self._models.statuses(spec).items()
        ]
        return _dump({"model_version_status": statuses})

    def _metadata(self, spec: ModelSpec) -> bytes:
        definitions = get_model_metadata_pb2.SignatureDefMap()
        with self._models.handle(spec) as handle:
            for name, signature in handle.runner.signatures.items():
                definitions.signature_def[name].CopyFrom(signature)
            about = {
                "name": handle.name,
                "signature_name": "",
                "version": str(handle.version),
            }
        plain = json_format.MessageToDict(
            definitions,
            preserving_proto_field_name=True,
            always_print_fields_with_no_presence=True,
        )
        return _dump({"model_spec": about, "metadata": {"signature_def": plain}})

    def _description(self, spec: ModelSpec) -> bytes:
        """What a tfcsmf export says of itself; not part of TensorFlow Serving."""
        with self._models.handle(spec) as handle:
            path: Path = handle.path / DESCRIPTION
            if not path.is_file():
                raise not_found(f"Model {spec.name} is no export of tfcsmf")
            return path.read_bytes()

    def _predict(self, spec: ModelSpec, body: bytes) -> bytes:
        # One version for the whole request, looked up when the JSON is known to be
        # valid: that is the order of errors in TensorFlow Serving.
        handles: list[Handle] = []
        with ExitStack() as stack:

            def types(signature: str) -> dict[str, int]:
                handles.append(stack.enter_context(self._models.handle(spec)))
                return inference.input_types(handles[0].runner, signature)

            request = read_predict(body, types)
            outputs, kinds = inference.predict(
                handles[0].runner, request.signature_name, request.inputs
            )
        return json_answers.write_predict(outputs, kinds, request.row)

    def _classify(self, spec: ModelSpec, body: bytes) -> bytes:
        request = read_examples(body)
        with self._models.handle(spec) as handle:
            rows = example_inference.classify(
                handle.runner, request.signature_name, request.examples
            )
        return json_answers.write_classification(rows)

    def _regress(self, spec: ModelSpec, body: bytes) -> bytes:
        request = read_examples(body)
        with self._models.handle(spec) as handle:
            values = example_inference.regress(
                handle.runner, request.signature_name, request.examples
            )
        return json_answers.write_regression(values)


_METHODS = {
    "predict": RestApi._predict,
    "classify": RestApi._classify,
    "regress": RestApi._regress,
}


def _spec(found: re.Match[str]) -> ModelSpec:
    name, version, label = found.group(1), found.group(2), found.group(3)
    number = None
    if version is not None:
        if len(version) > 19 or int(version) > 2**63 - 1:
            raise invalid(f"Failed to convert version: {version} to numeric.")
        number = int(version)
    return ModelSpec(
        unquote(name or "", errors="surrogateescape"),
        number,
        None if label is None else unquote(label, errors="surrogateescape"),
    )


def _dump(value: object) -> bytes:
    return encode(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
