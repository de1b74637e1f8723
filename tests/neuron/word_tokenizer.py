"""A tokenizer of encoders whose tokens are words."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers, processors

CLS, SEP = 3, 4
WORDS = {f"w{i}": 5 + i for i in range(100)} | {"[UNK]": 2, "[CLS]": CLS, "[SEP]": SEP}


def write_tokenizer(folder):
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
