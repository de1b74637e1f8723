"""How an answer is to come about: how its tokens are chosen, how long is thought, what it must look like."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from ipc.messages.values import Name, Plain, TokenIds


class Sampling(Plain):
    """How tokens are chosen. None means: the model's `generation_config.json`, else the neutral value."""

    temperature: float | None = None  # 0 is greedy; neutral: 1
    top_k: int | None = None  # 0 is off; neutral: 0
    top_p: float | None = None  # in (0, 1]; neutral: 1
    min_p: float | None = None  # in [0, 1]; neutral: 0
    repetition_penalty: float | None = None  # above 0; prompt and output count; neutral: 1
    presence_penalty: float = 0.0  # -2 to 2; only output counts, as for the next one
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}  # added to the logits of these token ids
    allowed_token_ids: TokenIds = []  # no other is chosen; empty: all are allowed
    bad_words: list[str] = []  # texts that are not written
    min_tokens: int = 0  # of output, before anything may end the answer
    seed: int | None = None  # choice i of `n` draws with seed + i
    n: int = 1  # choices of each prompt, each an answer of its own
    max_tokens: int | None = None  # of each choice; None: to the end of the context
    stop: list[str] = []  # strings that end the answer
    include_stop: bool = False  # whether the stop string is part of the answer
    stop_token_ids: TokenIds = []
    ignore_eos: bool = False
    logprobs: int | None = None  # alternatives beside each token; 0: the token's own; None: no logprobs
    prompt_logprobs: int | None = None  # the same of the prompt's tokens

    @property
    def tells(self) -> bool:
        """Whether log-probabilities are wanted."""
        return self.logprobs is not None or self.prompt_logprobs is not None


class Thinking(Plain):
    """How much a model thinks before it answers. None: as it does by itself."""

    enabled: bool | None = None
    effort: Name | None = None  # in the client's word: "none", "low", "medium", "high", ...
    budget: Annotated[int, Meta(ge=0)] | None = None  # tokens, after which the thought is ended


class Structured(Plain):
    """What an answer must look like. Exactly one is set; the names are vLLM's."""

    json: dict[str, Any] | bool | None = None  # a JSON schema
    json_object: bool = False  # any JSON object
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None  # Lark, as llguidance reads it
