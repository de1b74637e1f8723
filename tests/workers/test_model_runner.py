"""What else goes on in the engine never changes an answer."""

from __future__ import annotations

import gc
import weakref
from array import array

import pytest
import torch

from ipc.errors import Code, CortexError
from ipc.worker_messages import SamplingParams
from tests.workers.engines import (
    DEVICES,
    VOCABULARY,
    Session,
    make_runner,
    make_spec,
    request,
    serve,
    unlike_requests,
)
from workers.execution import model_runner
from workers.execution.device import check_builds, check_type
from workers.step.engine import OutOfDeviceMemory
from workers.step.plan import NewSequence, Scheduled, StepPlan
from workers.weights.loader import WeightFiles


@pytest.fixture(scope="module", params=DEVICES)
def runner(request, tiny):
    runner = make_runner(tiny("qwen3_untied_biased").folder, device=request.param)
    runner.load(lambda fraction, message: None)
    yield runner
    runner.close()


def alone(runner, requests):
    outputs = []
    for submit in requests:
        outputs += serve(runner, [submit])
    return outputs


@pytest.mark.parametrize("count", [1, 2, 5, 16])
def test_batched_answers_equal_answers_alone(runner, count):
    requests = list(unlike_requests(count))
    expected = alone(runner, requests)
    assert serve(runner, requests) == expected


def test_the_last_layer_computes_no_more_than_what_is_read(runner, monkeypatch):
    """Of a prompt only the last token is, and of a part before its end no token."""
    rows, last = [], runner.model.blocks[-1]
    mlp = last.mlp
    monkeypatch.setattr(last, "mlp", lambda x: rows.append(len(x)) or mlp(x))
    expected = serve(runner, [request(0, [*range(40)], 3)])
    assert rows == [1, 1, 1]
    rows.clear()
    assert serve(runner, [request(0, [*range(40)], 3)], max_step_tokens=16) == expected
    assert rows == [1] * 5
    rows.clear()
    serve(runner, [request(0, [*range(40)], 1, prompt_logprobs=1)])
    assert rows == [40]


def test_preempted_sequences_go_on_as_if_nothing_had_happened(runner):
    requests = [*unlike_requests(8)]
    for submit in requests:
        submit.prompt = submit.prompt[: 4 * 20]
        submit.max_tokens = 100
    expected = alone(runner, requests)
    plans = []
    send = runner.send
    runner.send = lambda plan: plans.append(plan) or send(plan)
    outputs = serve(runner, requests, kv_pages=12)
    del runner.send
    assert sum(len(plan.added) for plan in plans) >= len(requests) + 3, "nothing was preempted"
    assert outputs == expected


def test_sequences_that_began_elsewhere_go_on_as_if_they_had_not(runner):
    requests = [*unlike_requests(16)]
    expected = alone(runner, requests)
    cuts = [number % len(output) for number, output in enumerate(expected)]
    for submit, output, cut in zip(requests, expected, cuts, strict=True):
        submit.output = array("I", output[:cut]).tobytes()
    rest = [output[cut:] for output, cut in zip(expected, cuts, strict=True)]
    assert serve(runner, requests) == rest


def test_answers_do_not_depend_on_what_pages_held_before(runner):
    requests = list(unlike_requests(6))
    before = alone(runner, requests)
    for layer in runner.cache.layers.values():
        layer.fill_(1e4)
    assert alone(runner, requests) == before


def test_a_seed_draws_the_same_and_another_seed_draws_something_else(runner):
    def draw(seed):
        return serve(runner, [request(1, [5, 6, 7], 30, temperature=5.0, seed=seed)])

    assert draw(1) == draw(1) != draw(2)


