"""What `config.json` says about rotary positions, flat or nested, checked and made explicit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from workers.checkpoints.files import refuse

Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 31)]
LARGEST_FACTOR = 1_000_000
NOT_READ = frozenset({"is_long", "short_mscale", "long_mscale"})  # but by a family that says so
KEYS = ("rope_parameters", "rope_scaling")
OLD_NAMES = {"su": "longrope"}  # of ropes
# A dynamic rope stretches a sequence once it is longer than `max_position_embeddings`, which keys that are
# cached cannot follow. Up to that length it is the plain one, and such a model is served up to it.
PLAIN_UP_TO_CONTEXT = "dynamic"
TYPES = frozenset(
    {"full_attention", "sliding_attention"}
)  # of layers, which may each have a rope of their own


class Rope(msgspec.Struct, frozen=True, kw_only=True):
    """Rotary position embedding: which frequencies the positions turn with."""

    rope_type: Literal["default", "linear", "llama3", "yarn", "longrope", "proportional"] = "default"
    rope_theta: float = 10_000.0
    factor: float = 1.0
    original_max_position_embeddings: Annotated[int, msgspec.Meta(le=1 << 31)] = 0
    # proportional: as many of the pairs turn, as if all did; the others stay
    proportion: float = 1.0
    # llama3
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    # yarn
    beta_fast: float | None = None
    beta_slow: float | None = None
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    # longrope: what each pair is slowed down by, in contexts up to the original one and in longer ones
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    is_long: bool = False  # which of the two holds
    short_mscale: float | None = None  # what cosines and sines are multiplied with, in either
    long_mscale: float | None = None


class RopeKeys(msgspec.Struct, frozen=True, kw_only=True):
    """The keys of `config.json` that rotary positions depend on."""

    max_position_embeddings: Size
    rope_theta: float | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    partial_rotary_factor: float | None = None
    original_max_position_embeddings: Size | None = None


def rotary_share(file: RopeKeys) -> float:
    """The part of a head that turns."""
    nested = (file.rope_parameters or file.rope_scaling or {}).get("partial_rotary_factor")
    return next((each for each in (nested, file.partial_rotary_factor) if each is not None), 1.0)


def said_once(path: Path, given: dict[str, Any]) -> dict[str, Any]:
    """A `config.json` without `rope_scaling` where `rope_parameters` say the same.

    Raises:
        CortexError: they do not. Which of them holds, and with which base, readers disagree about.
    """
    parameters, scaling = (given.get(key) for key in KEYS)
    if not (isinstance(parameters, dict) and isinstance(scaling, dict) and parameters and scaling):
        return given
    whole = parameters.get("full_attention")
    if _turning(whole if isinstance(whole, dict) else parameters) != _turning(scaling):
        refuse(path, "rope_scaling says something else than rope_parameters: leave one of them out")
    return {key: value for key, value in given.items() if key != "rope_scaling"}


def _turning(said: dict[str, Any]) -> dict[str, Any]:
    """What is said, in today's words, of all that may stand beside `rope_scaling` as well."""
    elsewhere = ("type", "rope_theta", "partial_rotary_factor")
    kind = said.get("rope_type") or said.get("type") or "default"
    own = {key: value for key, value in said.items() if value is not None and key not in elsewhere}
    return own | {"rope_type": kind}


