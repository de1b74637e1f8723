"""The tokenizer in a GGUF file, as the `tokenizer.json` that it would have.

Files name one of five kinds in `tokenizer.ggml.model`: `gpt2` is byte-level BPE, `llama` sentencepiece's BPE,
whose merges are known by the scores of what they make, `gemma4` the same with its merges written down, `t5`
sentencepiece's unigram, and `bert` WordPiece, whose words begin with a mark in place of going on with one.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec

from workers.checkpoints.files import refuse
from workers.checkpoints.gguf.header import STRING, Gguf, List
from workers.checkpoints.gguf.keys import MODERN_BERT
from workers.checkpoints.gguf.pretokenizers import BY_NAME, DEFAULT

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of tokens
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how sentencepiece writes one
PLAIN_OF_PHI3 = ("<unk>", "<s>", "<|endoftext|>")
MOST_CUT = 1 << 28  # characters of all parts of tokens; Gemma's vocabulary, a large one, has a twentieth
LONGEST_WORD = 100  # characters, of WordPiece: a longer one is unknown, as BERT has it
Json = dict[str, Any]


def tokenizer_json(file: Gguf) -> bytes:
    """The tokenizer of `file`; raises as `tokenizer_parts`."""
    return msgspec.json.encode(tokenizer_parts(file))


def tokenizer_parts(file: Gguf, *, merges: bool = True) -> Json:
    """The tokenizer of `file`, as its `tokenizer.json` would be read; merges are tuples.

    Args:
        merges: they are wanted, too: of a large vocabulary they take longer than all else.

    Raises:
        CortexError: MODEL_LOAD_FAILED, it has none, or one that is not known here.
    """
    kind = check(file)
    tokens = _tokens(file)
    types = file.get("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
    if len(types) != len(tokens):
        refuse(file.path, f"has {len(tokens):,} tokens, and the types of {len(types):,}")
    marks = [number for number, type_ in enumerate(types) if type_ in (CONTROL, USER_DEFINED)]
    added = [_added(file, number, tokens[number], types[number] == CONTROL) for number in marks]
    built = BUILDERS[kind](file, tokens, types)
    if merges and kind in MERGES:
        built["model"]["merges"] = MERGES[kind](file, tokens, types)
    built |= {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added}
    built["post_processor"] = _around(file, kind, tokens)
    return built


def check(file: Gguf) -> str:
    """The kind of the tokenizer, from what is known without reading its lists; raises as `tokenizer_json`."""
    kind, pre = file.metadata.get("tokenizer.ggml.model"), file.metadata.get("tokenizer.ggml.pre", DEFAULT)
    if kind is None:
        refuse(file.path, "has no tokenizer: tokenizer.ggml.model is missing")
    if kind not in BUILDERS:
        refuse(file.path, f"tokenizer.ggml.model {kind!r} is not supported; there are {', '.join(BUILDERS)}")
    if kind == "gpt2" and pre not in BY_NAME:
        refuse(file.path, f"tokenizer.ggml.pre {pre!r} is not supported; there are {', '.join(BY_NAME)}")
    for name in ("tokens", *NEEDED.get(kind, ())):
        listed = file.metadata.get(f"tokenizer.ggml.{name}")
        if not isinstance(listed, List) or (listed.kind == STRING) != (name in TEXTS):
            refuse(
                file.path, f"has no list tokenizer.ggml.{name} of {'texts' if name in TEXTS else 'numbers'}"
            )
    return kind


def token_id(file: Gguf, name: str) -> int | None:
    """The id that the file gives for `bos`, `eos` and so on, else what its kind has; None: there is none."""
    kind = file.metadata.get("tokenizer.ggml.model")
    key = f"tokenizer.ggml.{KEYS.get(name, name)}_token_id"
    found = file.metadata.get(key, DEFAULT_IDS.get(kind, {}).get(name))
    listed = file.metadata.get("tokenizer.ggml.tokens")
    count = listed.count if isinstance(listed, List) else 0
    return found if isinstance(found, int) and 0 <= found < count else None


KEYS = {"unk": "unknown", "sep": "seperator", "pad": "padding"}  # as the format spells them
DEFAULT_IDS = {
    "llama": {"bos": 1, "eos": 2, "unk": 0},
    "gpt2": {"bos": 11, "eos": 11},
    "t5": {"eos": 1, "unk": 2, "pad": 0},
    "bert": {"bos": 101, "cls": 101, "unk": 100, "sep": 102, "pad": 0, "mask": 103},
}


def _tokens(file: Gguf) -> list[str]:
    tokens = file.get("tokenizer.ggml.tokens")
    for number, token in enumerate(tokens):
        if not token:
            tokens[number] = f"[EMPTY_{number}]"
    if len(set(tokens)) < len(tokens):
        token, _ = Counter(tokens).most_common(1)[0]
        refuse(file.path, f"has the token {token!r} twice")
    return tokens


def _added(file: Gguf, number: int, content: str, special: bool) -> Json:
    matched = dict.fromkeys(("single_word", "lstrip", "normalized"), False)
    # No key says it: by their name llama.cpp knows models whose marks take the space behind them.
    named = str(file.metadata.get("general.name", "")).lower()
    strips = ("phi-3" in named or "phi3" in named) and (special or content == "</s>")
    strips = strips and content not in PLAIN_OF_PHI3
    return {"id": number, "content": content, "special": special, "rstrip": strips, **matched}


def _around(file: Gguf, kind: str, tokens: list[str]) -> Json | None:
    """What stands around a text, where its special tokens are wanted."""
    pre = BY_NAME.get(file.metadata.get("tokenizer.ggml.pre", DEFAULT)) if kind == "gpt2" else None
    begins = kind in ("llama", "bert", "gemma4") or (pre is not None and pre.begins)
    begins = kind == "gemma4" or file.metadata.get("tokenizer.ggml.add_bos_token", begins)
    ends = file.metadata.get("tokenizer.ggml.add_eos_token", kind == "t5")
    before = token_id(file, "cls" if kind == "bert" else "bos") if begins or kind == "bert" else None
    after = token_id(file, "sep") if kind == "bert" else token_id(file, "eos") if ends else None
    marks = {tokens[number]: number for number in (before, after) if number is not None}
    if not marks:
        return None
    single: list[Json] = [{"Sequence": {"id": "A", "type_id": 0}}]
    if before is not None:
        single.insert(0, {"SpecialToken": {"id": tokens[before], "type_id": 0}})
    if after is not None:
        single.append({"SpecialToken": {"id": tokens[after], "type_id": 0}})
    special = {mark: {"id": mark, "ids": [number], "tokens": [mark]} for mark, number in marks.items()}
    pair = [*single, *_second(file, kind, None if after is None else tokens[after])]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}


def _second(file: Gguf, kind: str, end: str | None) -> list[Json]:
    """What of a pair stands behind the first text and its end."""
    of = 1 if kind == "bert" else 0  # RoBERTa and its kin have one type of texts, and an end between two more
    ends: list[Json] = [] if end is None else [{"SpecialToken": {"id": end, "type_id": of}}]
    once = kind == "bert" or file.architecture == MODERN_BERT
    return [*(() if once else ends), {"Sequence": {"id": "B", "type_id": of}}, *ends]


# --- the kinds ----------------------------------------------------------------------------------------------


def _gpt2(file: Gguf, tokens: list[str], types: list[int]) -> Json:
    pre = BY_NAME[file.metadata.get("tokenizer.ggml.pre", DEFAULT)]
    vocab = {token: number for number, token in enumerate(tokens)}
    cuts = [_split(regex) for regex in pre.regexes]
    by_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    model = _bpe(vocab, ignore_merges=pre.whole_words)
    cut = {"type": "Sequence", "pretokenizers": [*cuts, by_bytes]}
    return {"normalizer": None, "pre_tokenizer": cut, "decoder": by_bytes, "model": model}


def _llama(file: Gguf, tokens: list[str], types: list[int]) -> Json:
    vocab = {token: number for number, token in enumerate(tokens)}
    _scores(file, tokens)
    if sum(len(token) ** 2 for token in tokens) > MOST_CUT:
        longest = max(map(len, tokens))
        refuse(file.path, f"has {len(tokens):,} tokens of up to {longest:,} characters, too many to be cut")
    prefix = file.metadata.get("tokenizer.ggml.add_space_prefix", True)
    return _sentencepiece(_bpe(vocab, byte_fallback=True, unk_token=_unknown(file, tokens)), prefix)


def _scores(file: Gguf, tokens: list[str]) -> list[float]:
    scores = file.get("tokenizer.ggml.scores")
    if len(scores) < len(tokens):
        refuse(file.path, f"has {len(tokens):,} tokens, and the scores of {len(scores):,}")
    return scores


def _merges_by_score(file: Gguf, tokens: list[str], types: list[int]) -> list[tuple[str, str]]:
    from workers.checkpoints.gguf.merges import every_merge  # with numpy, a third of a text process's start

    made = [
        number
        for number, type_ in enumerate(types)
        if type_ not in (BYTE, UNKNOWN) and len(tokens[number]) > 1
    ]
    return every_merge(tokens, _scores(file, tokens), made)


def _gemma4(file: Gguf, tokens: list[str], types: list[int]) -> Json:
    vocab = {token: number for number, token in enumerate(tokens)}
    model = _bpe(vocab, byte_fallback=True, unk_token=_unknown(file, tokens))
    built = _sentencepiece(model, prefix=False)
    return built | {"pre_tokenizer": _split(r"[^\n]+|[\n]+")}


def _t5(file: Gguf, tokens: list[str], types: list[int]) -> Json:
    vocab = list(zip(tokens, _scores(file, tokens), strict=False))
    model = {
        "type": "Unigram",
        "unk_id": token_id(file, "unk"),
        "vocab": vocab,
        "byte_fallback": BYTE in types,
    }
    steps: list[Json] = []
    if (table := file.get("tokenizer.ggml.precompiled_charsmap")) is not None:
        if not isinstance(table, list) or not all(isinstance(byte, int) for byte in table):
            refuse(file.path, "tokenizer.ggml.precompiled_charsmap is no list of bytes")
        packed = base64.b64encode(bytes(byte & 0xFF for byte in table)).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": packed})
    if file.metadata.get("tokenizer.ggml.remove_extra_whitespaces", False):
        # Spaces alone: what a library strips is all of Unicode's, some of which are tokens.
        steps.append({"type": "Replace", "pattern": {"Regex": r"\A +| +\z"}, "content": ""})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    prefix = file.metadata.get("tokenizer.ggml.add_space_prefix", True)
    meta = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always" if prefix else "never"}
    meta |= {"split": True}
    normalizer = {"type": "Sequence", "normalizers": steps}
    return {"normalizer": normalizer, "pre_tokenizer": meta, "decoder": meta, "model": model}


def _bert(file: Gguf, tokens: list[str], types: list[int]) -> Json:
    vocab = {}
    for number, (token, type_) in enumerate(zip(tokens, types, strict=True)):
        whole = type_ in (CONTROL, UNKNOWN, UNUSED)
        vocab[token if whole else token.removeprefix(SPACE) if token[0] == SPACE else f"##{token}"] = number
    model = {
        "type": "WordPiece",
        "vocab": vocab,
        "unk_token": _unknown(file, tokens),
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": LONGEST_WORD,
    }
    lowercase = file.metadata.get("tokenizer.ggml.normalizer.lowercase", True)
    accents = file.metadata.get("tokenizer.ggml.normalizer.strip_accents", lowercase)
    normalizer = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True}
    return {
        "normalizer": normalizer | {"strip_accents": accents, "lowercase": lowercase},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": model,
    }


BUILDERS: dict[str, Callable[[Gguf, list[str], list[int]], Json]] = {
    "gpt2": _gpt2,
    "llama": _llama,
    "gemma4": _gemma4,
    "t5": _t5,
    "bert": _bert,
}
TEXTS = ("tokens", "merges")
NEEDED = {"gpt2": ("merges",), "llama": ("scores",), "gemma4": ("merges",), "t5": ("scores",)}


def _bpe(vocab: dict[str, int], **more: Any) -> Json:
    settings = {"dropout": None, "unk_token": None, "continuing_subword_prefix": None}
    settings |= {
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
    }
    return {"type": "BPE", **settings, **more, "vocab": vocab, "merges": []}


def _merges(file: Gguf, tokens: list[str], types: list[int]) -> list[tuple[str, str]]:
    """Those of which both halves and the whole are tokens, as a `tokenizer.json` must have it."""
    known, found = frozenset(tokens), []
    for merge in file.get("tokenizer.ggml.merges"):
        left, _, right = merge[1:].partition(" ")
        left = merge[:1] + left
        if left in known and right in known and left + right in known:
            found.append((left, right))
    return found


MERGES: dict[str, Callable[[Gguf, list[str], list[int]], list[tuple[str, str]]]] = {
    "gpt2": _merges,
    "llama": _merges_by_score,
    "gemma4": _merges,
}


def _unknown(file: Gguf, tokens: list[str]) -> str | None:
    number = token_id(file, "unk")
    return None if number is None else tokens[number]


def _sentencepiece(model: Json, prefix: bool) -> Json:
    """What stands around a model of sentencepiece's: a space is a letter, and perhaps put before a text."""
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    decoders = [back, {"type": "ByteFallback"}, {"type": "Fuse"}]
    normalizers = [spaces]
    if prefix:
        normalizers.insert(0, {"type": "Prepend", "prepend": SPACE})
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    model |= {"fuse_unk": True}
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model,
    }


def _split(regex: str) -> Json:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