def test_load_tells_what_it_holds_and_how_far_it_is(tiny):
    heard = []
    runner = make_runner(tiny("llama_untied_linear").folder, kv_pages=3)
    loaded = runner.load(lambda fraction, message: heard.append(fraction))
    parameters = sum(parameter.numel() for parameter in tiny("llama_untied_linear").oracle.parameters())
    page_bytes = 2 * 2 * 2 * 32 * 12 * 4  # layers, keys and values, heads, tokens, head_dim, float32
    assert (loaded.memory.weights, loaded.memory.kv_pool) == (4 * parameters, 3 * page_bytes)
    assert loaded.kv_pages == 3
    assert heard == sorted(heard)
    assert heard[-1] == 1.0


def fail(runner, monkeypatch, *calls: int, method: str = "logits") -> None:
    """Let some calls of a method of the model ask for more memory than there is."""
    number, plain = 0, getattr(runner.model, method)

    def greedy(x: torch.Tensor) -> torch.Tensor:
        nonlocal number
        number += 1
        return torch.empty(1 << 55, device=x.device) if number in calls else plain(x)

    monkeypatch.setattr(runner.model, method, greedy)
    compute_all(runner, monkeypatch)


def compute_all(runner, monkeypatch) -> None:
    """Let no step be replayed, which would call no method of the model."""
    if runner.graphs is not None:
        monkeypatch.setattr(runner.graphs, "paused", True)


@pytest.mark.parametrize("method", ["logits", "norm"])
def test_steps_without_memory_change_no_answer(runner, monkeypatch, method):
    requests = list(unlike_requests(8))
    requests[2].params = SamplingParams(0.0, prompt_logprobs=2)
    requests[3].pooling, requests[3].max_tokens = "mean", 1
    expected = []
    for each in requests:
        session = Session(runner)
        expected += session.answer([each])
        session.end()
    fail(runner, monkeypatch, 2, 7, 19, 30, method=method)
    session = Session(runner)
    answers = session.answer(requests, seed=4)
    session.end()
    assert session.scheduler.statistics()["out_of_memory"] == 4
    for ours, alone in zip(answers, expected, strict=True):
        assert (ours.token_ids, ours.finish) == (alone.token_ids, alone.finish)
        assert [entry.token for entry in ours.prompt_logprobs] == [e.token for e in alone.prompt_logprobs]
        assert [entry.logprob for entry in ours.prompt_logprobs] == pytest.approx(
            [entry.logprob for entry in alone.prompt_logprobs], abs=1e-4
        )


def test_a_rank_of_several_does_not_survive_a_lack_of_memory(runner, monkeypatch):
    """The others wait in a collective."""
    plan = StepPlan(1, [], [NewSequence(0, 1, bytes(4), SamplingParams())], [Scheduled(0, 1, [[0]])])
    fail(runner, monkeypatch, 1, 2)
    with pytest.raises(OutOfDeviceMemory, match="memory"):
        runner.execute(plan)
    runner.empty()
    monkeypatch.setattr(runner.group, "size", 2)
    monkeypatch.setattr(runner.group, "all_reduce", lambda x: x)
    with pytest.raises(RuntimeError, match="memory"):
        runner.execute(plan)
    runner.empty()


def test_only_a_lack_of_memory_is_taken_for_one(runner, monkeypatch):
    monkeypatch.setattr(runner.model, "logits", lambda x: x @ torch.ones(1, 3, device=x.device))
    compute_all(runner, monkeypatch)
    plan = StepPlan(1, [], [NewSequence(0, 1, bytes(4), SamplingParams())], [Scheduled(0, 1, [[0]])])
    with pytest.raises(RuntimeError, match="shapes"):
        runner.execute(plan)
    runner.empty()


def test_a_choice_that_is_impossible_fails_one_request_and_no_other(runner):
    good = list(unlike_requests(3))
    bad = request(7, [5, 6], 9, allowed_token_ids=[4], bad_words=[[4]])
    session = Session(runner)
    *answers, failed = session.answer([*good, bad])
    session.end()
    assert (failed.finish, failed.code, failed.token_ids) == ("error", Code.BAD_REQUEST, [])
    assert [answer.token_ids for answer in answers] == alone(runner, good)


