"""A checkpoint that says what it is told to, for tests: a real model for a real worker.

It is a Llama of one layer whose next token depends on the last two. Any text can be said, in any cutting into
tokens, and which answer is given depends on the conversation: the chat template ends the prompt with a hidden
token that an answer begins at. The logits of the right token stand above all others by so much that sampling
settings make no difference.

    model = ScriptedModel()
    model.answer(call("get_weather", city="Paris"), when="'weather' in last and calls == 0")
    model.answer(["It ", "is ", "21 °C."], when="calls == 1")
    model.answer("Hello!")
    model.write(tmp_path / "scripted")

How it works. A token's embedding is two halves: the code of the token that follows, and the code of the one
after that, or nothing. The head knows tokens by their codes, so the first half alone makes a chain. A piece
that is said twice, or that the vocabulary has anyway, could be followed by this or by that; so a hidden token
goes before it, which knows both. The one layer's attention looks at the token before this one, and carries
its second half over.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.demo import DEMO

CODE = 128  # dimensions of a code, each +1 or -1
HEAD_DIM = CODE // 2
ROPE_THETA = 10.0  # turns so fast that neighbours differ
LOUD = 8.0  # what comes from the token before, against what this one says by itself
SHARP = 50.0  # squared length of a query's pair of dimensions
SCALE = 4.0  # of logits
EOS = "<|im_end|>"

TEMPLATE = """\
{%- macro text(content) %}
    {%- if content is string %}{{ content }}
    {%- elif content %}{% for part in content if part.type == 'text' %}{{ part.text }}{% endfor %}
    {%- endif %}
{%- endmacro %}
{%- if tools %}
    {{- '<|im_start|>system\\nYou may call these functions:\\n<tools>' }}
    {%- for tool in tools %}{{ '\\n' }}{{ tool | tojson }}{% endfor %}
    {{- '\\n</tools>\\nTo call one, write\\n<tool_call>\\n' }}
    {{- '{"name": <name>, "arguments": <arguments>}\\n</tool_call><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.reasoning_content %}
        {{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}
    {%- endif %}
    {{- text(message.content) }}
    {%- for call in message.tool_calls or [] %}
        {%- set call = call.function if call.function is defined else call %}
        {{- '\\n<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
        {{- call.arguments if call.arguments is string else call.arguments | tojson }}{{ '}\\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# What the conditions of answers may look at, besides all that a chat template can.
CHOICE = """
{%- if add_generation_prompt %}
    {%- set seen = namespace(last='', turns=0, calls=0) %}
    {%- for message in messages %}
        {%- if message.role == 'user' %}
            {%- set seen.last = message.content if message.content is string else
                message.content | selectattr('text', 'defined') | map(attribute='text') | join %}
        {%- elif message.role == 'assistant' %}
            {%- set seen.turns = seen.turns + 1 %}
            {%- if message.tool_calls %}{% set seen.calls = seen.calls + 1 %}{% endif %}
        {%- endif %}
    {%- endfor %}
    {%- set last, turns, calls = seen.last, seen.turns, seen.calls %}
    {%- set thinks = enable_thinking is not defined or enable_thinking %}
    {%- set functions = (tools or []) | selectattr('function', 'defined') %}
    {%- set names = functions | map(attribute='function.name') | list %}
"""

Piece = str | bytes


@dataclass(slots=True)
class _Answer:
    pieces: list[Piece]
    when: str
    opened: bool
    endless: bool
    start: int = 0  # the hidden token that the prompt ends with
    tokens: list[int] = field(default_factory=list)


def call(name: str, **arguments: Any) -> str:
    """A tool call as the model writes it."""
    return (
        f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments}, ensure_ascii=False)}\n</tool_call>"
    )


def cut(text: str, size: int = 4) -> list[str]:
    """`text` in pieces of so many characters, tags in one piece each."""
    tags = re.split(r"(</?(?:think|tool_call|tool_response)>)", text)
    return [
        part[i : i + size] if number % 2 == 0 else part
        for number, part in enumerate(tags)
        for i in range(0, len(part), size if number % 2 == 0 else len(part))
    ]


class ScriptedModel:
    """Collects answers, then writes the checkpoint.

    Args:
        template: a chat template in place of ours; it decides in which format calls are written.
        special: further special tokens of the vocabulary, such as the marks of a tool format.
        context: tokens that prompt and answer may have.
    """

    def __init__(
        self, *, template: str = TEMPLATE, special: Sequence[str] = (), context: int = 131_072
    ) -> None:
        self._template, self._special, self._context = template, special, context
        self._answers: list[_Answer] = []
        self._completion: _Answer | None = None

    def answer(
        self,
        pieces: str | Iterable[Piece],
        *,
        when: str = "true",
        opened: bool = False,
        endless: bool = False,
    ) -> ScriptedModel:
        """What it says to a conversation; of several answers that fit, the first.

        Args:
            pieces: one token each: text, or bytes where a piece is a part of a character, or where the
                content of a special token is meant as text. A string alone is cut by `cut`.
            when: a Jinja expression over `last` (the text of the last user message), `turns` (of the
                assistant), `calls` (turns that called something), `names` (of tools), `thinks` (whether it
                may), and what templates see.
            opened: the prompt ends with the first piece (`<think>`), which the answer then lacks.
            endless: begin again at the end.
        """
        pieces = cut(pieces) if isinstance(pieces, str) else list(pieces)
        self._answers.append(_Answer(pieces, when, opened, endless))
        return self

    def completion(self, pieces: str | Iterable[Piece], *, endless: bool = False) -> ScriptedModel:
        """What it says to a prompt without a conversation; without this, nothing."""
        pieces = cut(pieces) if isinstance(pieces, str) else list(pieces)
        self._completion = _Answer(pieces, "", False, endless)
        return self

    def write(self, folder: Path) -> Path:
        """Write the checkpoint, some megabytes, in a second or less."""
        folder.mkdir(parents=True, exist_ok=True)
        vocabulary = _Vocabulary(self._special)
        answers = [*self._answers, *([self._completion] if self._completion else [])]
        for number, answer in enumerate(answers):
            answer.start = vocabulary.add_special(f"<|answer {number}|>")
            answer.tokens = [vocabulary.token(piece) for piece in answer.pieces]
        said = Counter(token for answer in answers for token in answer.tokens)
        successors: dict[int, tuple[int, int | None]] = {}
        for answer in answers:
            successors |= _chain(answer, vocabulary, said)
        size = vocabulary.size + (-vocabulary.size) % 64
        ordinary = self._completion.start if self._completion else vocabulary.eos
        save_file(_weights(size, successors, ordinary), folder / "model.safetensors", {"format": "pt"})
        (folder / "tokenizer.json").write_text(json.dumps(vocabulary.file, ensure_ascii=False))
        (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": EOS}))
        (folder / "chat_template.jinja").write_text(self._template + self._choice())
        (folder / "config.json").write_text(json.dumps(_config(size, vocabulary.eos, self._context)))
        return folder

    def _choice(self) -> str:
        """The end of the template."""
        lines = [CHOICE]
        for number, answer in enumerate(self._answers):
            opening = answer.pieces[0] if answer.opened else ""
            start = json.dumps(f"<|answer {number}|>{opening}")
            lines.append(f"    {{%- {'el' if number else ''}if {answer.when} %}}{{{{ {start} }}}}\n")
        return "".join(lines) + "    {%- endif %}\n{%- endif %}\n"


def _chain(answer: _Answer, vocabulary: _Vocabulary, said: Counter[int]) -> dict[int, tuple[int, int | None]]:
    """The successors of the tokens that have one of their own; where the successor has none, also its own."""
    line = [(answer.start, True)]
    for token in answer.tokens:
        knows = vocabulary.is_new(token) and said[token] == 1
        if not knows and len(line) > 1:
            line.append((vocabulary.hidden(), True))
        line.append((token, knows))
    line.append((answer.start if answer.endless else vocabulary.eos, True))
    after = [token for token, _ in line[2:]]
    return {
        token: (following, None if follower_knows else second)
        for (token, knows), (following, follower_knows), second in zip(
            line, line[1:], [*after, None], strict=False
        )
        if knows
    }


class _Vocabulary:
    """The demo model's tokenizer and what is added to it."""

    def __init__(self, special: Sequence[str]) -> None:
        self.file = json.loads((DEMO / "tokenizer.json").read_text())
        self._pieces: dict[str, int] = self.file["model"]["vocab"]
        self._added = {token["content"]: token["id"] for token in self.file["added_tokens"]}
        self.size = self._old = 1 + max(*self._pieces.values(), *self._added.values())
        self.eos = self._added[EOS]
        for content in special:
            self.add_special(content)

    def is_new(self, token: int) -> bool:
        """Whether the text of a prompt does not have it."""
        return token >= self._old

    def hidden(self) -> int:
        """A new id; it is no text, as those that only pad a vocabulary."""
        self.size += 1
        return self.size - 1

    def add_special(self, content: str) -> int:
        if content not in self._added:
            flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            token = {"id": self.hidden(), "content": content, **flags, "special": True}
            self.file["added_tokens"].append(token)
            self._pieces[content] = self._added[content] = token["id"]  # else the library takes another id
        return self._added[content]

    def token(self, piece: Piece) -> int:
        """The id that says `piece`."""
        if not piece:
            raise ValueError("an empty piece is no token")
        if isinstance(piece, str) and piece in self._added:
            return self._added[piece]
        spelled = "".join(map(_BYTE_LEVEL.__getitem__, piece.encode() if isinstance(piece, str) else piece))
        if spelled not in self._pieces:
            self._pieces[spelled] = self.hidden()
        return self._pieces[spelled]


def _byte_level() -> list[str]:
    """How byte-level vocabularies spell each byte."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(0x100, 0x200))
    return [chr(byte if byte in visible else next(hidden)) for byte in range(256)]


_BYTE_LEVEL = _byte_level()


def _config(vocab_size: int, eos: int, context: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": 2 * CODE,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": context,
        "rope_theta": ROPE_THETA,
        "layer_types": ["sliding_attention"],  # so that a long prompt takes time in proportion
        "sliding_window": 128,
        "attention_bias": True,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "eos_token_id": eos,
    }


def _weights(
    size: int, successors: dict[int, tuple[int, int | None]], ordinary: int
) -> dict[str, torch.Tensor]:
    """The tensors of the model.

    Args:
        ordinary: what follows a token that has no successor of its own.
    """
    draw = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 2, (size, CODE), generator=draw) * 2.0 - 1.0
    embedding = torch.zeros(size, 2 * CODE)
    embedding[:, :CODE] = codes[ordinary]
    for token, (following, after) in successors.items():
        embedding[token, :CODE] = codes[following]
        if after is not None:
            embedding[token, CODE:] = codes[after]
    nothing, one = torch.zeros, torch.eye(CODE)
    # The score of a token that stands d tokens before is the sum of the cosines of angle * (d - 1).
    angles = ROPE_THETA ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    query = SHARP**0.5 * torch.cat([angles.cos(), -angles.sin()])
    key = SHARP**0.5 * torch.cat([torch.ones_like(angles), torch.zeros_like(angles)])
    layer = {
        "input_layernorm.weight": torch.ones(2 * CODE),
        "post_attention_layernorm.weight": torch.ones(2 * CODE),
        "self_attn.q_proj.weight": nothing(CODE, 2 * CODE),
        "self_attn.q_proj.bias": query.repeat(2),
        "self_attn.k_proj.weight": nothing(CODE, 2 * CODE),
        "self_attn.k_proj.bias": key.repeat(2),
        "self_attn.v_proj.weight": torch.cat([nothing(CODE, CODE), one], dim=1),
        "self_attn.v_proj.bias": nothing(CODE),
        "self_attn.o_proj.weight": torch.cat([LOUD * one, nothing(CODE, CODE)]),
        "self_attn.o_proj.bias": nothing(2 * CODE),
        "mlp.gate_proj.weight": nothing(16, 2 * CODE),
        "mlp.up_proj.weight": nothing(16, 2 * CODE),
        "mlp.down_proj.weight": nothing(2 * CODE, 16),
    }
    tensors = {f"model.layers.0.{name}": tensor for name, tensor in layer.items()}
    tensors |= {
        "model.embed_tokens.weight": embedding,
        "model.norm.weight": torch.ones(2 * CODE),
        "lm_head.weight": torch.cat([SCALE * codes, nothing(size, CODE)], dim=1),
    }
    return {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in tensors.items()}