def by_type(path: Path, given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Take `rope_parameters` out of a `config.json` that has some for each type of layer.

    Returns:
        Those of the layers that see all tokens, and of those with a window; empty where it says nothing.
    """
    ropes = given.pop("rope_parameters", None) or {}
    if not isinstance(ropes, dict) or any(not isinstance(each, dict | None) for each in ropes.values()):
        refuse(path, "rope_parameters is no object of objects, one for each type of layer")
    if unknown := ropes.keys() - TYPES:
        refuse(path, f"rope_parameters: {min(unknown)} is not understood")
    return ropes.get("full_attention") or {}, ropes.get("sliding_attention") or {}


def sections(path: Path, given: dict[str, Any]) -> tuple[int, int, int] | None:
    """Take out of a `config.json` how the pairs are dealt out to time, rows and columns of what is seen.

    Raises:
        CortexError: they are not dealt out in turn, or these are no three numbers.
    """
    key = next((key for key in KEYS if given.get(key)), KEYS[0])
    if not isinstance(turning := given.get(key), dict) or "mrope_section" not in turning:
        return None
    turning = given[key] = dict(turning)
    found, in_turn = turning.pop("mrope_section"), turning.pop("mrope_interleaved", True)
    if in_turn is not True:
        refuse(path, f"{key}: mrope_interleaved {in_turn!r} is not supported")
    if (
        not isinstance(found, list)
        or len(found) != 3
        or not all(type(each) is int and each >= 0 for each in found)
    ):
        refuse(path, f"{key}.mrope_section {found!r} is no list of three numbers")
    return tuple(found)


def of_text(path: Path, given: dict[str, Any]) -> dict[str, Any]:
    """A `config.json` without how the parts of a position are dealt out, for a model that is shown text.

    Raises:
        CortexError: it says by how much these are stretched, and not which way.
    """
    found = dict(given)
    for key in KEYS:
        if isinstance(turning := given.get(key), dict) and "mrope_section" in turning:
            found[key] = {name: value for name, value in turning.items() if name != "mrope_section"}
            for kind in ("type", "rope_type"):
                if found[key].get(kind) == "mrope":
                    found[key][kind] = "default"
            is_plain = (found[key].get("rope_type") or found[key].get("type")) == "default"
            is_named = "mrope" in (turning.get("type"), turning.get("rope_type"))
            if is_plain and is_named and (factor := turning.get("factor")) not in (None, 1):
                refuse(path, f"{key}: factor {factor!r} is not supported of the type mrope")
    return found


def read(path: Path, file: RopeKeys, rotary_dim: int, *, partial: bool) -> tuple[Rope, int, int]:
    """The rotary settings, from wherever they stand; the context they give, and the longest they allow.

    Args:
        rotary_dim: dimensions of a head that turn.
        partial: whether that may be a part of it.

    Raises:
        CortexError: they are not done here, or make no sense.
    """
    key = next((key for key in KEYS if getattr(file, key)), KEYS[0])
    kind, given = _spelt_out(path, file, key, partial)
    try:
        rope = msgspec.convert(given, Rope)
    except msgspec.ValidationError as error:
        refuse(path, f"{key}: {error}")
    _check(path, key, kind, rope, rotary_dim)
    context = file.max_position_embeddings
    if kind == "yarn":
        context = max(context, int(rope.original_max_position_embeddings * rope.factor))
    return rope, context, int(context * rope.factor) if kind == "linear" else context


def _spelt_out(path: Path, file: RopeKeys, key: str, partial: bool) -> tuple[str, dict[str, Any]]:
    """The type that the file says, and the fields of a `Rope`, those too that it leaves out."""
    given = dict(getattr(file, key) or {})
    kind = given.get("rope_type") or given.pop("type", "default")  # until 2024: `type`
    if not isinstance(kind, str):
        refuse(path, f"{key}.rope_type {kind!r} is no name")
    kind = given["rope_type"] = OLD_NAMES.get(kind, kind)
    given.pop("type", None)
    if given.get("rope_theta") is None:
        given["rope_theta"] = file.rope_theta or 10_000.0
    turning = given.pop("partial_rotary_factor", None)
    if kind == "proportional" and not partial:
        given = {"factor": 1.0, "proportion": 1.0 if turning is None else turning} | given
    elif (share := rotary_share(file)) != 1.0 and not partial:
        refuse(path, f"{key}: partial_rotary_factor {share} is not supported")
    if kind in ("llama3", "yarn", "longrope"):
        flat, nested = file.original_max_position_embeddings, given.get("original_max_position_embeddings")
        original = flat or nested
        if not isinstance(original, int | float | None):
            refuse(path, f"{key}.original_max_position_embeddings {original!r} is no number")
        if kind != "longrope" and nested not in (None, original):
            refuse(
                path, f"original_max_position_embeddings {flat} is {nested} in {key}: leave one of them out"
            )
        original = file.max_position_embeddings if original is None else original
        if original < (2 if kind == "longrope" else 1):
            refuse(path, f"{key}.original_max_position_embeddings is {original}")
        given["original_max_position_embeddings"] = original
    if given.get("factor") is None and (kind == "longrope" or (kind == "yarn" and "factor" in given)):
        given["factor"] = file.max_position_embeddings / given["original_max_position_embeddings"]
    if kind != "default" and given.get("factor") is None:
        refuse(path, f"{key}.factor is missing")
    if kind == "llama3":
        for name in ("low_freq_factor", "high_freq_factor"):
            if given.get(name) is None:
                refuse(path, f"{key}.{name} is missing")
    if kind == PLAIN_UP_TO_CONTEXT:
        given = {"rope_type": "default", "rope_theta": given["rope_theta"]}
    if kind == "proportional" and partial:
        refuse(path, f"{key}.rope_type proportional is not supported beside partial_rotary_factor")
    if kind == "yarn" and "attn_factor" in given:
        given["attention_factor"] = _times(path, key, given)
    for name in given.keys() - set(Rope.__struct_fields__) | given.keys() & NOT_READ:
        refuse(path, f"{key}: {name} is not understood")
    return kind, given


def _check(path: Path, key: str, kind: str, rope: Rope, rotary_dim: int) -> None:
    """Refuse numbers with which no positions can turn."""
    if not 1.0 <= rope.factor <= LARGEST_FACTOR:
        refuse(path, f"{key}.factor {rope.factor} is not supported")
    if not 0.0 <= rope.proportion <= 1.0:
        refuse(path, f"{key}.partial_rotary_factor {rope.proportion} is not supported")
    if rope.rope_theta <= 1.0:
        refuse(path, f"{key}.rope_theta {rope.rope_theta} is not supported")
    for name in ("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor"):
        if not 0 < (getattr(rope, name) or 1.0) < LARGEST_FACTOR:
            refuse(path, f"{key}.{name} {getattr(rope, name)} is not supported")
    if kind == "llama3" and not 0 < rope.low_freq_factor <= rope.high_freq_factor:
        low = f"low_freq_factor {rope.low_freq_factor}"
        refuse(path, f"{key}.high_freq_factor {rope.high_freq_factor} is below {low}, or that is not above 0")
    if kind == "longrope":
        pairs = rotary_dim // 2
        for name in ("short_factor", "long_factor"):
            factors = getattr(rope, name)
            if len(factors) != pairs or not all(0 < factor < LARGEST_FACTOR for factor in factors):
                refuse(path, f"{key}.{name} is no list of {pairs} numbers above 0")


def _times(path: Path, key: str, given: dict[str, Any]) -> float:
    """What cosines and sines of a yarn are multiplied with, where a file of DeepSeek's says by how much more
    than others are: as vLLM and llama.cpp have it, where transformers leaves that key out."""
    times, factor = given.pop("attn_factor"), given["factor"]
    others = ("attention_factor", "mscale", "mscale_all_dim")
    beside = "".join(f" beside {name}" for name in others if given.get(name) is not None)
    if beside or not isinstance(times, int | float) or not isinstance(factor, int | float) or factor < 1:
        refuse(path, f"{key}: attn_factor {times!r} is not supported{beside}")
    return times * (0.1 * math.log(factor) + 1.0)
