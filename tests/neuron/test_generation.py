"""One request without any process: its replies, its end, and how its tokens are chosen."""

from array import array
from dataclasses import replace

import pytest

from ipc.errors import Code, CortexError
from ipc.messages.conversation import Message, Tool, ToolCall
from ipc.messages.replies import Cancelled, Failed, Finished, Started
from ipc.messages.sampling import Sampling, Structured
from ipc.worker_messages import Details, Logprobs, SequenceReport
from neuron.text.frontend import TextFrontEnd
from tests.neuron.doubles import Pieces
from tests.neuron.letters import EOS, MODEL, Client, Letters, Text, params
from workers.checkpoints.generation import GenerationDefaults


def test_a_stream_is_started_deltas_and_finished():
    client = Client()
    replies = client.feed([3], [4], [5], finish="length")
    assert isinstance(replies[0], Started)
    assert [delta.text for delta in client.deltas] == ["d", "e", "f"]
    assert isinstance(replies[-1], Finished)
    assert replies[-1].choices[0].reason == "length"
    assert replies[-1].usage.prompt_tokens == 3
    assert replies[-1].usage.completion_tokens == 3
    assert replies[-1].choices[0].text == ""
    assert client.ended == [client.generation]


def test_what_is_streamed_is_not_kept():
    client = Client(sampling=Sampling(logprobs=0))
    client.generation.hand_over(100)
    [answer] = client.generation.parts
    for token in (3, 4):
        answer.advance(SequenceReport(1, [token], "", Details(logprobs=[Logprobs(token, -0.5, 1, [])])))
    assert [len(delta.logprobs) for delta in client.deltas] == [1, 1]
    assert answer.logprobs == []
    assert answer.choice(with_ids=True).token_ids is None


def test_an_unstreamed_answer_is_one_message():
    client = Client(stream=False)
    [finished] = client.feed([3], [4, 5], finish="length")
    assert finished.choices[0].text == "def"
    assert finished.choices[0].token_ids is None
    timings = finished.timings
    assert 0 <= timings.queue <= timings.first_token <= timings.total


def test_the_first_token_is_told_at_once_even_without_text():
    client = Client()
    client.feed([16])
    assert [(delta.tokens, delta.text) for delta in client.deltas] == [(1, "")]


def test_tokens_without_text_are_counted_in_the_next_delta():
    client = Client()
    client.feed([3], [16], [4], finish="length")
    assert [(delta.tokens, delta.text) for delta in client.deltas] == [(1, "d"), (2, "qe")]


def test_what_was_held_back_comes_out_at_the_end():
    client = Client()
    client.feed([3], [16], finish="length")
    assert "".join(delta.text for delta in client.deltas) == "dq"


def test_the_token_that_stops_is_counted_and_not_said():
    client = Client(stream=False, return_token_ids=True)
    finished = client.feed([3], [EOS], finish="stop")[-1]
    assert finished.choices[0].text == "d"
    assert finished.choices[0].reason == "stop"
    assert finished.usage.completion_tokens == 2
    assert finished.choices[0].token_ids == [3, EOS]


def test_token_ids_come_with_each_delta_and_the_prompt_s_with_started():
    client = Client(return_token_ids=True)
    replies = client.feed([3], [16], [4], finish="length")
    assert replies[0].prompt_token_ids == [[0, 1, 2]]
    assert [delta.token_ids for delta in client.deltas] == [[3], [16], [4]]
    assert replies[-1].choices[0].token_ids is None


def test_a_stop_string_ends_the_answer_and_is_not_part_of_it():
    client = Client(sampling=Sampling(stop=["fg"]))
    client.feed([3], [4], [5], [6], [7])
    assert "".join(delta.text for delta in client.deltas) == "de"
    finished = client.replies[-1]
    assert (finished.choices[0].reason, finished.choices[0].stop_sequence) == ("stop", "fg")
    assert len(client.ended) == 1


def test_tokens_after_a_stop_string_do_not_count_however_steps_come_together():
    client = Client(sampling=Sampling(stop=["fg"]), return_token_ids=True, stream=False)
    finished = client.feed([3, 4, 5, 6, 7, 8])[-1]
    assert finished.choices[0].text == "de"
    assert finished.choices[0].token_ids == [3, 4, 5, 6]
    assert finished.usage.completion_tokens == 4


