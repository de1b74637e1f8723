"""Requests of several choices and several prompts, and what is said of prompts."""

from array import array

import msgspec
import pytest

from ipc.errors import Code, CortexError
from ipc.messages.answers import Alternative, TokenLogprob, Usage
from ipc.messages.replies import Failed, Finished, LogprobPiece
from ipc.messages.sampling import Sampling
from ipc.worker_messages import Details, Logprobs, SequenceReport
from neuron.preparation import prepared as prepared_module
from neuron.requests import generation as generation_module
from tests.neuron.letters import Client


def feed_both(client, first, second):
    """Reports on two answers, in turn."""
    answers = client.generation.hand_over(100)
    for answer, report in ((answers[0], first), (answers[1], second)):
        answer.advance(report)


def test_each_choice_is_a_sequence_with_a_seed_of_its_own():
    client = Client(sampling=Sampling(n=3, seed=2**64 - 2))
    submits = [answer.submit for answer in client.generation.hand_over(100)]
    assert [submit.params.seed for submit in submits] == [2**64 - 2, 2**64 - 1, 0]
    assert len({submit.request_id for submit in submits}) == 3


def test_choices_are_told_apart_and_finish_together():
    client = Client(sampling=Sampling(n=2))
    feed_both(
        client, SequenceReport(1, [3], "length", Details(cached_tokens=2)), SequenceReport(2, [4], "length")
    )
    assert [(delta.index, delta.text) for delta in client.deltas] == [(0, "d"), (1, "e")]
    finished = client.replies[-1]
    assert [(choice.index, choice.reason) for choice in finished.choices] == [(0, "length"), (1, "length")]
    assert finished.usage == Usage(prompt_tokens=3, completion_tokens=2, cached_tokens=2)


def test_an_error_of_one_choice_fails_the_request():
    client = Client(sampling=Sampling(n=2))
    error = SequenceReport(2, [], "error", Details("too much", Code.INSUFFICIENT_MEMORY))
    feed_both(client, SequenceReport(1, [3], "length"), error)
    assert (client.replies[-1].code, client.replies[-1].tokens_sent) == (Code.INSUFFICIENT_MEMORY, 1)


def test_n_times_max_tokens_over_the_context_is_refused():
    with pytest.raises(CortexError) as refused:
        Client(sampling=Sampling(n=11, max_tokens=10))
    assert refused.value.param == "n"
    assert "110" in refused.value.message


def seeds(**request):
    answers = Client(**request).generation.hand_over(100)
    return [answer.submit.params.seed for answer in answers]


def test_without_max_tokens_choices_share_the_context():
    several = Client(sampling=Sampling(n=4)).generation.hand_over(100)
    assert [answer.submit.max_tokens for answer in several] == [25] * 4
    [alone] = Client().generation.hand_over(100)
    assert alone.submit.max_tokens == 97


def test_each_prompt_has_n_sequences_of_its_own():
    client = Client(prompt=["ab", [2, 3, 4]], sampling=Sampling(n=2, max_tokens=50))
    submits = [answer.submit for answer in client.generation.hand_over(1000)]
    prompts = [array("I", submit.prompt).tolist() for submit in submits]
    assert prompts == [[0, 1], [0, 1], [2, 3, 4], [2, 3, 4]]
    assert len({submit.request_id for submit in submits}) == 4
    assert client.generation.key == submits[0].request_id


def test_a_seed_is_that_of_each_prompt_and_without_one_all_differ():
    assert seeds(prompt=["ab", "ab"], sampling=Sampling(n=2, seed=5)) == [5, 6, 5, 6]
    assert len(set(seeds(prompt=["ab", "ab"], sampling=Sampling(n=2)))) == 4


def test_each_prompt_counts_against_the_context_by_itself():
    client = Client(prompt=[[1] * 60, [1] * 90])
    assert [answer.submit.max_tokens for answer in client.generation.hand_over(100)] == [40, 10]
    assert client.replies[0].prompt_tokens == 150


@pytest.mark.parametrize(
    ("prompt", "code", "param"),
    [
        (["a", "a" * 100], Code.CONTEXT_LENGTH_EXCEEDED, "prompt[1]"),
        ([[1] * 100], Code.CONTEXT_LENGTH_EXCEEDED, "prompt[0]"),
        ([[1], [26]], Code.BAD_REQUEST, "prompt[1]"),
    ],
)
def test_the_prompt_at_fault_is_named(prompt, code, param):
    with pytest.raises(CortexError) as refused:
        Client(prompt=prompt)
    assert (refused.value.code, refused.value.param) == (code, param)


def test_a_context_that_shrank_names_the_prompt_that_does_not_fit_any_more():
    client = Client(prompt=[[1] * 10, [1] * 50])
    with pytest.raises(CortexError) as refused:
        client.generation.check_length(50)
    assert refused.value.param == "prompt[1]"


