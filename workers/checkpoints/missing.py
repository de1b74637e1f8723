"""What there is where a model's file is missing, and what to do: said in the line that names that one."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from workers.checkpoints.files import repository_of

# Names of files and folders, in any case, and what is said of the first such one; what says most is above.
Table = tuple[tuple[str, str], ...]
OTHER_ENGINE = "is for another engine, and not read"
PICKLE = "is a pickle, which can run code, and not read"
# How files begin that a trainer keeps beside a model.
TRAINERS = r"(training_args|optimizer|scheduler|scaler|sampler|rng_state|random_states)(_\d+)?\."
UNFINISHED: Table = (
    (r".+\.(part|partial|incomplete|aria2|crdownload|filepart|!qb)", "is a download that is not finished"),
)
PIPELINES: Table = ((r"model_index\.json", "says that it is a pipeline of diffusers, and no language model"),)
OF_WEIGHTS = {  # that would be read if all else were as it should
    r".+-\d{5}-of-\d{5}\.safetensors": "is one of several, whose model.safetensors.index.json is missing",
    r"(?-i:model\.safetensors(\.index\.json)?)": "is of no use without it",
    r".+\.safetensors": "is not read: weights are in model.safetensors, beside config.json and a tokenizer",
}
MODELS: Table = (
    *UNFINISHED,
    (
        r"adapter_(config\.json|model\..+)",
        "is an adapter, which is served beside its base: list it there, under `adapters`",
    ),
    (r".*mmproj.*\.gguf", "is what sees for a model, whose own GGUF file is not here"),
    (r".*imatrix.*", "is figures for whoever quantises a model, and no model"),
    (r".+\.gguf", "is not read: its name has to end in .gguf"),
    (r".+\.llamafile", "is a program with a model in it: `unzip` takes its .gguf out"),
    (
        r"sha256-[0-9a-f]{64}|manifests",
        "seems to be Ollama's, whose GGUF files are read by links that end in .gguf",
    ),
    (r".+\.(zip|tar|tgz|gz|xz|zst|7z|rar)", "is an archive: unpack it"),
    (r"ggml.*\.bin", "is of a llama.cpp before GGUF, and not read"),
    (r"(.+\.)?onnx(_data)?|openvino_.+|mlc-.+", OTHER_ENGINE),
    (r".+\.(h5|msgpack|npz|mlpackage|tflite|task|litertlm|engine|pte)", OTHER_ENGINE),
    (r"original|consolidated\..+", "is for its makers' own code, and not read"),
    *OF_WEIGHTS.items(),
    (
        rf"(?!{TRAINERS}).+\.(bin|pt|pth|ckpt|pkl)",
        f"{PICKLE}: `save_pretrained` of transformers writes safetensors of it",
    ),
)
ADAPTERS: Table = (
    *UNFINISHED,
    (r"adapter_model\.(bin|pt|pth)", f"{PICKLE}: `save_pretrained` of PEFT writes safetensors of it"),
)
TOKENIZERS: Table = (
    *UNFINISHED,
    (
        r".*\.tiktoken|tiktoken\.model|tekken\.json",
        "is not read: take tokenizer.json from where others keep it",
    ),
    (
        r".*\.model|vocab\.(json|txt)",
        "is not read: `AutoTokenizer` of transformers loads it, and `save_pretrained` writes tokenizer.json",
    ),
)
DOWNLOADS = ".cache/huggingface/download"  # in a folder: where the hub's tools keep what is not finished
MOST_NAMES = 5_000  # of a folder that are looked at
BEGINNINGS = {  # of files that have another name than they should
    b"<": "a web page",
    b"PK\3\4": "a zip archive, as torch writes it, too",
    b"\x1f\x8b": "packed by gzip",
    b"GGUF": "a GGUF file",
    b"\0\0\0\0": "empty where it should begin: its download may not be finished",
}


def instead(folder: Path, table: Table = MODELS) -> str:
    """What to add to a line that says that a file is missing in `folder`; empty: nothing."""
    try:
        names = os.listdir(folder)
    except OSError as error:
        return f": {error.strerror}"
    with suppress(OSError):
        names = os.listdir(folder / DOWNLOADS) + names
    names = sorted(names[:MOST_NAMES])
    for pattern, what in table:
        if found := next((name for name in names if re.fullmatch(pattern, name, re.IGNORECASE)), None):
            return f", and {found if found.isprintable() else ascii(found)} {what}"
    return "" if names else ", and all else: the folder is empty"


def what_is(name: str) -> str:
    """What is said of a file of that name, which somebody gave for a model."""
    what = next((what for pattern, what in MODELS if re.fullmatch(pattern, name, re.IGNORECASE)), "")
    if not what or what in OF_WEIGHTS.values():
        return "is no model by itself: that is a folder with config.json, or a file whose name ends in .gguf"
    return what


def rest(path: Path) -> str:
    """How to come by the rest of a model of which the file at `path` is missing."""
    if repository := repository_of(path):
        return f": `neuron pull {repository}` fetches it"
    return instead(path.parent, UNFINISHED)


def begins_as(beginning: bytes) -> str:
    """What a file seems to be by its first bytes, for a line that says what it is not."""
    return next((f", but {what}" for start, what in BEGINNINGS.items() if beginning.startswith(start)), "")