def test_half_a_stop_string_is_said_when_the_answer_ends():
    client = Client(sampling=Sampling(stop=["fg"]))
    client.feed([3], [5], finish="length")
    assert "".join(delta.text for delta in client.deltas) == "df"
    assert client.replies[-1].choices[0].stop_sequence is None


def chat(**changes):
    return Client(prompt=None, messages=[Message(role="user", content="abc")], **changes)


def test_reasoning_text_and_tool_calls_are_told_apart():
    client = chat()
    client.feed([3], [14], [25], [14], finish="length")
    assert "".join(delta.reasoning for delta in client.deltas) == "d"
    assert "".join(delta.text for delta in client.deltas) == "oo"
    assert [call.name for delta in client.deltas for call in delta.tool_calls] == ["f"]


def test_reasoning_tokens_are_counted_the_same_however_steps_come_together():
    apart, together = chat(), chat()
    apart.feed([3], [4], [14], [15], finish="length")
    together.feed([3, 4, 14, 15], finish="length")
    assert apart.replies[-1].usage == together.replies[-1].usage
    assert apart.replies[-1].usage.reasoning_tokens == 3  # with the one that leads out of it


def test_an_unstreamed_chat_has_them_in_its_end_and_says_tool_calls():
    client = chat(stream=False, sampling=Sampling(stop_token_ids=[2]))
    [finished] = client.feed([3, 14], [25], [2], finish="stop")
    assert (finished.choices[0].reasoning, finished.choices[0].text) == ("d", "o")
    assert finished.choices[0].tool_calls == [ToolCall(id="call", name="f", arguments="{}")]
    assert finished.choices[0].reason == "tool_calls"


class Words(Text):
    """Token n is the n-th of some pieces of text, and answers are read as those of models are."""

    PIECES = (
        '<tool_call>{"name": "f", ',
        '"args": {',
        '"a": 1}}',
        "</tool_call>",
        "Done",
        "</think>",
        "<think>",
    )

    def encode(self, text, special):
        return [0] * len(text)  # no mark of a call is one token

    def detokenizer(self, after=()):
        return Pieces(self.PIECES)

    answer_parser = TextFrontEnd.answer_parser


def talk(*steps, finish="", **request):
    """Replies to a chat with a tool, of an answer of such pieces."""
    messages, tools = [Message(role="user", content="abc")], [Tool.function(name="f")]
    client = Client(text=Words(), prompt=None, messages=messages, tools=tools, **request)
    return client.feed(*steps, finish=finish), client


@pytest.mark.parametrize("steps", [[[0], [1], [2], [3], [4]], [[0, 1, 2, 3, 4]]])
def test_a_single_call_ends_an_answer_that_may_have_no_other(steps):
    [finished], client = talk(*steps, stream=False, parallel_tool_calls=False)
    [choice] = finished.choices
    assert [(call.name, call.arguments) for call in choice.tool_calls] == [("f", '{"a": 1}')]
    assert (choice.reason, choice.text, finished.usage.completion_tokens) == ("tool_calls", "", 4)
    assert len(client.ended) == 1


def test_arguments_are_streamed_as_they_are_written():
    _, client = talk([0], [1], [2], [3], finish="stop")
    pieces = [piece for delta in client.deltas for piece in delta.tool_calls]
    assert [(piece.name, piece.arguments) for piece in pieces] == [("f", ""), (None, "{"), (None, '"a": 1}')]
    assert client.replies[-1].choices[0].reason == "tool_calls"


def test_beside_tools_an_answer_that_follows_a_form_may_speak_of_a_call():
    form = Structured(regex="Done.*")
    [finished], _ = talk([4], [0], [1], [2], [3], finish="stop", stream=False, structured=form)
    [choice] = finished.choices
    assert (choice.reason, choice.text) == ("stop", "Done" + "".join(Words.PIECES[:4]))
    assert choice.tool_calls == []
    [finished], _ = talk([0], [1], [2], [3], finish="stop", stream=False, structured=form)
    assert [call.arguments for call in finished.choices[0].tool_calls] == ['{"a": 1}']


def test_a_call_that_max_tokens_cuts_is_a_call_and_no_text():
    [finished], _ = talk([0], [1], finish="length", stream=False)
    [choice] = finished.choices
    assert (choice.reason, choice.text) == ("length", "")
    assert [(call.name, call.arguments) for call in choice.tool_calls] == [("f", "{")]


