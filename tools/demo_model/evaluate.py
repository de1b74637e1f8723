"""Measure the demo model on conversations that it has not seen: `python -m tools.demo_model.evaluate`.

An answer counts only if it is right to the last token. One forward pass is enough to know: greedy decoding
gives exactly the expected answer if, and only if, each of its tokens is the likeliest after those before it.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Tokenizer

from tools.demo_model import corpus, export
from tools.demo_model.model import Qwen3

HELD_OUT_SEED = 1_000_003


def kind(text: str, prompt: str) -> str:
    """What is asked of the model in this turn, told from the expected answer."""
    thinks = text.startswith("<think>")
    answer = text.split("</think>\n\n")[-1]
    if answer.startswith("<tool_call>"):
        name = "tool call"
    elif "</tool_response>" in prompt[-200:].split("<|im_start|>user")[-1]:
        name = "tool answer"
    elif re.match(r"\d+ \+ \d+ = ", answer):
        name = "sum"
    elif answer.startswith((corpus.OFF_FIELD, corpus.TOO_BIG)):
        name = "off its field"
    else:
        name = "talk"
    return f"{name}, thinking" if thinks else name


@torch.no_grad()
def turns(model: Qwen3, tokenizer: Tokenizer, seed: int) -> Iterator[tuple[str, bool, str, str]]:
    """Yield (kind, right, prompt, expected answer) for each assistant turn, without end."""
    for talk in corpus.conversations(seed):
        tokens: list[int] = []
        spans: list[tuple[int, int, str, str]] = []
        prompt = ""
        for text, spoken in corpus.render(talk):
            ids = tokenizer.encode(text).ids
            if spoken:
                spans.append((len(tokens), len(tokens) + len(ids), prompt, text))
            tokens += ids
            prompt += text
        if len(tokens) > model.shape.max_position_embeddings:
            continue
        ids = torch.tensor(tokens)
        guesses = model(ids[None])[0].argmax(dim=-1)
        for start, end, before, text in spans:
            yield (
                kind(text, before),
                bool((guesses[start - 1 : end - 1] == ids[start:end]).all()),
                before,
                text,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("neuron/demo"))
    parser.add_argument("--turns", type=int, default=5000)
    parser.add_argument("--show", type=int, default=0, help="print so many wrong answers")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = export.load(args.folder).eval()
    tokenizer = Tokenizer.from_file(str(args.folder / "tokenizer.json"))
    asked, right = Counter[str](), Counter[str]()
    for name, correct, prompt, text in islice(turns(model, tokenizer, HELD_OUT_SEED), args.turns):
        asked[name] += 1
        right[name] += correct
        if not correct and args.show > 0:
            args.show -= 1
            print(f"--- {name}\n{prompt[-600:]}[{text}]")
    for name in sorted(asked):
        print(f"{name:24} {right[name]:5} of {asked[name]:5}  {100 * right[name] / asked[name]:5.1f} %")


if __name__ == "__main__":
    main()
