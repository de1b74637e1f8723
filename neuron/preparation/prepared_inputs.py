"""A request for vectors or scores without its text, as `neuron.preparation.prepared` has it of others."""

from __future__ import annotations

import msgspec

from ipc.messages.requests import Embed, Rerank
from ipc.worker_messages import Pooling
from neuron.preparation.facts import ModelFacts
from neuron.preparation.inputs import check_embed, encode_inputs, encode_pairs
from neuron.preparation.placing import refuse_marks
from neuron.preparation.prompt import pack
from neuron.refusals import bad_request
from neuron.text.frontend import TextFrontEnd

MAX_INPUTS = 2048  # of one request, as OpenAI has it


class PreparedInput(msgspec.Struct, array_like=True):
    """One input as the worker takes it; see `neuron.preparation.inputs.Input`."""

    ids: bytes  # uint32, little-endian
    second: int = 0


class PreparedInputs(msgspec.Struct, array_like=True):
    """An `Embed` or a `Rerank` that was prepared.

    Attributes:
        request: the request itself without its inputs, where it came unread.
    """

    inputs: list[PreparedInput]
    pooling: Pooling
    request: Embed | Rerank | None = None


def validate_inputs(request: Embed) -> None:
    """Check what can be checked without knowing the model; BAD_REQUEST naming the field."""
    if isinstance(request, Rerank):
        if not 0 < len(request.input) <= MAX_INPUTS:
            raise bad_request("input", f"there are {len(request.input)} documents, not 1 to {MAX_INPUTS}")
        if not request.query:
            raise bad_request("query", "query is empty")
        return
    if not 0 < len(request.input) <= MAX_INPUTS:
        raise bad_request("input", f"input has {len(request.input)} entries, not 1 to {MAX_INPUTS}")
    for number, each in enumerate(request.input):
        if not each:
            raise bad_request(f"input[{number}]", f"input[{number}] is empty")
    if request.dimensions is not None and request.dimensions < 1:
        raise bad_request("dimensions", f"dimensions is {request.dimensions}, not 1 or more")


def prepare_inputs(
    request: Embed, text: TextFrontEnd, model: ModelFacts, context_length: int
) -> PreparedInputs:
    """Tokenise; CortexError for what this model cannot embed or rank."""
    if isinstance(request, Rerank):
        pooling: Pooling = "score"
        inputs = encode_pairs(request, text, model, context_length)
    else:
        check_embed(request, model)
        inputs = encode_inputs(request, text, model, context_length)
        pooling = request.pooling or ("last" if model.embedder is None else model.embedder.pooling)
    for number, each in enumerate(inputs):
        refuse_marks(each.ids, text.vision, f"input[{number}]")
    return PreparedInputs([PreparedInput(pack(each.ids), each.second) for each in inputs], pooling)