def test_numbers_that_are_not_finite_end_a_request_with_an_error(runner, monkeypatch):
    plain = runner.model.logits
    monkeypatch.setattr(runner.model, "logits", lambda x: plain(x) * float("nan"))
    session = Session(runner)
    [answer] = session.answer([request(1, [5, 6, 7], 4)])
    session.end()
    assert (answer.finish, answer.token_ids) == ("error", [])
    assert "not finite" in answer.message


def test_nothing_of_a_model_is_left_when_it_is_closed(tiny):
    runner = make_runner(tiny("qwen3_tied").folder)
    runner.load(lambda fraction, message: None)
    serve(runner, list(unlike_requests(3)))
    held = [weakref.ref(runner.model), weakref.ref(runner.cache), weakref.ref(runner.cache.layers[0])]
    runner.close()
    gc.collect()
    assert [reference() for reference in held] == [None] * 3


def test_a_prompt_that_was_in_pages_already_is_not_computed_again(runner):
    fed = []
    prompt = [(i * 7) % VOCABULARY for i in range(100)]
    session = Session(runner)
    send = runner.send
    runner.send = lambda plan: fed.append(sum(e.num_tokens for e in plan.scheduled)) or send(plan)
    first = session.answer([request(1, prompt, 1)])
    second = session.answer([request(2, prompt, 1)])
    del runner.send
    session.end()
    assert first[0].token_ids == second[0].token_ids
    assert (sum(fed), second[0].cached_tokens) == (100 + 4, 96)


@pytest.mark.parametrize(
    "words",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "can't allocate memory",
        "Triton Error [CUDA]: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`",
        "CUDA error: out of memory",
    ],
)
def test_memory_that_runs_out_in_a_load_is_insufficient_and_no_fault_of_the_checkpoint(
    tiny, monkeypatch, words
):
    def full(*_: object) -> None:
        raise (torch.OutOfMemoryError if words.startswith("CUDA out") else RuntimeError)(words)

    monkeypatch.setattr(WeightFiles, "load", full)
    runner = make_runner(tiny("qwen3_tied").folder)
    with pytest.raises(CortexError, match=r"ran out of memory while .* was loaded") as caught:
        runner.load(lambda fraction, message: None)
    assert f"was loaded: {words}" in caught.value.message
    assert caught.value.code == Code.INSUFFICIENT_MEMORY
    runner.close()


def test_any_other_fault_of_a_load_stays_what_it_is(tiny, monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError("the driver is gone")

    monkeypatch.setattr(WeightFiles, "load", broken)
    with pytest.raises(RuntimeError, match="the driver is gone"):
        make_runner(tiny("qwen3_tied").folder).load(lambda fraction, message: None)


def test_memory_that_trimming_does_not_give_back_is_not_trimmed_for_again(runner, monkeypatch):
    trimmed = []
    monkeypatch.setattr(model_runner, "trim", trimmed.append)
    monkeypatch.setattr(model_runner, "held", lambda device: 2)
    monkeypatch.setattr(runner, "most_bytes", 1)
    session = Session(runner)
    session.answer([request(1, [5, 6, 7], 3 * model_runner.CHECKED_STEPS)])
    session.end()
    assert trimmed == [runner.spec.device]


def test_a_gpu_without_bfloat16_is_refused_with_the_types_that_it_has():
    check_type((8, 6), make_spec(dtype="bfloat16"))
    check_type((7, 5), make_spec(dtype="float16"))
    with pytest.raises(CortexError, match="set `dtype: float16`, or `float32`, for test"):
        check_type((7, 5), make_spec(dtype="bfloat16", device="cuda:0"))


def test_a_gpu_without_what_builds_its_kernels_is_refused_by_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("CC", "cc")
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path)})
    check_builds("cuda:0")
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(CortexError, match=r"no C compiler.*apt install gcc python3-dev"):
        check_builds("cuda:0")
    (tmp_path / "Python.h").unlink()
    with pytest.raises(CortexError, match=r"C compiler and no Python's headers \(.*Python\.h\)"):
        check_builds("cuda:0")
