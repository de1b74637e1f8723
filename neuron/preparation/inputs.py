"""From a text, or a pair of them, to the token ids that a model makes a vector or a score of."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tokenizers import Encoding

from ipc.errors import Code, CortexError
from ipc.messages.requests import Embed, Rerank
from neuron.preparation.facts import ModelFacts
from neuron.preparation.sampling import check_ids
from neuron.refusals import bad_request
from neuron.text.frontend import TextFrontEnd
from workers.checkpoints.vectors.rerankers import Question

HEAD = 64  # characters for each token that there is room for: read first, and more only if these are too few
SLACK = 16  # tokens near a cut that may be others than in the whole text


class Input(NamedTuple):
    """Attributes:
    second: where the second text of a pair begins; 0: nowhere, or the tokenizer does not tell them apart.
    """

    ids: list[int]
    second: int = 0


def most_tokens(model: ModelFacts, context_length: int) -> int:
    """Of an input. A causal model has room for one more behind it."""
    return context_length if model.whole else context_length - 1


def check_embed(request: Embed, model: ModelFacts) -> None:
    """See that the model can do what is asked of it.

    Raises:
        CortexError: NOT_SUPPORTED or BAD_REQUEST, naming the field.
    """
    if not model.embedding:
        why = "a simulated one has no embeddings" if model.engine == "simulated" else "it makes no embeddings"
        raise CortexError(Code.NOT_SUPPORTED, f"model: {why}", param="model")
    own = model.embedder
    if request.pooling and own is not None and request.pooling != own.pooling:
        raise bad_request("pooling", f"pooling {request.pooling}: the model was made for {own.pooling}")
    if request.prompt_name is not None:
        prompts = {} if own is None else own.prompts
        if request.prompt_name not in prompts:
            there = f"there are {', '.join(prompts)}" if prompts else "the model has none"
            raise bad_request("prompt_name", f"prompt_name {request.prompt_name!r} is not known: {there}")
        if not all(isinstance(each, str) for each in request.input):
            raise bad_request("prompt_name", "prompt_name needs texts: token ids are taken as they are")
    _check_dimensions(request.dimensions, model)


def _check_dimensions(wanted: int | None, model: ModelFacts) -> None:
    """Only a model that was trained for it has its meaning in the first dimensions (Kusupati et al. 2022)."""
    size, cuts = model.vector_size, None if model.embedder is None else model.embedder.cuts
    if wanted is None or wanted == size:
        return
    if wanted > size:
        raise bad_request("dimensions", f"dimensions is {wanted}, and the model's vectors have {size}")
    if cuts is None:
        raise bad_request(
            "dimensions",
            f"dimensions {wanted}: the model's files do not say that its vectors of {size} may be cut",
        )
    if cuts and wanted not in cuts:
        raise bad_request("dimensions", f"dimensions {wanted}: there are {', '.join(map(str, cuts))}")


def encode_inputs(request: Embed, text: TextFrontEnd, model: ModelFacts, context_length: int) -> list[Input]:
    """Each input of a request, within what the model takes.

    Raises:
        CortexError: BAD_REQUEST or CONTEXT_LENGTH_EXCEEDED, naming the input.
    """
    most, prefix = most_tokens(model, context_length), ""
    if (own := model.embedder) is not None:
        name = request.prompt_name or own.default_prompt
        prefix = own.prompts[name] if name else ""
    inputs = []
    for number, each in enumerate(request.input):
        param = f"input[{number}]"
        if isinstance(each, str):
            inputs.append(encode_text(text, prefix + each, param, most, request.cut_to))
        else:
            check_ids(each, text, param)
            inputs.append(Input(_within(each, param, most, request.cut_to)))
    return inputs


def encode_text(text: TextFrontEnd, given: str, param: str, most: int, cut_to: int | None) -> Input:
    """One text.

    Args:
        most: tokens that the model takes.
        cut_to: as of `Embed`.
    """
    encoding = _encode_head(text.encoding, given, most)
    ids = encoding.ids
    if not ids:
        raise bad_request(param, f"{param} has no tokens")
    if (limit := _limit(most, cut_to)) is not None and len(ids) > limit:
        return Input(_without_end(encoding, 0, param, limit).ids)
    return Input(_within(ids, param, most, cut_to))


def encode_pairs(request: Rerank, text: TextFrontEnd, model: ModelFacts, context_length: int) -> list[Input]:
    """Each document of a request with its query, within what the model takes.

    Raises:
        CortexError: NOT_SUPPORTED, BAD_REQUEST or CONTEXT_LENGTH_EXCEEDED, naming the field.
    """
    if model.reranker is None:
        why = "cannot rank documents; /v1/models says which models can"
        raise CortexError(Code.NOT_SUPPORTED, f"model: {request.model} {why}", param="model")
    most, question = most_tokens(model, context_length), model.reranker.question
    if request.instruction is not None and question is None:
        raise bad_request("instruction", "instruction: the model takes none")
    if len(request.query) > HEAD * most:
        raise bad_request("query", f"query is too long: the model takes {most} tokens, documents included")
    inputs = []
    for number, document in enumerate(request.input):
        param = f"input[{number}]"
        if not isinstance(document, str):
            raise bad_request(param, f"{param}: a document is a text")
        if question is None:
            inputs.append(_pair(text, request, document, param, most))
        else:
            inputs.append(_asked(text, request, question, document, param, most))
    return inputs


def _pair(text: TextFrontEnd, request: Rerank, document: str, param: str, most: int) -> Input:
    """As the tokenizer puts two texts together."""
    encoding = _encode_head(lambda head: text.encoding((request.query, head)), document, most)
    size = len(encoding.ids)
    limit = min(size, _limit(most, request.cut_to) or size)
    if request.document_tokens is not None:
        limit = min(limit, size - encoding.sequence_ids.count(1) + request.document_tokens)
    made = _without_end(encoding, 1, param, limit)
    check_tokens(param, len(made.ids), most)
    return made


def _asked(
    text: TextFrontEnd, request: Rerank, question: Question, document: str, param: str, most: int
) -> Input:
    """As a question to a causal model, whose parts are tokenised apart, so that only the document is cut."""
    instruction = request.instruction or question.instruction
    asked = f"<Instruct>: {instruction}\n<Query>: {request.query}\n<Document>: "
    before, behind = (text.encode(part, special=False) for part in (question.before, question.behind))
    query = text.encode(asked, special=False)
    ids = _encode_head(lambda head: text.encoding(asked + head, special=False), document, most).ids
    room = most - len(before) - len(behind)
    if request.document_tokens is not None:
        ids = ids[: len(query) + request.document_tokens]
    if (limit := _limit(most, request.cut_to)) is not None:
        ids = ids[: max(0, limit - len(before) - len(behind))]
        if len(ids) <= len(query):
            raise bad_request(param, f"{param}: {limit} tokens leave no room for it")
    check_tokens(param, len(ids), room)
    return Input([*before, *ids, *behind])


def _encode_head(encode: Callable[[str], Encoding], given: str, most: int) -> Encoding:
    """Of all of `given`, or of so much of it that it is too long for certain: megabytes take seconds, and
    each token takes hundreds of bytes. A text of spaces may have few tokens however long it is."""
    size = HEAD * max(1, most)
    while True:
        encoding = encode(given[:size])
        if size >= len(given) or len(encoding.ids) > most + SLACK:
            return encoding
        size *= 4


def _limit(most: int, cut_to: int | None) -> int | None:
    """Tokens that an input is cut to, where it may be cut."""
    return None if cut_to is None else min(cut_to or most, most)


def _within(ids: list[int], param: str, most: int, cut_to: int | None) -> list[int]:
    """The ids, cut where that is asked for."""
    if (limit := _limit(most, cut_to)) is not None:
        return ids[:limit]
    check_tokens(param, len(ids), most)
    return ids


def _without_end(encoding: Encoding, last: int, param: str, limit: int) -> Input:
    """`limit` tokens of an encoding: its last text loses its end, and what stands around the texts stays.

    Args:
        last: number of that text.
    """
    ids, kinds, texts = encoding.ids, encoding.type_ids, encoding.sequence_ids
    if (surplus := len(ids) - limit) > 0:
        end = max((place for place, number in enumerate(texts) if number == last), default=-1) + 1
        first = end - surplus
        if first < 1 or texts[first - 1] != last:
            raise bad_request(param, f"{param}: {limit} tokens leave no room for it")
        ids, kinds = ids[:first] + ids[end:], kinds[:first] + kinds[end:]
    return Input(ids, kinds.index(1) if 1 in kinds else 0)


def check_tokens(param: str, tokens: int, most: int) -> None:
    """CONTEXT_LENGTH_EXCEEDED for an input that is too long."""
    if tokens > most:
        raise CortexError(
            Code.CONTEXT_LENGTH_EXCEEDED,
            f"{param} has {tokens} tokens or more, and the model takes {most}: make it shorter, or ask "
            "for it to be cut",
            param=param,
            details={"prompt_tokens": tokens, "context_length": most},
        )
