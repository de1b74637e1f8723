"""The program that waits for a GPU works, as far as can be known without one."""

import json
import sys
import time
from types import SimpleNamespace

import msgspec
import pytest
import torch

from benchmarks import all_reduce, gpu, gpu_parts, mixed
from benchmarks.driver import write_hollow
from benchmarks.gpu import main, report, run_part
from benchmarks.gpu_parts import Result
from benchmarks.quantised_models import write_awq, write_fp8, write_gguf
from benchmarks.roofline import active, of_each_token
from benchmarks.shapes import MODELS, TINY_BLOCKS
from workers.checkpoints.experts import Experts
from workers.checkpoints.reading import read_card
from workers.checkpoints.shares import ALONE
from workers.execution.model_runner import ModelRunner
from workers.kernels import launch


@pytest.fixture
def benchmark(monkeypatch):
    """Calls the program with such arguments; its exit code."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["benchmarks.gpu", *map(str, arguments)])
        return main()

    return call


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line(benchmark, capsys, tmp_path):
    assert benchmark(tmp_path / "out") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "no GPU" in line
    assert not (tmp_path / "out").exists()


def test_it_can_be_rehearsed_on_a_cpu(benchmark, capsys, tmp_path):
    assert benchmark(tmp_path, "--device", "cpu", "--only", "engine") == 0, capsys.readouterr().out
    results = {each["name"]: each for each in json.loads((tmp_path / "gpu.json").read_text())["results"]}
    assert results["memory without its pool"]["figures"]["measured"] > 0
    for name in ("load", "prefill 64", "decode 1 at once", "decode 8 at once"):
        figures = results[name]["figures"]
        assert figures["share"] == pytest.approx(figures["limit"] / figures["seconds"])
        assert f"ok      {name} " in (tmp_path / "gpu.txt").read_text()


@pytest.mark.parametrize("shape", [MODELS[name].tiny for name in ("large", "experts", "mamba")])
def test_a_large_model_needs_no_disk_for_its_weights(tmp_path, shape):
    card = read_card(write_hollow(tmp_path, shape))
    assert (tmp_path / "model.safetensors").stat().st_blocks * 512 < 65_536 < sum(card.bytes_per_rank(ALONE))


@pytest.mark.parametrize("part", ["large", "experts", "mamba", "hybrid"])
def test_a_large_model_can_be_rehearsed(tmp_path, part):
    results = {result.name: result for result in gpu_parts.PARTS[part]("cpu", tmp_path)}
    assert all(result.part == part for result in results.values())
    assert results["decode 8 at once"].figures["share"] > 0
    assert results["decode 1 behind 33"].figures["growth"] > 0


def test_so_can_requests_of_all_lengths_beside_transformers(tmp_path):
    results = {result.name: result for result in gpu_parts.mixed("cpu", tmp_path)}
    for count in (1, 8):
        ours, theirs = (results[f"tiny, {count} at once{peer}"] for peer in ("", ", transformers"))
        assert theirs.figures["ratio"] == pytest.approx(theirs.figures["seconds"] / ours.figures["seconds"])


DEPENDENT = [f"decode of {name}, 1 at once" for name in ("engine", "experts", "gguf")]


def test_so_can_dependent_launches(tmp_path):
    written = msgspec.json.encode([*gpu_parts.dependent("cpu", tmp_path)])
    results = msgspec.json.decode(written, type=list[Result])
    assert [each.name for each in results] == DEPENDENT
    for each in results:
        assert each.ok
        assert each.value.endswith("ask for no weights; equal to the bit")
        for way in ("asks", "dependent"):
            assert each.figures[f"{way} ratio"] == each.figures[way] / each.figures["without"]


def test_dependent_launches_that_answer_otherwise_are_a_failure(tmp_path, monkeypatch):
    execute = ModelRunner.execute

    def too_early(self, plan):
        result = execute(self, plan)
        for extra in result.extras.values() if launch.dependent else ():
            extra.logprobs.logprob += 1e-6
        return result

    monkeypatch.setattr(ModelRunner, "execute", too_early)
    results = {
        result.name: (result.ok, result.value[-20:]) for result in gpu_parts.dependent("cpu", tmp_path)
    }
    assert results == dict.fromkeys(DEPENDENT, (False, "2 answers, 1 without"))
    assert launch.dependent


def test_a_peer_that_fails_leaves_what_is_ours(tmp_path, monkeypatch):
    monkeypatch.setattr(mixed, "Peer", lambda *given, **settings: 1 / 0)
    results = {result.name: result for result in gpu_parts.mixed("cpu", tmp_path)}
    assert results["tiny, 8 at once"].figures["seconds"] > 0
    assert (
        results["tiny, 8 at once, transformers"].value == "not measured: ZeroDivisionError: division by zero"
    )


def test_what_has_no_room_on_a_card_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_parts, "measure_limits", lambda device: (1.0, 1.0, 1.0))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (12 << 30, 12 << 30))
    [*_, result] = gpu_parts.PARTS["14b"]("cuda:0", tmp_path)
    assert (result.ok, result.value[:22]) == (True, "not measured: it takes")
    assert "12.9 are free" in result.value


def test_parts_that_are_not_reached_are_named_and_those_before_are_kept(benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "SECONDS", 100.0)
    monkeypatch.setattr(gpu, "LEAST", 20.0)
    clock = iter([0.0, 0.0, 0.0, 90.0, *[91.0] * 9])
    monkeypatch.setattr(gpu.time, "monotonic", lambda: next(clock))
    seen = []

    def run(name, command, found, seconds):
        seen.append((name, seconds, command[-2:]))
        return [Result(name, "load", True, "1 s")]

    monkeypatch.setattr(gpu, "run_part", run)
    assert benchmark(tmp_path, "--device", "cpu", "--only", "fp8", "--only", "tests", "--only", "awq") == 0
    assert seen == [("fp8", 90.0, ["--until", "90.0"])]
    facts = json.loads((tmp_path / "gpu.json").read_text())["facts"]
    assert facts["not reached"] == "OUT --only tests --only awq"
    assert "fp8         ok      load  1 s" in (tmp_path / "gpu.txt").read_text()


def test_what_was_found_is_written_after_each_part(benchmark, tmp_path, monkeypatch):
    def run(name, command, found, seconds):
        if name == "awq":
            raise KeyboardInterrupt
        return [Result(name, "load", False, "ended with 1")]

    monkeypatch.setattr(gpu, "run_part", run)
    with pytest.raises(KeyboardInterrupt):
        benchmark(tmp_path, "--device", "cpu", "--only", "fp8", "--only", "awq")
    assert "FAILED fp8: load: ended with 1" in (tmp_path / "gpu.txt").read_text()


def test_tests_that_are_cut_tell_what_they_found(tmp_path, monkeypatch):
    script = (
        "import signal, sys, time\n"
        "print('began', flush=True)\n"
        "try: time.sleep(60)\n"
        "except KeyboardInterrupt:\n"
        "    name = next(each for each in sys.argv if each.startswith('--junitxml=')).partition('=')[2]\n"
        "    open(name, 'w').write('<s><testcase classname=\"a\" name=\"b\"/></s>')\n"
    )
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "$SCRIPT" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("SCRIPT", script)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(gpu_parts, "until", time.monotonic() + gpu_parts.LEAST + 2.0)
    [result] = gpu_parts.tests("cuda:0", tmp_path)
    assert result.value == "1 passed, 0 skipped, 0 failed, cut there for want of time"


def test_so_can_its_waking(tmp_path):
    results = {result.name: result for result in gpu_parts.waking("cpu", tmp_path)}
    names = ("load and park", "load", "wake", "wake again")
    assert [*results] == [f"{name} to first token" for name in names]
    for result in results.values():
        figures = result.figures
        assert figures["seconds"] == pytest.approx(figures["weights"] + figures["step"] + figures["token"])
        assert figures["limit"] > 0


def test_so_can_its_ranks(tmp_path):
    results = {result.name: result for result in gpu_parts.ranks("cpu", tmp_path)}
    for size in (8, 64):
        assert results.pop(f"all-reduce of {size} KiB").figures["library"] > 0
    assert [*results] == ["load", "load again", "prefill", "decode 1 at once"]
    assert all(0 < result.figures["limit"] < result.figures["seconds"] for result in results.values())
    assert "elsewhere: 35 to 46 tokens/s" in results["decode 1 at once"].value


def test_with_one_gpu_what_wants_two_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(all_reduce, "wrong", lambda cards: [[], [3, 4]])
    sums, result = gpu_parts.ranks("cuda:0", tmp_path)
    assert (result.ok, result.value) == (True, "not measured: it wants 2 GPUs, and here is 1")
    assert (sums.ok, sums.name) == (False, "small sums of two ranks on 1 GPU")
    assert sums.value == "2 wrong of 240"


@pytest.mark.parametrize("ours", [True, False])
def test_small_sums_of_ranks_stand_beside_the_library_s(monkeypatch, ours):
    found = {"library": {8 << 10: 24e-6, 64 << 10: 40e-6}}
    if ours:
        found["ours"] = {8 << 10: 6e-6, 64 << 10: 20e-6}
    monkeypatch.setattr(all_reduce, "wrong", lambda cards: [[], []])
    monkeypatch.setattr(all_reduce, "rows", lambda kind: found)
    right, first, second = gpu_parts.small_sums("cuda:0", 2)
    assert right.ok
    assert (first.ok, second.ok) == (ours, ours)
    if ours:
        assert first.value == "library 24.0 µs, ours 6.0 µs: 4.00 times as fast"
        assert second.figures["ratio"] == pytest.approx(2.0)


@pytest.mark.parametrize(("part", "goal"), [("gguf", 0.5), ("fp8", 0.55), ("awq", 0.5), ("nvfp4", 0.5)])
def test_so_can_its_quantised_models(tmp_path, part, goal):
    results = {result.name: result for result in gpu_parts.PARTS[part]("cpu", tmp_path)}
    assert all(result.part == part for result in results.values())
    figures = results["decode 1 at once"].figures
    assert figures["share"] > 0
    assert figures["goal"] == goal
    assert "goal" not in results["decode 8 at once"].figures


@pytest.mark.parametrize(
    ("write", "formats", "of_layers", "head"),
    [
        (write_gguf, {"Q4_K", "Q6_K"}, 144 / 256, 210 / 256),
        (write_fp8, {"FP8_128"}, 132 / 128, 2),
        (write_awq, {"INT4_128"}, 68 / 128, 2),
    ],
    ids=["gguf", "fp8", "awq"],
)
def test_their_weights_are_in_the_format_that_is_measured(tmp_path, write, formats, of_layers, head):
    card = read_card(write(tmp_path, TINY_BLOCKS))
    assert set(card.formats(ALONE).values()) == formats
    [weights] = card.bytes_per_rank(ALONE)
    read, numbers = of_each_token(card, weights)
    layers, vocabulary, norms = (
        2 * (2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 512),
        1024 * 256,
        5 * 256 + 4 * 64,
    )
    assert numbers == layers + vocabulary + norms
    assert read == layers * of_layers + vocabulary * head + norms * 2


def test_a_step_reads_the_experts_that_its_tokens_choose():
    mixture = Experts(count=8, chosen=2, intermediate_size=10, layers=(0, 1))
    config = SimpleNamespace(experts=mixture, hidden_size=4)
    each = 2 * 3 * 4 * 10 * 2
    assert active(config, 100 * each, 1) == 94 * each
    assert active(config, 100 * each, 2) == 95.5 * each
    assert active(config, 100 * each, 500) == pytest.approx(100 * each)


def part(code, tmp_path, seconds=30.0):
    return run_part("engine", [sys.executable, "-c", code, str(tmp_path)], tmp_path / "found", seconds)


FOUND = [Result("engine", "load", True, "1 s")]
WRITE = (
    "import os, sys, time\n"
    f"open(sys.argv[1] + '/found', 'w').write({msgspec.json.encode(FOUND).decode()!r})\n"
)


@pytest.mark.parametrize(
    ("code", "seconds", "problem"),
    [
        ("os.abort()", 30.0, "ended with -6"),
        ("sys.exit('it is broken')", 30.0, "ended with 1"),
        ("time.sleep(60)", 1.0, "not done within 1 s"),
    ],
)
def test_a_part_that_fails_keeps_what_it_found(tmp_path, code, seconds, problem):
    kept, failure = part(WRITE + code, tmp_path, seconds)
    assert kept == FOUND[0]
    assert (failure.ok, failure.value) == (False, problem)


def test_a_part_that_says_nothing_is_a_failure(tmp_path):
    [failure] = part("print('hello')", tmp_path)
    assert not failure.ok
    assert "hello" in failure.detail


def test_failures_come_first_and_in_full():
    text = report([*FOUND, Result("tests", "test_x", False, "failure", detail="assert 1 == 2")], {"a": "b"})
    assert text.index("1 failures") < text.index("assert 1 == 2") < text.index("ok      load")
