"""A decode step that is replayed brings what it would have brought, and nothing else knows of it."""

from __future__ import annotations

import logging

import pytest
import torch

from tests.workers import seeing
from tests.workers.adapters import read, with_adapter, write_adapter
from tests.workers.engines import GPU, Session, make_runner, request, serve
from tests.workers.guessing import replace_id
from tests.workers.recorded import LIMITS, Recorder, record_steps, requests
from workers.execution import model_runner
from workers.execution.graphs import MOST_GRAPHS, Graphs, Kind, sizes
from workers.sampling.draws import FILTERED, PLAIN, choose
from workers.sampling.inputs import Wishes
from workers.sampling.sampler import Sampler


@pytest.fixture
def recorder(monkeypatch) -> Recorder:
    """In place of the device that steps are recorded on."""
    return record_steps(monkeypatch)


@pytest.fixture(params=["qwen3_untied_biased"])
def runner(request, tiny, recorder):
    runner = make_runner(tiny(request.param).folder, **LIMITS)
    runner.load(lambda fraction, message: None)
    yield runner
    runner.close()


def eagerly(runner, submits, **limits):
    """Their answers by steps that are computed as they come."""
    runner.graphs.paused = True
    tokens = serve(runner, submits, **LIMITS | limits)
    runner.graphs.paused = False
    return tokens


@pytest.mark.parametrize("runner", ["qwen3_untied_biased", "gemma3"], indirect=True)
def test_replayed_steps_answer_as_computed_ones_do(runner, recorder):
    expected = eagerly(runner, requests(), max_sequences=10)
    assert recorder.captured == 0
    assert serve(runner, requests(), max_sequences=10, **LIMITS) == expected
    assert recorder.captured >= 4, "the numbers of sequences shrink"
    assert recorder.replayed > 3 * recorder.captured


def test_whoever_comes_goes_or_is_preempted(runner, recorder):
    """Steps with prompts between, sequences that are aborted, and pages that are another's then."""
    limits = LIMITS | {"kv_pages": 3, "seed": 7}
    submits = [request(i, [5 + i] * 20, 20 + i, temperature=1.0, seed=i) for i in range(5)]
    expected = eagerly(runner, submits, **limits)
    session = Session(runner, **LIMITS | {"kv_pages": 3})
    answers = session.answer(submits, seed=7, aborts=True)
    assert [answer.token_ids for answer in answers] == expected
    assert session.scheduler.statistics()["preemptions"] > 0
    session.end()
    assert recorder.replayed > recorder.captured > 1


def test_what_stands_beside_a_sequence_and_what_it_is_padded_with_changes_nothing(runner):
    alone = [serve(runner, [each], **LIMITS)[0] for each in requests(5)]
    assert serve(runner, requests(5), **LIMITS) == alone


@pytest.fixture
def seen(monkeypatch) -> list[torch.Tensor]:
    """Logits that samplers were given outside of recorded steps."""
    seen = []
    launch = Sampler.launch

    def watched(sampler, logits, *others):
        seen.append(logits.clone())
        return launch(sampler, logits, *others)

    monkeypatch.setattr(Sampler, "launch", watched)
    return seen


def test_logits_of_a_replay_are_those_of_the_step_to_the_last_bit(runner, seen):
    submits = [request(number, [5, number, 7], 6, logprobs=1) for number in range(3)]
    eagerly(runner, submits)
    eager, seen[:] = seen[:], []
    serve(runner, submits, **LIMITS)
    assert len(seen) == len(eager) == 6
    assert all(torch.equal(a, b) for a, b in zip(seen, eager, strict=True))


@pytest.mark.parametrize(
    ("settings", "ways"),
    [
        ([{}], 0),
        ([{"temperature": 1.0}], PLAIN),
        ([{"temperature": 1.0, "top_k": 9, "top_p": 0.9}, {"temperature": 2.0, "top_k": 64}], FILTERED),
        ([{}, {"temperature": 1.0}, {"temperature": 3.0, "top_k": 5, "min_p": 0.1}], PLAIN | FILTERED),
        ([{"temperature": 1.0, "min_tokens": 3, "stop_ids": [0]}], PLAIN),
        ([{"temperature": 1.0, "top_p": 0.9}], None),
        ([{"temperature": 1.0}, {"temperature": 1.0, "top_k": 65}], None),
        ([{}, {"logprobs": 0}], None),
        ([{}, {"presence_penalty": 0.3}], None),
        ([{"logit_bias": {3: 1.0}}], None),
    ],
)
def test_plain_settings_are_drawn_within_the_step_as_they_are_outside_of_it(
    runner, seen, monkeypatch, settings, ways
):
    submits = [request(i, [5, i, 7], 12, **each, seed=i) for i, each in enumerate(settings)]
    monkeypatch.setattr(Sampler, "ways", lambda sampler, slots: None)
    outside = serve(runner, submits, **LIMITS)
    monkeypatch.undo()
    found = []
    plain = Sampler.ways
    monkeypatch.setattr(Sampler, "ways", lambda *given: found.append(plain(*given)) or found[-1])
    assert serve(runner, submits, **LIMITS) == outside
    assert found[-1] == ways
    assert (runner.graphs.replay(Kind(runner.graphs.rows(len(submits)), ways)).tokens is None) == (
        ways is None
    )


