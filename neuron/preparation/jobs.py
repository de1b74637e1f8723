"""What is asked of a text process, and what it answers; and the work itself, which runs in either process.

neuron                                             text process
  Job, the request as msgpack          ->            perform(job, body, fronts)
  <- Outcome, its result as msgpack, or `Failed`
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from ipc.errors import Code, CortexError
from ipc.messages.replies import Failed, Text, TokenCount, Tokens
from ipc.messages.requests import CountTokens, Detokenize, Embed, Generate, Rerank, Tokenize, misread
from ipc.messages.values import Name
from neuron.preparation.facts import ModelFacts
from neuron.preparation.prepared import Prepared, prepare, without_text
from neuron.preparation.prepared_inputs import PreparedInputs, prepare_inputs, validate_inputs
from neuron.preparation.prompt import validate, validate_prompt
from neuron.preparation.tokens import count_tokens, detokenize, tokenize
from neuron.refusals import bad_request
from neuron.text.budget import OverBudget
from neuron.text.frontend import ModelText, TextFiles, TextFrontEnd
from neuron.text.offered_tool import OfferedTool
from neuron.trace import traced, word

log = logging.getLogger("neuron.preparation")

MAX_FRONTS = 4  # models whose text path a process keeps

Verb = Literal["generate", "embed", "rerank", "count_tokens", "tokenize", "detokenize"]


class Job(msgspec.Struct, kw_only=True):
    """One piece of work. The request itself comes behind it."""

    # Beside requests: to try the templates of a `TextFiles`, and to read the tokenizer of `text`.
    verb: Verb | Literal["try", "read"]
    text: bytes = b""  # a `ModelText`, in msgpack
    model: ModelFacts = ModelFacts()
    context_length: int = 0
    seconds: float | None = None  # that a chat template may take; the result is empty where it takes longer
    unread: int | None = None  # its id, where the neuron has not decoded the request: more it does not know
    trace: Name = ""

    @property
    def is_of_load(self) -> bool:
        """Whether a model's load asks for it: then there is no request, and whoever gets an error adds the
        file."""
        return self.verb in ("try", "read")

    def too_much(self, bound: str) -> CortexError:
        """What it ends with when it takes more than it may have, such as "120 seconds"."""
        if self.is_of_load:
            message = f"it takes more than {bound}, all there is for it; use a file that is the model's own"
        else:
            message = f"the request takes more than {bound} to prepare; send less in one request"
        return CortexError(Code.NOT_SUPPORTED, message)


class Outcome(msgspec.Struct):
    """What became of a job. Where it has no error, its result comes behind it."""

    error: Failed | None = None
    leaves: bool = False  # the process ends now, for it has become large


class Fronts:
    """The text paths of the models that a process was asked about last."""

    def __init__(self, known: int = MAX_FRONTS) -> None:
        self._known = known
        self._fronts: OrderedDict[bytes, TextFrontEnd] = OrderedDict()  # by their `ModelText`

    def get(self, text: bytes) -> TextFrontEnd:
        """The one of a `ModelText` in msgpack. CortexError: MODEL_LOAD_FAILED."""
        front = self._fronts.get(text)
        if front is None:
            front = self._fronts[text] = TextFrontEnd.read(msgspec.msgpack.decode(text, type=ModelText))
            while len(self._fronts) > self._known:
                self._fronts.popitem(last=False)
        self._fronts.move_to_end(text)
        return front


def perform(job: Job, body: bytes | memoryview, fronts: Fronts) -> tuple[Failed | None, bytes]:
    """Do what `job` asks: an error, or the result in msgpack. Running out of memory is raised."""
    try:
        return None, msgspec.msgpack.encode(traced(job.trace, _perform, job, body, fronts))
    except CortexError as error:
        return Failed.of(0, error), b""
    except MemoryError:
        raise
    except OverBudget:  # which is raised where there are `seconds`
        return None, b""
    except Exception as error:
        log.exception("request cannot be prepared verb=%s trace=%s", job.verb, word(job.trace))
        return Failed(id=0, code=Code.INTERNAL, message=f"{type(error).__name__}: {error}"), b""


def _perform(job: Job, body: bytes | memoryview, fronts: Fronts) -> Any:
    if job.verb == "try":
        return msgspec.msgpack.decode(body, type=TextFiles).try_templates()
    if job.verb == "read":
        return fronts.get(job.text).answers
    kind, work = _WORK[job.verb]
    try:
        request = msgspec.msgpack.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise misread(error) from error
    if job.unread not in (None, request.id):
        raise bad_request("id", f"id is {job.unread} and also {request.id}")
    return work(request, fronts, job)


def _generate(request: Generate, fronts: Fronts, job: Job) -> Prepared:
    if job.unread is not None:
        validate(request)
    prepared = prepare(request, fronts.get(job.text), job.model, job.context_length, job.seconds)
    prepared.tools = [OfferedTool.of(tool) for tool in request.tools]
    prepared.request = without_text(request) if job.unread is not None else None
    return prepared


def _vectors(request: Embed | Rerank, fronts: Fronts, job: Job) -> PreparedInputs:
    if job.unread is not None:
        validate_inputs(request)
    prepared = prepare_inputs(request, fronts.get(job.text), job.model, job.context_length)
    prepared.request = msgspec.structs.replace(request, input=[]) if job.unread is not None else None
    return prepared


def _count_tokens(request: CountTokens, fronts: Fronts, job: Job) -> TokenCount:
    validate_prompt(request)
    return count_tokens(fronts.get(job.text), request, job.context_length, job.seconds)


def _tokenize(request: Tokenize, fronts: Fronts, job: Job) -> Tokens:
    validate_prompt(request)
    return tokenize(fronts.get(job.text), request, job.context_length)


def _detokenize(request: Detokenize, fronts: Fronts, job: Job) -> Text:
    return detokenize(fronts.get(job.text), request)


# By verb: the request, and what is done with it.
_WORK: dict[Verb, tuple[type, Callable[[Any, Fronts, Job], Any]]] = {
    "generate": (Generate, _generate),
    "embed": (Embed, _vectors),
    "rerank": (Rerank, _vectors),
    "count_tokens": (CountTokens, _count_tokens),
    "tokenize": (Tokenize, _tokenize),
    "detokenize": (Detokenize, _detokenize),
}
