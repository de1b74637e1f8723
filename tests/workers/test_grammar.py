"""What a model may write under a grammar: always the beginning of an answer that follows it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from ipc.errors import Code, CortexError
from ipc.messages.sampling import Structured
from ipc.worker_messages import Constraint
from neuron.grammar.structured import OPTIONS, constrain, hold
from tests.demo import DEMO
from tests.workers.demo_grammars import (
    END_THINK,
    SIZE,
    STOPS,
    THINK,
    TURN,
    VOCAB,
    VOCABULARY,
    completion,
    encode,
    errors,
    ids,
    masks,
    text_of,
)
from tests.workers.schemas import SCHEMAS
from workers.sampling.grammar import MAX_GAP, Grammars


def lark(grammar: str) -> Constraint:
    """A constraint that nobody tried."""
    return Constraint(f"{grammar}\n{OPTIONS}")


@pytest.fixture
def grammars() -> Iterator[Grammars]:
    grammars = Grammars(DEMO / "tokenizer.json", VOCAB)
    yield grammars
    grammars.close()


class RandomModels:
    """Models that know nothing: each has a taste of its own, and logits that no text has any part in."""

    def __init__(self, count: int, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        marks = np.array([token[:1] in b'"]}' and bool(token) for token in VOCABULARY.tokens])
        # every second one likes to come to an end
        likes = np.where(np.arange(count) % 2 == 0, 5.0, 0.0)
        self._taste = self._rng.normal(size=(count, VOCAB)) + likes[:, None] * marks

    def draw(self, allow: np.ndarray, models: Sequence[int]) -> list[int]:  # allow: [models, VOCAB] bool
        """One token each, at temperature 1."""
        logits = self._taste[models] + self._rng.normal(size=allow.shape)
        noise = self._rng.gumbel(size=allow.shape)
        return np.where(allow, logits + noise, -np.inf).argmax(axis=1).tolist()


def answers(
    grammars: Grammars, constraints: Sequence[Constraint], max_tokens: int, seed: int = 0
) -> list[tuple[list[int], bool]]:
    """Let a random model answer under each of `constraints`: the tokens, and whether it ended by itself."""
    models = RandomModels(len(constraints), seed)
    outputs: list[list[int]] = [[] for _ in constraints]
    for slot, constraint in enumerate(constraints):
        grammars.add(slot, constraint, [], STOPS)
    running = list(range(len(constraints)))
    for _ in range(max_tokens):
        if not running:
            break
        allow = masks(grammars, running)
        assert allow.any(axis=1).all(), [grammars.error(slot) for slot in running]
        for slot, token in zip(list(running), models.draw(allow, running), strict=True):
            outputs[slot].append(token)
            if grammars.accept(slot, token):
                running.remove(slot)
    return [(output, slot not in running) for slot, output in enumerate(outputs)]


def test_answers_to_sixty_schemas_are_valid_and_cut_ones_can_become_valid(grammars):
    names = [name for name in SCHEMAS for _ in range(3)]
    constraints = {name: constrain(Structured(json=SCHEMAS[name]), encode) for name in SCHEMAS}
    found = answers(grammars, [constraints[name] for name in names], max_tokens=120)
    ended = 0
    for name, (output, complete) in zip(names, found, strict=True):
        text = text_of(output)
        if complete:
            ended += 1
        else:
            text = text_of(output + completion(grammars, constraints[name], output))
        assert not errors(name, text), (name, text)
    assert 2 / 3 * len(names) <= ended  # enough to mean something, as the cut ones are
    assert ended <= 0.98 * len(names)


def test_padding_and_control_tokens_are_never_allowed(grammars):
    """Ids that only pad the vocabulary, and tokens that mean something else than their text."""
    grammars.add(0, constrain(Structured(regex="(?s:.*)"), encode), [], ())
    assert ids(grammars) < set(range(SIZE))
    assert not ids(grammars) & VOCABULARY.control


@pytest.mark.parametrize("thought", ["open", "possible"])
def test_padding_is_never_allowed_in_a_thought(grammars, thought):
    grammars.add(0, constrain(Structured(regex="a"), encode, thought), [], STOPS)
    if thought == "possible":
        grammars.accept(0, THINK)
    assert ids(grammars) == set(range(SIZE)) - set(STOPS)


def test_stop_tokens_are_allowed_where_the_answer_may_end_and_nowhere_else(grammars):
    newline = encode("\n")[0]
    grammars.add(0, constrain(Structured(regex="\n?a\n?"), encode), [], (TURN, newline))
    assert not ids(grammars) & {TURN, newline}
    assert not grammars.accept(0, encode("a")[0])
    assert {TURN, newline} <= ids(grammars)
    assert grammars.accept(0, TURN)


def test_a_complete_answer_ends_without_a_stop_token(grammars):
    grammars.add(0, constrain(Structured(choice=["yes", "no"]), encode), [], ())
    *before, last = encode("yes")
    assert not any(grammars.accept(0, token) for token in before)
    assert grammars.accept(0, last)


def test_an_answer_that_may_go_on_is_not_ended(grammars):
    grammars.add(0, constrain(Structured(regex="a+"), encode), [], ())
    assert not any(grammars.accept(0, encode("a")[0]) for _ in range(10))


def test_sequences_without_a_grammar_may_write_anything(grammars):
    assert grammars.begin([0, 1]) is None
    assert not grammars.accept(1, 17)
    grammars.add(1, constrain(Structured(choice=["a"]), encode), [], STOPS)
    rows = masks(grammars, [0, 1, 7])
    assert rows.sum(axis=1).tolist() == [VOCAB, 1, VOCAB]
    grammars.remove(1)
    grammars.remove(7)
    assert grammars.begin([0, 1]) is None


def test_every_rank_gets_the_same_masks(grammars):
    other = Grammars(DEMO / "tokenizer.json", VOCAB)
    constraint = constrain(Structured(json=SCHEMAS["any of"]), encode)
    models = RandomModels(1, seed=3)
    for each in (grammars, other):
        each.add(0, constraint, [], STOPS)
    for _ in range(40):
        mine = masks(grammars, [0])
        assert (mine == masks(other, [0])).all()
        (token,) = models.draw(mine, [0])
        if grammars.accept(0, token) | other.accept(0, token):
            break
    other.close()


@pytest.mark.parametrize("thought", ["none", "possible", "open"])
def test_after_a_preemption_it_goes_on_where_it_was(grammars, thought):
    constraint = constrain(Structured(json=SCHEMAS["person"]), encode, thought)
    opening = {"none": "", "possible": "<think>well < and </thin\n</think>\n\n", "open": "hm</think>"}[
        thought
    ]
    output = encode(opening + '{"name": "A", "age": 4, "email": "a@b.de"}')
    grammars.add(0, constraint, [], STOPS)
    for count, token in enumerate(output):
        grammars.add(1, constraint, output[:count], STOPS)
        rows = masks(grammars, [0, 1])
        assert (rows[0] == rows[1]).all()
        assert rows[0, token]
        assert grammars.accept(0, token) == (count == len(output) - 1)


def test_the_answer_begins_after_the_thought(grammars):
    grammars.add(0, constrain(Structured(choice=["yes"]), encode, "open"), [], STOPS)
    for token in encode("I think so. yes no maybe 123"):
        assert token in ids(grammars)
        assert not grammars.accept(0, token)
    grammars.accept(0, END_THINK)
    space = {token for token in ids(grammars) if not text_of([token]).strip()}
    assert space  # models write line breaks here, and the reader of the answer drops them
    assert {text_of([token]) for token in ids(grammars) - space} <= {"y", "ye", "yes"}
    for _ in range(MAX_GAP):
        assert not grammars.accept(0, encode("\n\n")[0])
    assert {text_of([token]) for token in ids(grammars)} <= {"y", "ye", "yes"}


def test_a_model_that_may_think_may_answer_at_once(grammars):
    constraint = constrain(Structured(choice=["yes"]), encode, "possible")
    grammars.add(0, constraint, [], STOPS)
    assert THINK in ids(grammars)
    assert grammars.accept(0, encode("yes")[0]) == (len(encode("yes")) == 1)
    assert THINK not in ids(grammars)


def without_tags(folder: Path) -> None:
    """Write the demo model's tokenizer without tokens for the tags."""
    file = json.loads((DEMO / "tokenizer.json").read_text())
    file["added_tokens"] = [token for token in file["added_tokens"] if token["special"]]
    merges = file["model"]["merges"]
    file["model"]["merges"] = [pair for pair in merges if "think>" not in "".join(pair)]
    (folder / "tokenizer.json").write_text(json.dumps(file))


