from hypothesis import example, given
from hypothesis import strategies as st

from neuron.text.stops import StopStrings
from tests.neuron.chunks import cut


def naive(text, stops):
    """The text before the first stop string to be complete, and that string: the longest of them."""
    for end in range(1, len(text) + 1):
        hits = [stop for stop in stops if text[:end].endswith(stop)]
        if hits:
            stop = max(hits, key=len)
            return text[: end - len(stop)], stop
    return text, None


def run(stops, chunks):
    """All that was handed out, what was hit, and the text handed out after each chunk."""
    watcher, said, steps = StopStrings(stops), "", []
    for chunk in chunks:
        safe, hit = watcher.push(chunk)
        said += safe
        steps.append(said)
        if hit is not None:
            return said, hit, steps
    return said + watcher.finish(), None, steps


STOPS = st.lists(st.text("ab\n", min_size=1, max_size=5), min_size=1, max_size=16)


@given(STOPS, cut(st.text("ab\nc", max_size=40)))
@example(["aab"], ("aaab", ["a", "a", "a", "b"]))
@example(["abab", "ba"], ("abab", ["abab"]))
def test_the_first_stop_string_ends_the_text_however_it_was_cut(stops, text_and_chunks):
    text, chunks = text_and_chunks
    said, hit, _ = run(stops, chunks)
    assert (said, hit) == naive(text, stops)


@given(STOPS, cut(st.text("ab\nc", max_size=40)))
def test_no_part_of_a_stop_string_leaks(stops, text_and_chunks):
    text, chunks = text_and_chunks
    before, _ = naive(text, stops)
    _, _, steps = run(stops, chunks)
    assert all(before.startswith(step) for step in steps)


@given(STOPS, cut(st.text("ab\nc", max_size=40)))
def test_text_is_held_back_only_while_it_may_become_a_stop_string(stops, text_and_chunks):
    _, chunks = text_and_chunks
    _, hit, steps = run(stops, chunks)
    so_far = ""
    for chunk, step in zip(chunks, steps if hit is None else steps[:-1], strict=False):
        so_far += chunk
        held = so_far[len(step) :]
        assert held == "" or any(stop.startswith(held) for stop in stops)


def test_the_longer_of_two_that_end_together_counts():
    assert StopStrings(["b", "ab"]).push("xab!") == ("x", "ab")


def test_what_never_became_a_stop_string_is_handed_out_at_the_end():
    watcher = StopStrings(["</answer>"])
    assert watcher.push("42</ans") == ("42", None)
    assert watcher.finish() == "</ans"
    assert watcher.finish() == ""
