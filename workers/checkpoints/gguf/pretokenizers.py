"""How byte-level BPE tokenizers cut texts into words, by the names of `tokenizer.ggml.pre` in GGUF files.

Each is a list of regular expressions: what one matches, and what lies between, the next one cuts further.
Where llama.cpp had to rewrite one, as its own matcher has no classes such as `\\p{Lu}`, the model's own is
here. Names and rules are of `llama-vocab.cpp` in https://github.com/ggml-org/llama.cpp
"""

from __future__ import annotations

from typing import NamedTuple

DEFAULT = "default"  # where a file does not say

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_END = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
_PATHS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_SYMBOLS}|{_END}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}|{_SYMBOLS}|{_END}"
_GPT4O = f"{_CASED % ((_CONTRACTIONS + '?',) * 2)}|\\p{{N}}{{1,3}}|{_PATHS}|{_END}"
_MARKED = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
_PUNCTUATED = rf"{_MARKED}| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_END}"
_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_HAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_LETTERS = (  # of DeepSeek LLM: those with a case
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝ"
    "Ὗ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ"
    "-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)


class PreTokenizer(NamedTuple):
    """How texts are cut, and what goes with it where a file does not say."""

    regexes: tuple[str, ...]
    whole_words: bool = False  # what is a token as a whole is not put together by merges
    begins: bool = False  # a text begins with the token for that


_gpt2 = PreTokenizer((_GPT2,))
_digits = PreTokenizer((r"\p{N}", _GPT2))
_qwen2 = PreTokenizer((_QWEN2,))
_llama3 = PreTokenizer((_LLAMA3,), whole_words=True, begins=True)
_llama3_plain = PreTokenizer((_LLAMA3,))
_gpt4o = PreTokenizer((_GPT4O,))
_deepseek3 = PreTokenizer((r"\p{N}{1,3}", _KANA, _PUNCTUATED))
_bailing = rf"'(?i:[sdmt]|ll|ve|re)|{_WORD}|\p{{N}}|{_SYMBOLS}|\s*[\r\n]|\s+(?!\S)|\s+"
_default = PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"))
_qwen35 = PreTokenizer(
    (
        rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
        rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_END}",
    )
)
_tekken = PreTokenizer((f"{_CASED % ('', '')}|\\p{{N}}|{_PATHS}|{_END}",), whole_words=True, begins=True)
_deepseek_llm = PreTokenizer(
    (r"[\r\n]", rf"\s?[{_LETTERS}]+", "\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+", r"(?<!\s)\s+$", _HAN, r"\p{N}+")
)

_spark = PreTokenizer(
    (r"\p{N}{1,3}", _KANA, rf"{_MARKED}| ?[\p{{P}}\p{{S}}]+|[\r\n]|\s+(?!\S)|\s+", r"\p{N}")
)
_youtu = PreTokenizer(
    (
        "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+"
        f"|[\u3105-\u312f]+|{_KANA}",
        f"{_CASED % ((_CONTRACTIONS + '?',) * 2)}|\\p{{N}}|{_PATHS}|{_END}",
    ),
    whole_words=True,
)
_ASIAN = (
    "[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\u3040-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0eff"
    "\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+"
)
# Digits by threes from the right: what is over stands in front. A rule that looks for a number's end from
# each of its digits takes time in the square of their count; these look for it once.
_afmoe = PreTokenizer((r"\p{N}+", r"\A\p{N}{1,2}(?=(?:\p{N}{3})+\z)", r"\p{N}{1,3}", _ASIAN, _PUNCTUATED))
_tiny_aya = PreTokenizer((r"(?<!\d)\d+\b", r"\A\d{1,2}(?=(?:\d{3})+\z)", _GPT4O))
_SPACES = "|".join(rf"\s{{{1 << power}}}(?!\S)" for power in range(9, 1, -1))
_jais2 = PreTokenizer(
    (rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_SYMBOLS}|\s*[\r\n]+|{_SPACES}|\s{{1,2}}(?!\S)|\s",)
)
_bloom = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_minicpm5 = PreTokenizer(
    (r"\p{N}{1,3}", rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}+|{_SYMBOLS}|{_END}"), whole_words=True
)
_UPPER_PLAIN, _LOWER_PLAIN = f"(?:(?!\\p{{Han}}){_UPPER})", f"(?:(?!\\p{{Han}}){_LOWER})"
_kimi = PreTokenizer(
    (
        rf"\p{{Han}}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER_PLAIN}*{_LOWER_PLAIN}+{_CONTRACTIONS}?"
        rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER_PLAIN}+{_LOWER_PLAIN}*{_CONTRACTIONS}?"
        rf"|\p{{N}}{{1,3}}|{_SYMBOLS}|{_END}",
    )
)

_TABLE = (
    ("default", _default),
    ("gpt-2 phi-2 mpt olmo jais trillion granite-docling exaone4 gigachat a.x-4.0 mellum modern-bert", _gpt2),
    ("jina-es jina-de jina-v2-es jina-v2-de jina-v1-en jina-v2-code roberta-bpe", _gpt2),
    ("starcoder refact command-r smollm codeshell exaone minerva-7b mellum2", _digits),
    ("qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2", _qwen2),
    ("qwen35", _qwen35),
    ("llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano", _llama3),
    ("dbrx smaug-bpe chatglm-bpe", _llama3_plain),
    ("glm4 glm5", _llama3_plain._replace(whole_words=True)),
    ("gpt-4o llama4 kanana2 minimax-m2", _gpt4o),
    ("tekken", _tekken),
    ("deepseek-v3 hunyuan-dense joyai-llm hy_v4", _deepseek3),
    ("deepseek-llm", _deepseek_llm),
    ("deepseek-coder", PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN, r"\p{N}"))),
    ("bailingmoe bailingmoe2 llada-moe", PreTokenizer((_bailing,))),
    ("seed-coder", PreTokenizer((rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_END}",))),
    ("spark2_5", _spark),
    ("youtu", _youtu),
    ("jais-2", _jais2),
    ("afmoe", _afmoe),
    ("minicpm5", _minicpm5),
    ("kimi-k2", _kimi),
    ("poro-chat bloom gpt3-finnish", PreTokenizer((_bloom,))),
    ("viking", PreTokenizer((_bloom, r"\p{N}"))),
    ("talkie", _gpt4o),
    ("granite-embed-multi-97m", _gpt4o._replace(whole_words=True)),
    ("tiny_aya cohere2moe", _tiny_aya),
    ("ufakzeka", PreTokenizer((rf"{_WORD}|\p{{N}}|{_SYMBOLS}|{_END}",))),
    ("laguna", PreTokenizer((r"[^\n]+|[\n]+", _QWEN2))),
    ("falcon", PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"))),
)
BY_NAME = {name: pre for names, pre in _TABLE for name in names.split()}