def splitter(tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("thought", ["possible", "open"])
def test_tags_may_be_written_with_several_tokens(tmp_path, thought):
    without_tags(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    split = splitter(tokenizer)
    constraint = constrain(Structured(choice=["<thank", "no"]), split, thought)
    assert len(constraint.end_think) > 1
    grammars = Grammars(tmp_path / "tokenizer.json", VOCAB)
    grammars.add(0, constraint, [], STOPS)
    for token in ([] if thought == "open" else split("<think>")) + split("1 < 2 </thin or </x> </think"):
        assert token in ids(grammars)
        assert not grammars.accept(0, token)
    ends = [tokenizer.decode([token]) for token in ids(grammars)]
    ends = [text for text in ends if text.startswith(">")]
    assert ends
    assert not any(text[1:].strip() for text in ends)  # the answer would begin in the tag's last token
    assert not any(grammars.accept(0, token) for token in (split(">")[0], split("\n")[0]))
    starts = {tokenizer.decode([token]).strip() for token in ids(grammars)}
    assert starts <= {"", "n", "no", "<", "<t", "<th", "<thank"}
    assert starts > {"", "n"}
    grammars.close()


def test_an_answer_that_looks_like_a_tag_at_first_is_an_answer(tmp_path):
    without_tags(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    grammars = Grammars(tmp_path / "tokenizer.json", VOCAB)
    split = splitter(tokenizer)
    constraint = constrain(Structured(choice=["<thank"]), split, "possible")
    grammars.add(0, constraint, [], STOPS)
    characters = [split(character)[0] for character in "<thank"]
    assert [grammars.accept(0, token) for token in characters] == [False] * 5 + [True]
    grammars.close()


def test_sentencepiece_tokens_are_known_as_bytes(tmp_path):
    vocab = {"<unk>": 0, "</s>": 1, "\u2581": 2, "\u2581yes": 3, "yes": 4}
    vocab |= {f"<0x{byte:02X}>": 5 + byte for byte in range(256)}
    file = {
        "model": {"type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": True},
        "added_tokens": [
            {"id": 0, "content": "<unk>", "special": True},
            {"id": 1, "content": "</s>", "special": True},
            {"id": 261, "content": "\u2581\u2581"},
        ],
        "decoder": {"type": "Sequence", "decoders": [{"type": "Replace"}, {"type": "ByteFallback"}]},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    grammars = Grammars(tmp_path / "tokenizer.json", 300)
    grammars.add(0, lark('start: "yes é" | "  "'), [], (1,))
    begin = np.flatnonzero(
        np.unpackbits(grammars.begin([0]).result().numpy().view(np.uint8), bitorder="little")
    )
    assert begin.tolist() == [2, 4, 5 + ord(" "), 5 + ord("y"), 261]
    done = [grammars.accept(0, token) for token in (4, 2, 5 + 0xC3, 5 + 0xA9)]
    assert done == [False, False, False, True]
    grammars.close()


def test_other_tokenizers_fail_the_request(tmp_path):
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({"model": {"type": "WordPiece", "vocab": {"a": 0}}, "decoder": {"type": "WordPiece"}})
    )
    grammars = Grammars(tmp_path / "tokenizer.json", 8)
    grammars.add(0, lark('start: "a"'), [], ())
    assert not grammars.begin([0]).result().any()
    assert grammars.error(0).code == Code.NOT_SUPPORTED
    grammars.close()


def test_a_grammar_that_cannot_be_compiled_fails_its_sequence_and_no_other(grammars):
    grammars.add(0, lark("start: nothing"), [], STOPS)
    grammars.add(1, lark('start: "a"'), [], STOPS)
    rows = masks(grammars, [0, 1])
    assert rows.sum(axis=1).tolist() == [0, 1]
    error = grammars.error(0)
    assert isinstance(error, CortexError)
    assert "nothing" in error.message
    assert "\n" not in error.message


def test_a_grammar_that_explodes_fails_its_sequence_and_no_other(grammars):
    """Each token that it writes multiplies the ways to read it."""
    grammars.add(0, lark('start: e\ne: e e e e e e | "a" | "b" | '), [], STOPS)
    grammars.add(1, lark("start: /a+/"), [], STOPS)
    token = encode("a")[0]
    for _ in range(2000):
        rows = masks(grammars, [0, 1])
        assert rows[1].any()
        if not rows[0].any():
            break
        grammars.accept(0, token)
    assert grammars.error(0).code == Code.BAD_REQUEST


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12), min_size=1, max_size=6
    )
)
def test_a_choice_is_one_of_them(choices):
    grammars = Grammars(DEMO / "tokenizer.json", VOCAB)
    constraint = constrain(Structured(choice=choices), encode)
    for output, ended in answers(grammars, [constraint] * 3, max_tokens=60):
        assert ended
        assert text_of(output) in choices
    grammars.close()