def test_usage_is_of_all_prompts_and_each_counts_once():
    client = Client(prompt=["ab", "cde"], sampling=Sampling(n=2))
    for number, answer in enumerate(client.generation.hand_over(100), 1):
        answer.advance(SequenceReport(number, [3], "length", Details(cached_tokens=number)))
    [*_, finished] = client.replies
    assert [(choice.index, choice.reason) for choice in finished.choices] == [
        (index, "length") for index in range(4)
    ]
    assert finished.usage == Usage(prompt_tokens=5, completion_tokens=4, cached_tokens=1 + 3)


def answer_two_prompts(stream):
    """Two choices of each of two prompts, with echo and log-probabilities; the second prompt is first."""
    client = Client(prompt=["ab", [4, 5]], stream=stream, echo=True, sampling=Sampling(n=2, logprobs=0))
    for number, answer in reversed(list(enumerate(client.generation.hand_over(100)))):
        ids = array("I", answer.submit.prompt).tolist()
        answer.advance(
            SequenceReport(
                number + 1,
                [20 + number],
                "length",
                Details(
                    logprobs=[Logprobs(20 + number, -1.0, 1, [])],
                    prompt_logprobs=[Logprobs(ids[1], -0.5, 1, [])],
                ),
            )
        )
    return client


def test_answers_begin_with_their_own_prompt():
    [finished] = answer_two_prompts(stream=False).replies
    assert [choice.text for choice in finished.choices] == ["abu", "abv", "efw", "efx"]
    told = [[(each.token, each.logprob) for each in of_prompt] for of_prompt in finished.prompt_logprobs]
    assert told == [[("a", None), ("b", -0.5)], [("e", None), ("f", -0.5)]]


def test_what_is_said_of_a_prompt_comes_with_its_first_choice():
    client = answer_two_prompts(stream=True)
    assert [(delta.index, delta.text) for delta in client.deltas] == [
        (3, "efx"),
        (2, "efw"),
        (1, "abv"),
        (0, "abu"),
    ]
    told = {delta.index: delta.prompt_logprobs for delta in client.deltas}
    assert (told[3], told[1]) == (None, None)
    assert [[each.token for each in told[index]] for index in (0, 2)] == [["a", "b"], ["e", "f"]]
    assert client.replies[-1].prompt_logprobs is None


def test_a_prompt_of_one_token_has_the_entry_that_says_nothing():
    client = Client(prompt=[5], stream=False, echo=True, sampling=Sampling(logprobs=0))
    [finished] = client.feed([3], finish="length")
    assert [[(each.token, each.logprob) for each in told] for told in finished.prompt_logprobs] == [
        [("f", None)]
    ]


def test_more_log_probabilities_of_prompts_than_a_message_holds_are_refused():
    prompt = [[1] * 20_000] * 2
    Client(prompt=prompt, context_length=30_000, sampling=Sampling(prompt_logprobs=19))
    for fields in ({"prompt_logprobs": 20}, {"logprobs": 20}):
        with pytest.raises(CortexError) as refused:
            Client(prompt=prompt, context_length=30_000, echo=True, sampling=Sampling(**fields))
        assert refused.value.param == next(iter(fields))
        assert "800000" in refused.value.message


def test_echo_begins_with_the_prompt_and_its_logprobs():
    client = Client(stream=False, echo=True, sampling=Sampling(logprobs=1))
    told = [Logprobs(1, -0.5, 1, [(1, -0.5)]), Logprobs(2, -2.0, 2, [(1, -0.5)])]
    [answer] = client.generation.hand_over(100)
    assert answer.submit.params.prompt_logprobs == 1
    answer.advance(SequenceReport(1, [], more=Details(prompt_logprobs=told[:1])))
    token = Logprobs(3, -1.0, 1, [(3, -1.0)])
    answer.advance(SequenceReport(1, [3], "length", Details(logprobs=[token], prompt_logprobs=told[1:])))
    [finished] = client.replies
    assert finished.choices[0].text == "abcd"
    [of_prompt] = finished.prompt_logprobs
    assert [(each.token, each.logprob) for each in of_prompt] == [
        ("a", None),
        ("b", -0.5),
        ("c", -2.0),
    ]
    assert [(each.token, each.raw, each.logprob) for each in finished.choices[0].logprobs] == [
        ("d", b"d", -1.0)
    ]
    assert finished.choices[0].logprobs[0].top == [Alternative(token_id=3, token="d", raw=b"d", logprob=-1.0)]


def test_with_echo_and_no_tokens_only_the_prompt_is_scored():
    client = Client(stream=False, echo=True, sampling=Sampling(logprobs=0, max_tokens=0))
    [answer] = client.generation.hand_over(100)
    assert answer.submit.max_tokens == 1
    told = [Logprobs(1, -0.5, 1, []), Logprobs(2, -2.0, 2, [])]
    answer.advance(SequenceReport(1, [3], "length", Details(prompt_logprobs=told)))
    [finished] = client.replies
    assert (finished.choices[0].text, finished.choices[0].reason) == ("abc", "length")
    assert [len(of_prompt) for of_prompt in finished.prompt_logprobs] == [3]
    assert finished.usage.completion_tokens == 0


def told(token):
    """What a worker tells of it: itself, and one alternative."""
    return Logprobs(token, -0.5, 1, [(token, -0.5)])