def test_a_vocabulary_may_be_smaller_than_what_is_sorted():
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    settings = [(1.0, 3.0, 1.0, 0.0, point) for point in (0.0, 0.3, 0.6, 0.9, 0.999)]
    wishes = Wishes.of(torch.tensor(settings, dtype=torch.float64).t().contiguous().flatten())
    found = choose(logits.clone(), wishes, FILTERED, block_rows=2)
    assert (logits.topk(3).indices == found[:, None]).any(dim=1).all()


def test_what_brings_something_to_the_device_cannot_be_recorded():
    with pytest.raises(RuntimeError, match="from the host"):
        Recorder().capture(lambda: torch.zeros(2) + torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize("dtype", [pytest.param(each, marks=GPU) for each in ("float32", "bfloat16")])
@pytest.mark.parametrize("name", ["qwen3_untied_biased", "gemma3"])
def test_a_gpu_replays_what_it_would_have_computed(tiny, seen, monkeypatch, name, dtype):
    runner = make_runner(tiny(name).folder, device="cuda:0", dtype=dtype)
    runner.load(lambda fraction, message: None)
    seen.clear()  # of what a load tries
    ways = Sampler.ways
    monkeypatch.setattr(Sampler, "ways", lambda sampler, slots: None)  # so that all logits are seen
    expected = eagerly(runner, requests())
    eager, seen[:] = seen[:], []
    assert serve(runner, requests(), **LIMITS) == expected
    assert len(seen) == len(eager) > 0
    assert all(torch.equal(a, b) for a, b in zip(seen, eager, strict=True))
    monkeypatch.setattr(Sampler, "ways", ways)
    assert serve(runner, requests(), **LIMITS) == expected
    greedy = [request(number, [5, number, 7], 8) for number in range(3)]
    assert serve(runner, greedy, **LIMITS) == eagerly(runner, greedy)
    assert runner.graphs.replay(Kind(4, 0)) is not None
    runner.close()


def test_a_step_that_cannot_be_recorded_is_computed_and_so_are_all_of_its_kind(runner, recorder, caplog):
    submits = [request(number, [5, number, 7], 20) for number in range(3)]
    expected = serve(runner, submits, **LIMITS)
    runner.graphs.release()
    assert recorder.released == 1
    recorder.fails, recorder.captured, recorder.replayed = True, 0, 0
    with caplog.at_level(logging.WARNING):
        assert serve(runner, submits, **LIMITS) == expected
        assert serve(runner, submits, **LIMITS) == expected
    [line] = [record.getMessage() for record in caplog.records if "recorded" in record.getMessage()]
    assert "not permitted when stream is capturing" in line
    assert "and so on" not in line
    assert recorder.replayed == 0
    recorder.fails = False


def test_where_the_draw_cannot_be_recorded_the_rest_of_the_step_is(runner, recorder, monkeypatch):
    submits = [request(number, [5, number, 7], 20) for number in range(3)]
    expected = serve(runner, submits, **LIMITS)
    runner.graphs.release()
    recorder.replayed = 0
    plain = model_runner.choose
    monkeypatch.setattr(
        model_runner, "choose", lambda *given: plain(*given) if given[0].isfinite().all().item() else None
    )
    assert serve(runner, submits, **LIMITS) == expected
    assert runner.graphs.replay(Kind(4, 0)) is None
    assert runner.graphs.replay(Kind(4, None)) is not None
    assert recorder.replayed > 10


def test_what_a_graph_cannot_hold_is_computed_as_it_comes(runner, recorder):
    """Prompts, their log-probabilities, and hidden states that are asked for."""
    session = Session(runner, **LIMITS)
    submits = [request(number, [5, 6, 7], 1, prompt_logprobs=2) for number in range(3)]
    pooling = request(9, [4, 5], 1)
    pooling.pooling = "mean"
    answers = session.answer([*submits, pooling])
    session.end()
    assert all(len(answer.prompt_logprobs) == 2 for answer in answers[:3])
    assert answers[3].embedding
    assert recorder.captured == recorder.replayed == 0


def test_steps_with_an_adapter_are_computed_and_those_without_are_replayed_beside_it(
    tiny, recorder, tmp_path
):
    folder, oracle = tiny("qwen3_tied")
    write_adapter(tmp_path / "adapter", oracle)
    runner = make_runner(folder, [tmp_path / "adapter"], **LIMITS)
    runner.load(lambda fraction, message: None)
    read(runner, 1)
    plain = [request(number, [5, number, 7], 9 + 8 * number, temperature=1.0, seed=9) for number in range(3)]
    submits = [*plain, *(with_adapter(replace_id(each), 1) for each in plain)]
    expected = eagerly(runner, submits, max_sequences=8)
    assert expected[:3] != expected[3:]
    recorder.captured = recorder.replayed = 0
    assert serve(runner, submits, max_sequences=8, **LIMITS) == expected
    assert recorder.captured == 0, "one has an adapter to the end"
    assert serve(runner, [*submits[:3], *submits[3:4]], max_sequences=8, **LIMITS) == expected[:4]
    assert recorder.replayed > 5
    runner.close()


def test_answers_to_images_are_replayed_and_the_images_are_not(recorder, tmp_path):
    seeing.write(tmp_path)
    parts = [(5, seeing.picture(3, 2), 7), (2, seeing.picture(2, 5, 1), 4)]
    with seeing.loaded(tmp_path, **LIMITS | {"context_length": 160}) as runner:
        found = []
        for runner.graphs.paused in (True, False):
            answers, _ = seeing.serve(runner, [(each, 12) for each in parts], **LIMITS)
            found.append([answer.token_ids for answer in answers])
    assert found[0] == found[1]
    assert recorder.replayed > 5


def test_nothing_is_recorded_where_states_cannot_be(tiny, recorder):
    runner = make_runner(tiny("lfm2").folder, **LIMITS)
    runner.load(lambda fraction, message: None)
    [tokens] = serve(runner, [request(1, [5, 6], 10)], **LIMITS)
    assert (runner.graphs, recorder.captured, len(tokens)) == (None, 0, 10)
    runner.close()


def test_nothing_is_recorded_where_attention_cannot_be(tiny, monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(model_runner, "graph_device", lambda device: recorder)
    runner = make_runner(tiny("qwen3_tied").folder)
    runner.load(lambda fraction, message: None)
    serve(runner, [request(1, [5, 6], 10)])
    assert (runner.graphs, recorder.captured) == (None, 0)
    runner.close()


def test_what_is_met_once_is_computed_and_recorded_when_it_comes_again():
    recorder = Recorder()
    graphs, x = Graphs(recorder, 4), torch.zeros(1)
    seen = []
    for _ in range(3):
        graphs.run(Kind(4, 0), lambda: x.add_(1))
        seen.append((recorder.captured, recorder.replayed, int(x)))
    assert seen == [(0, 0, 1), (1, 1, 2), (1, 2, 3)]


def test_recordings_go_with_the_engine(tiny, recorder):
    runner = make_runner(tiny("qwen3_tied").folder, **LIMITS)
    runner.load(lambda fraction, message: None)
    serve(runner, [request(1, [5, 6], 10)])
    assert (recorder.captured, recorder.released) == (1, 0)
    runner.close()
    assert recorder.released == 1


def test_recordings_take_no_more_memory_than_they_may():
    recorder = Recorder()  # each takes a byte
    graphs = Graphs(recorder, 8, limit=2)
    for _ in range(3):
        for rows in range(5):
            graphs.run(Kind(rows, 0), lambda: torch.zeros(1))
    assert recorder.captured == 2
    graphs = Graphs(recorder, 8)
    for _ in range(2):
        for rows in range(MOST_GRAPHS + 5):
            graphs.run(Kind(rows, 0), lambda: torch.zeros(1))
    assert recorder.captured == 2 + MOST_GRAPHS


def test_small_steps_are_recorded_though_a_large_one_took_all_the_memory_that_they_may():
    recorder = Recorder()  # each takes a byte
    graphs = Graphs(recorder, 8, limit=1)

    def is_recorded(kind: Kind) -> bool:
        for _ in range(2):
            graphs.run(kind, lambda: torch.zeros(1))
        return graphs.replay(kind) is not None

    assert is_recorded(Kind(8, PLAIN))
    assert is_recorded(Kind(4, PLAIN))
    assert is_recorded(Kind(8, 0))
    assert is_recorded(Kind(8, None))
    assert not is_recorded(Kind(16, 0))
    assert not is_recorded(Kind(1, FILTERED))


@pytest.mark.parametrize("most", [1, 2, 3, 7, 16, 32, 100, 256, 512])
def test_few_numbers_of_rows_come_near_to_every_number(most):
    found = sizes(most)
    assert found[-1] == most
    assert found == sorted(set(found))
    assert len(found) <= 36
    graphs = Graphs(Recorder(), most)
    for count in range(1, most + 1):
        assert count <= graphs.rows(count) <= max(count * 9 // 8, count + 7, 2 * (count - 1))