PIECES = st.sampled_from(["a", "[b-d]", r"\d", "é", r"\.", "(?:x|yz)", " ", "/", '"', r"\\"])
TIMES = st.sampled_from(["", "?", "*", "+", "{2}", "{1,3}"])
REGEXES = st.lists(st.tuples(PIECES, TIMES).map("".join), min_size=1, max_size=6).map("".join)


@settings(max_examples=25, deadline=None)
@given(REGEXES)
def test_an_answer_matches_its_regex(regex):
    grammars = Grammars(DEMO / "tokenizer.json", VOCAB)
    constraint = constrain(Structured(regex=regex), encode)
    for output, ended in answers(grammars, [constraint] * 3, max_tokens=40):
        if not ended:
            output = output + completion(grammars, constraint, output)
        assert re.fullmatch(regex, text_of(output), re.ASCII)
    grammars.close()


def test_an_answer_follows_a_lark_grammar(grammars):
    grammar = """
        start: sum
        sum: product (("+" | "-") product)*
        product: NUMBER ("*" NUMBER)*
        NUMBER: /[1-9][0-9]{0,2}/
    """
    constraint = constrain(Structured(grammar=grammar), encode)
    for output, ended in answers(grammars, [constraint] * 10, max_tokens=60):
        if not ended:
            output = output + completion(grammars, constraint, output)
        assert re.fullmatch(r"[1-9][0-9]{0,2}([-+*][1-9][0-9]{0,2})*", text_of(output))