def scored(**request):
    """The replies to two prompts of 21 tokens, two answers of four tokens to each, all of them told of."""
    prompt = [[0, *range(20)]] * 2
    client = Client(prompt=prompt, stream=False, echo=True, sampling=Sampling(n=2, logprobs=1), **request)
    answers = client.generation.hand_over(100)
    for answer in answers[::2]:
        for ids in (range(10), range(10, 20)):
            more = Details(prompt_logprobs=[told(token) for token in ids])
            answer.advance(SequenceReport(answer.key, [], more=more))
    for step in range(4):
        for answer in answers:
            token, finish = answer.index + step, "length" if step == 3 else ""
            answer.advance(SequenceReport(answer.key, [token], finish, Details(logprobs=[told(token)])))
    return client.replies


def joined(replies):
    """What `finished` would have said, had all of it come there: of choices and of prompts."""
    *pieces, finished = replies
    choices = {choice.index: [] for choice in finished.choices}
    prompts = {number: [] for number in range(len(finished.prompt_logprobs))}
    for piece in pieces:
        entries = msgspec.msgpack.decode(piece.entries, type=list[TokenLogprob])
        assert len(entries) == piece.tokens
        (prompts if piece.of_prompt else choices)[piece.index] += entries
    return (
        [choices[choice.index] + choice.logprobs for choice in finished.choices],
        [prompts[number] + last for number, last in enumerate(finished.prompt_logprobs)],
    )


def test_log_probabilities_in_pieces_are_those_of_a_whole_answer(monkeypatch):
    [whole] = scored()
    monkeypatch.setattr(generation_module, "PIECE", 12)
    [also_whole] = scored()
    *pieces, finished = in_pieces = scored(in_pieces=True)
    assert {type(piece) for piece in pieces} == {LogprobPiece}
    assert sum(len(choice.logprobs) for choice in finished.choices) < 16
    assert joined(in_pieces) == joined([whole]) == joined([also_whole])
    assert [len(each) for each in joined([whole])[1]] == [21, 21]
    without = {"logprobs": []}
    assert [msgspec.structs.replace(choice, **without) for choice in finished.choices] == [
        msgspec.structs.replace(choice, **without) for choice in whole.choices
    ]


def test_so_many_ids_of_prompts_are_told_back_at_most(monkeypatch):
    monkeypatch.setattr(prepared_module, "MAX_TOLD_IDS", 4)
    fields = {"prompt": [[1, 2], [3, 4]], "return_token_ids": True}
    Client(**fields).generation.hand_over(100)
    fields["prompt"].append([5])
    with pytest.raises(CortexError) as refused:
        Client(**fields)
    assert (refused.value.code, refused.value.param) == (Code.BAD_REQUEST, "return_token_ids")
    Client(**fields | {"return_token_ids": False})


def test_a_small_answer_has_no_pieces():
    [finished] = scored(in_pieces=True)
    assert isinstance(finished, Finished)


def test_an_unstreamed_answer_has_so_many_log_probabilities_at_most(monkeypatch):
    monkeypatch.setattr(generation_module, "MOST_WHOLE", 100)
    [failed] = scored()
    assert (type(failed), failed.code, failed.param) == (Failed, Code.BAD_REQUEST, "logprobs")


def test_what_is_told_of_a_long_prompt_is_streamed_as_it_comes(monkeypatch):
    monkeypatch.setattr(generation_module, "PIECE", 12)
    client = Client(prompt=[0, *range(20)], echo=True, sampling=Sampling(logprobs=1))
    [answer] = client.generation.hand_over(100)
    for ids in (range(10), range(10, 16), range(16, 18)):
        more = Details(prompt_logprobs=[told(token) for token in ids])
        answer.advance(SequenceReport(1, [], more=more))
    last = Details(prompt_logprobs=[told(18), told(19)], logprobs=[told(3)])
    answer.advance(SequenceReport(1, [3], "length", last))
    deltas = client.deltas
    assert [(delta.tokens, len(delta.prompt_logprobs or ())) for delta in deltas] == [(0, 11), (0, 8), (1, 2)]
    entries = [each.token_id for delta in deltas for each in delta.prompt_logprobs]
    assert entries == [0, *range(20)]
    assert deltas[-1].text == "aabcdefghijklmnopqrstd"


def test_of_a_prompt_that_another_worker_begins_again_nothing_is_told_twice(monkeypatch):
    client = Client(prompt=[0, *range(6)], stream=False, echo=True, sampling=Sampling(logprobs=1))
    [answer] = client.generation.hand_over(100)
    answer.advance(SequenceReport(1, [], more=Details(prompt_logprobs=[told(0), told(1), told(2)])))
    client.generation.take_back()
    [answer] = client.generation.hand_over(100)
    for ids, token_ids in ((range(2), []), (range(2, 6), [9])):
        more = Details(
            prompt_logprobs=[told(token) for token in ids], logprobs=[told(token) for token in token_ids]
        )
        finish = "length" if token_ids else ""
        answer.advance(SequenceReport(answer.key, token_ids, finish, more))
    [of_prompt] = client.replies[-1].prompt_logprobs
    assert [each.token_id for each in of_prompt] == [0, *range(6)]
