"""Text to token ids and back, for those who ask for no more."""

from __future__ import annotations

from ipc.messages.replies import Text, TokenCount, Tokens
from ipc.messages.requests import CountTokens, Detokenize, Tokenize
from neuron.preparation.prompt import encode_prompts
from neuron.preparation.sampling import check_ids
from neuron.text.frontend import TextFrontEnd


def count_tokens(
    text: TextFrontEnd, request: CountTokens, context_length: int, seconds: float | None = None
) -> TokenCount:
    """The answer to `request`; arguments and errors as of `encode_prompts`."""
    [prompt] = encode_prompts(text, request, context_length, seconds)
    return TokenCount(id=request.id, tokens=len(prompt.ids))


def tokenize(text: TextFrontEnd, request: Tokenize, context_length: int) -> Tokens:
    """The answer to `request`. CortexError as of `encode_prompts`."""
    [prompt] = encode_prompts(text, request, context_length)
    pieces = [text.spell(each) for each in prompt.ids] if request.return_bytes else None
    return Tokens(id=request.id, token_ids=prompt.ids, context_length=context_length, pieces=pieces)


def detokenize(text: TextFrontEnd, request: Detokenize) -> Text:
    """The answer to `request`. CortexError: BAD_REQUEST for ids that the model does not have."""
    check_ids(request.token_ids, text, "token_ids")
    return Text(id=request.id, text=text.write(request.token_ids))