def test_a_json_object_is_an_object(grammars):
    constraint = constrain(Structured(json_object=True), encode)
    for output, ended in answers(grammars, [constraint] * 10, max_tokens=60):
        if not ended:
            output = output + completion(grammars, constraint, output)
        assert isinstance(json.loads(text_of(output)), dict)


def test_space_between_marks_does_not_run_away(grammars):
    """A model that likes space most gets a line break and an indentation at most, again and again."""
    grammars.add(0, constrain(Structured(json=SCHEMAS["nested"]), encode), [], STOPS)
    output: list[int] = []
    while True:
        allow = masks(grammars, [0])[0]
        space = [token for token in VOCABULARY.space if allow[token]]
        output.append(max(space, default=None) if space else int(np.flatnonzero(allow)[0]))
        if len(output) > 60 or grammars.accept(0, output[-1]):
            break
    assert max(map(len, re.findall(r"\s+", text_of(output).partition('"e"')[0]))) <= 33


# --- how long a thought may be ------------------------------------------------------------------------------


def budgeted(budget: int, thought: str = "open", **form: object) -> Constraint:
    held = constrain(Structured(**form), encode, thought) if form else hold("", encode, thought)
    return msgspec.structs.replace(held, budget=budget)


@pytest.mark.parametrize("budget", [0, 5])
@pytest.mark.parametrize("form", [{}, {"choice": ["yes"]}], ids=["free", "grammar"])
def test_a_thought_is_ended_by_its_tag_when_its_budget_is_used_up(grammars, budget, form):
    grammars.add(0, budgeted(budget, **form), [], STOPS)
    for _ in range(budget):
        assert len(ids(grammars)) > 1
        assert not grammars.accept(0, encode("a")[0])
    assert ids(grammars) == {END_THINK}
    assert not grammars.accept(0, END_THINK)
    if form:
        assert encode("yes")[0] in ids(grammars)
        assert encode("a")[0] not in ids(grammars)
    else:
        assert grammars.begin([0]) is None  # it is free from here on