@pytest.mark.parametrize("steps", [[[6], [4], [4], [5], [4]], [[6, 4, 4, 5, 4]], [[6, 4], [4, 5, 4]]])
def test_tokens_of_a_thought_that_the_model_begins_are_counted_the_same_however_steps_come_together(steps):
    [finished], _ = talk(*steps, finish="length", stream=False)
    assert (finished.usage.completion_tokens, finished.usage.reasoning_tokens) == (5, 3)


def test_a_stop_string_in_a_thought_or_a_call_ends_nothing():
    sampling = Sampling(stop=["Done", '"a"'])
    [finished], _ = talk([6], [4], [5, 0, 1, 2, 3, 4, 4], finish="length", stream=False, sampling=sampling)
    [choice] = finished.choices
    assert (choice.reason, choice.stop_sequence, choice.reasoning, choice.text) == (
        "tool_calls",
        "Done",
        "Done",
        "",
    )
    assert [call.arguments for call in choice.tool_calls] == ['{"a": 1}']
    assert (finished.usage.completion_tokens, finished.usage.reasoning_tokens) == (8, 2)


def test_far_behind_in_a_long_prompt_something_that_is_no_token_id_is_told():
    with pytest.raises(CortexError, match="token ids beside whole prompts") as refused:
        Client(prompt=[1] * 70_000 + ["a"], context_length=100_000)
    assert (refused.value.code, refused.value.param) == (Code.BAD_REQUEST, "prompt")


def test_messages_that_cannot_fit_are_refused_before_they_are_rendered():
    text = Text()
    text.render = None
    with pytest.raises(CortexError, match="at least 200") as refused:
        Client(text=text, prompt=None, messages=[Message(role="user", content="a" * 2000)])
    assert (refused.value.code, refused.value.param) == (Code.CONTEXT_LENGTH_EXCEEDED, "messages")


def test_a_prompt_is_answered_as_plain_text():
    client = Client(stream=False)
    [finished] = client.feed([3, 25], finish="length")
    [choice] = finished.choices
    assert (choice.text, choice.reasoning, choice.tool_calls) == ("dz", "", [])


def test_cancel_ends_it_once_and_late_tokens_are_ignored():
    client = Client()
    client.feed([3])
    client.generation.cancel()
    client.generation.cancel()
    client.generation.parts[0].advance(SequenceReport(1, [4], "aborted"))
    assert isinstance(client.replies[-1], Cancelled)
    assert client.replies[-1].usage.completion_tokens == 1
    assert len(client.ended) == 1
    assert client.generation.outcome == "cancelled"


def test_a_failure_says_how_many_tokens_the_client_has():
    client = Client()
    client.feed([3], [4])
    client.generation.fail(CortexError(Code.WORKER_DIED, "rank 0 was killed", details={"rank": 0}))
    failed = client.replies[-1]
    assert isinstance(failed, Failed)
    assert (failed.code, failed.tokens_sent, failed.details) == (Code.WORKER_DIED, 2, {"rank": 0})
    assert len(client.ended) == 1


def test_an_error_of_the_worker_fails_the_request():
    client = Client()
    client.generation.hand_over(100)
    client.generation.parts[0].advance(SequenceReport(1, [], "error", Details("no pages")))
    assert (client.replies[-1].code, client.replies[-1].message) == (Code.INTERNAL, "no pages")


def test_a_fault_in_the_text_path_ends_only_this_request():
    client = Client()
    client.feed([3])
    client.generation.parts[0].advance(SequenceReport(1, [99], ""))
    assert client.replies[-1].code == Code.INTERNAL
    assert len(client.ended) == 1


@pytest.mark.parametrize("written", [[], [[3, EOS]]], ids=["by a worker that died", "on another host"])
def test_a_fault_in_the_text_of_what_was_written_before_gives_the_worker_nothing(written, monkeypatch):
    client = Client(written=written)
    if not written:
        client.feed([3], [4])
    monkeypatch.setattr(Letters, "finish", lambda self: 1 / 0)
    assert client.generation.hand_over(5) == []  # there is room for two
    assert client.replies[-1].code == Code.INTERNAL
    assert len(client.ended) == 1


def test_a_request_has_begun_once_the_worker_reported_it():
    client = Client()
    client.generation.hand_over(100)
    assert not client.generation.begun
    client.generation.parts[0].advance(SequenceReport(1, [], ""))
    assert client.generation.begun
    assert not client.deltas


def test_started_is_said_once_however_often_it_is_handed_over():
    client = Client()
    client.generation.hand_over(100)
    client.generation.hand_over(100)
    assert len(client.replies) == 1
    assert client.generation.attempts == 2


@pytest.mark.parametrize("field", [{"prompt": [1] * 100}, {"prompt": "a" * 101}])
def test_a_prompt_over_the_context_is_refused_with_both_counts(field):
    with pytest.raises(CortexError) as refused:
        Client(sampling=Sampling(max_tokens=5), **field)
    error = refused.value
    assert error.code == Code.CONTEXT_LENGTH_EXCEEDED
    count = len(field["prompt"])
    assert "maximum context length is 100 tokens" in error.message
    assert str(count) in error.message
    assert error.details == {"prompt_tokens": count, "context_length": 100, "max_tokens": 5}


@pytest.mark.parametrize(("max_tokens", "allowed"), [(None, 97), (1, 1), (97, 97), (32_000, 97)])
def test_an_answer_never_gets_longer_than_the_context(max_tokens, allowed):
    client = Client(sampling=Sampling(max_tokens=max_tokens))
    assert client.generation.hand_over(100)[0].submit.max_tokens == allowed


@pytest.mark.parametrize(("max_tokens", "allowed"), [(None, 10), (4, 4), (32_000, 10)])
def test_no_answer_gets_longer_than_the_owner_of_the_model_allows(max_tokens, allowed):
    client = Client(description=replace(MODEL, max_output=10), sampling=Sampling(max_tokens=max_tokens))
    assert client.generation.hand_over(100)[0].submit.max_tokens == allowed


@pytest.mark.parametrize(("max_tokens", "full"), [(97, False), (98, True), (None, True)])
def test_an_answer_that_the_context_ends_says_so(max_tokens, full):
    client = Client(sampling=Sampling(max_tokens=max_tokens))
    [answer] = client.generation.hand_over(100)
    answer.advance(SequenceReport(1, [3] * 97, "length"))
    [choice] = client.replies[-1].choices
    assert (choice.reason, choice.context_full) == ("length", full)


def test_sampling_is_the_request_s_then_the_model_s_then_neutral():
    defaults = GenerationDefaults(temperature=0.6, top_k=20)
    sampling = Sampling(temperature=0.0, seed=-1)
    client = Client(description=replace(MODEL, defaults=defaults), sampling=sampling)
    submit = client.generation.hand_over(100)[0].submit
    params = submit.params
    assert (params.temperature, params.top_k, params.top_p) == (0.0, 20, 1.0)
    assert params.seed == 2**64 - 1
    assert array("I", submit.prompt).tolist() == [0, 1, 2]


def test_without_a_seed_two_requests_differ():
    assert params().seed != params().seed


def test_end_of_text_stops_unless_it_is_ignored():
    assert params(stop_token_ids=[3]).stop_ids == [3, EOS]
    assert params(stop_token_ids=[3], ignore_eos=True).stop_ids == [3]


def test_bad_words_are_spelled_at_a_start_and_after_a_space():
    assert params(bad_words=["ab"]).bad_words == [[0, 1], [26, 0, 1]]


def test_a_stop_string_is_part_of_the_answer_where_that_is_asked_for():
    client = Client(sampling=Sampling(stop=["fg"], include_stop=True))
    client.feed([3], [4], [5], [6], [7])
    assert "".join(delta.text for delta in client.deltas) == "defg"


def test_the_last_token_of_a_complete_grammar_is_text():
    client = Client(stream=False)
    assert client.feed([3], [4], finish="stop")[-1].choices[0].text == "de"


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        ({"prompt": [26]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"sampling": Sampling(stop_token_ids=[99])}, "stop_token_ids"),
    ],
)
def test_token_ids_that_the_model_does_not_have_are_refused(request_, param):
    with pytest.raises(CortexError) as refused:
        Client(**request_)
    assert (refused.value.code, refused.value.param) == (Code.BAD_REQUEST, param)