def test_a_thought_that_ends_by_itself_uses_no_budget(grammars):
    grammars.add(0, budgeted(5), [], STOPS)
    for token in (*encode("a")[:1], END_THINK, *encode("a b c d e f g h i j")):
        grammars.accept(0, token)
    assert grammars.begin([0]) is None


def test_a_thought_that_the_model_opens_has_a_budget_and_an_answer_has_none(grammars):
    for slot in (0, 1):
        grammars.add(slot, budgeted(1, "possible"), [], STOPS)
        assert len(ids(grammars, slot)) >= VOCAB - 32  # anything, padding as well
    newline = encode("\n")[0]
    for token in (newline, THINK, encode("a")[0]):
        grammars.accept(0, token)
    assert ids(grammars) == {END_THINK}
    for token in (encode("a")[0], THINK, encode("a")[0]):
        grammars.accept(1, token)
    assert grammars.begin([1]) is None


def test_a_tag_of_several_tokens_is_completed_where_it_was_begun(tmp_path):
    without_tags(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tag = tokenizer.encode("</think>", add_special_tokens=False).ids
    assert len(tag) > 2
    grammars = Grammars(tmp_path / "tokenizer.json", VOCAB)
    constraint = Constraint("", in_thought=True, end_think=tag, budget=3)
    for begun in range(len(tag) - 1):
        written = [*encode("a")[:1] * 3, *tag[:begun]]
        grammars.add(0, constraint, written, ())
        for token in tag[begun:]:
            assert ids(grammars) == {token}
            grammars.accept(0, token)
        assert grammars.begin([0]) is None
    grammars.close()


@given(
    st.lists(st.sampled_from([THINK, END_THINK, *encode("a"), *encode("\n"), *encode("yes")]), max_size=12)
)
@settings(max_examples=30, deadline=None)
def test_the_budget_is_a_matter_of_the_tokens_alone(output):
    grammars = Grammars(DEMO / "tokenizer.json", VOCAB)
    for thought in ("open", "possible"):
        grammars.add(0, budgeted(3, thought), [], STOPS)
        for token in output:
            grammars.accept(0, token)
        grammars.add(1, budgeted(3, thought), output, STOPS)
        rows = grammars.begin([0, 1])
        assert rows is None or (rows.result()[0] == rows.result()[1]).all()
    grammars.close()
