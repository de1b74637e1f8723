"""What each part of `benchmarks.gpu` measures: it gives its results one by one, as they are found."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path

import msgspec
import torch
from transformers import Qwen3_5TextConfig, Qwen3Config

from benchmarks import one_rank
from benchmarks.driver import Driver, fill, write_hollow
from benchmarks.engine import SHAPE
from benchmarks.roofline import active, measure_limits, median, of_each_token
from benchmarks.shapes import EIGHT_BILLION, MODELS, TINY, TINY_STATES, TWENTY_SEVEN_BILLION
from ipc.worker_messages import PAGE_SIZE, WorkerSpec
from neuron.memory.step_bytes import UNMEASURED_BYTES, Overhead
from workers.checkpoints.caches import state_bytes
from workers.checkpoints.card import ModelCard
from workers.checkpoints.reading import read_card
from workers.checkpoints.shares import ALONE, WHOLE
from workers.execution.memory import held
from workers.execution.model_runner import ModelRunner
from workers.step.pages import pages_for

ROOT = Path(__file__).parents[1]
LEAST = 15.0  # seconds in which a part finds anything
GOALS = {
    "engine": 0.25,
    "large": 0.70,
    "experts": 0.45,
    "gguf": 0.50,
    "fp8": 0.55,
    "awq": 0.50,
    "nvfp4": 0.50,
    "hybrid": 0.70,
    "4b": 0.60,
    "14b": 0.78,
}  # of the limit: the decode of one sequence
PLAN_ERROR = 1.2  # measured memory over planned, at most

CONTEXT = {"cpu": 64, "cuda": 512}  # tokens before the first decode step
PROMPTS = {"cpu": (64,), "cuda": (128, 2048, 16_384)}
BATCHES = {"cpu": (1, 8), "cuda": (1, 8, 32, 128)}
STEPS = {"cpu": 4, "cuda": 16}  # decode steps in a row
MIXED = {"cpu": (1, 8), "cuda": (1, 256)}  # requests at once
GROWTH = 1.05  # a step behind a long context, over the short one's and the bytes that it reads more, at most
TWICE = 2.0  # as fast as the peer, in requests of all lengths
PEER = {"num_blocks": 200, "max_batch_tokens": 256}  # which it cannot find out on a CPU


class Result(msgspec.Struct):
    """One line of the report."""

    part: str
    name: str
    ok: bool
    value: str
    figures: dict[str, float] = {}
    detail: str = ""  # of a failure


def tests(device: str, out: Path) -> Iterator[Result]:
    """What pytest says of each test that asks for a GPU."""
    report = out / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--continue-on-collection-errors"]
    with (out / "tests.txt").open("w") as log:
        command += [f"--junitxml={report}", "tests/workers"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        cut = ""
        try:
            process.wait(max(1.0, _left() - LEAST))
        except subprocess.TimeoutExpired:  # it writes what it has found, when it is asked to end
            cut = ", cut there for want of time"
            process.send_signal(signal.SIGINT)
            process.wait()
    passed = skipped = failed = 0
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        outcome = next((each for each in case if each.tag in ("failure", "error", "skipped")), None)
        if outcome is None:
            passed += 1
        elif outcome.tag == "skipped":
            skipped += 1
        else:
            failed += 1
            name = f"{case.get('classname')}.{case.get('name')}"
            yield Result("tests", name, False, outcome.tag, detail=outcome.text or "")
    figures = {"passed": passed, "skipped": skipped, "failed": failed}
    value = f"{passed} passed, {skipped} skipped, {failed} failed{cut}"
    yield Result("tests", "pytest -m gpu", bool(passed) or device == "cpu", value, figures)


def equalities(device: str, out: Path) -> Iterator[Result]:
    """How many requests are answered in each circumstance as they are alone."""
    from tests.workers.engines import Answer, make_runner
    from tests.workers.equalities import VOCABULARY, largest_step, observe
    from tests.workers.oracle import fill
    from tests.workers.tiny_models import qwen3

    def tokens(answer: Answer) -> object:
        return answer.token_ids

    def bits(answer: Answer) -> object:
        return msgspec.json.encode(replace(answer, cached_tokens=0))

    torch.manual_seed(11)
    model = qwen3(vocab_size=VOCABULARY, tie_word_embeddings=True)
    fill(model, std=0.3)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        shutil.copy(ROOT / "neuron/demo/tokenizer.json", folder)
        for dtype, exact in (("float32", False), ("bfloat16", True), ("bfloat16", False)):
            changes = {"dtype": dtype, "exact": exact, "max_step_tokens": largest_step(1)}
            runner = make_runner(folder, device=device, **changes)
            runner.load(lambda fraction, message: None)
            answers = observe(runner).answers
            runner.close()
            for name, given in answers.items():
                alone = answers["single" if name == "choices" else "alone"]
                if given is alone or name == "single":
                    continue
                told = bits if exact else tokens
                equal = sum(told(ours) == told(theirs) for ours, theirs in zip(given, alone, strict=True))
                figures = {"equal": equal, "requests": len(given)}
                ok = equal == len(given) or (dtype != "float32" and not exact)
                text = f"{equal} of {len(given)}{' to the last bit' * exact}"
                yield Result("equalities", f"{dtype}{' exact' * exact} {name}", ok, text, figures)


def of_kernels(part: str, device: str, out: Path) -> Iterator[Result]:
    """What `benchmarks.attention` or `benchmarks.products` finds; without a device there is nothing."""
    if device == "cpu":
        yield Result(part, "kernels", True, "want a GPU")
        return
    found = import_module(f"benchmarks.{part}")  # which wants Triton
    found.compile_all(device, min(60.0, _left() / 2))
    for name, ok, error in found.right(device):
        yield Result(part, f"{name} is right", ok, f"error {error:.1e}", {"error": error})
    for name, text, figures in found.rates(device, time.monotonic() + min(found.SECONDS, _left() - LEAST)):
        yield Result(part, name, True, text, figures)


def hybrid(device: str, out: Path) -> Iterator[Result]:
    """The engine's times with a Qwen3.5 in it, and a prompt through layers that keep states."""
    yield from of_shape("hybrid", device, out)
    from benchmarks.states import KINDS, measure

    for kind, shape in KINDS.items():
        found = measure(device, shape, 2048 if device == "cpu" else 16_384)
        text = ", ".join(f"{name} {took * 1e3:.1f} ms" for name, took in found.items() if name != "ratio")
        yield Result("hybrid", f"a prompt through the states of a layer of {kind}", True, text, found)


def mixed(device: str, out: Path) -> Iterator[Result]:
    """Requests of all lengths at once, and one alone, beside transformers' continuous batching."""
    from benchmarks.mixed import ANSWER, PROMPT, Peer, rows

    kind = device.partition(":")[0]
    small, counts = kind == "cpu", MIXED[kind]
    shapes = {"tiny": Qwen3Config(**TINY)} if small else {"0.6B": SHAPE, "8B": EIGHT_BILLION}
    for name, shape in shapes.items():
        with tempfile.TemporaryDirectory() as folder:
            longest, card = PROMPT[1] + ANSWER[1] + 1, read_card(write_hollow(Path(folder), shape))
            limits = {
                "context_length": longest,
                "max_sequences": max(counts),
                "max_step_tokens": 8192 >> 3 * small,
            }
            spec = spec_of(device, **limits, kv_pages=max(counts) * pages_for(longest) // 2)
            if reason := too_large(device, *planned(device, card, spec)):
                yield Result("mixed", name, True, reason)
                continue
            runner = ModelRunner(spec, card)
            loaded = runner.load(lambda fraction, message: None)
        if not small:
            fill(runner)
        found = []
        for count, requests, took in rows(runner, loaded, counts, small):
            found.append((count, requests, took))
            text = f"{took:.2f} s, {sum(each.answer for each in requests) / took:,.0f} tokens/s"
            yield Result("mixed", f"{name}, {count} at once", True, text, {"seconds": took})
        runner.close()
        if not small:
            torch.cuda.empty_cache()
        peer = None
        for count, requests, took in found:
            beside, goal = f"{name}, {count} at once, transformers", f" (goal: {TWICE:.0f})" * (count > 1)
            try:
                peer = peer or Peer(shape, device, **PEER if small else {})
                theirs = peer.serve(requests)
            except Exception as error:  # of the peer, whatever it is: ours is measured
                why = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
                yield Result("mixed", beside, True, f"not measured: {why}")
                continue
            text = f"{theirs:.2f} s: {theirs / took:.2f} times ours{goal}"
            yield Result("mixed", beside, True, text, {"seconds": theirs, "ratio": theirs / took})
        del peer
        if not small:
            torch.cuda.empty_cache()


def dependent(device: str, out: Path) -> Iterator[Result]:
    """Decode steps whose launches begin before the one before them has ended, beside such as do not."""
    from benchmarks.dependent import compare

    kind = device.partition(":")[0]
    small, context, steps = kind == "cpu", CONTEXT[kind], STEPS[kind]
    pages = pages_for(context + 2 * steps + 1)
    limits = {"context_length": PAGE_SIZE * pages, "max_sequences": 1, "max_step_tokens": context}
    spec = spec_of(device, **limits, kv_pages=pages_for(context) + pages)
    for name in ("engine", "experts", "gguf"):
        model = MODELS[name]
        with tempfile.TemporaryDirectory() as folder:
            card = read_card(model.write(Path(folder), model.tiny if small else model.shape))
            if reason := too_large(device, *planned(device, card, spec)):
                yield Result("dependent", name, True, reason)
                continue
            runner = ModelRunner(spec, card)
            runner.load(lambda fraction, message: None)
        if model.write is write_hollow and not small:
            fill(runner)
        found = compare(runner, pages, context, steps)
        runner.close()
        figures, text = {}, []
        for of, took in (("", found.seconds), ("graph ", found.graph)):
            if not math.isnan(took["without"]):
                ratios = {way: took[way] / took["without"] for way in ("asks", "dependent")}
                text.append(
                    f"{of}{took['asks'] * 1e3:.3f} ms, {ratios['asks']:.3f} of {took['without'] * 1e3:.3f} "
                    f"without, and {ratios['dependent']:.3f} where products ask for no weights"
                )
                figures |= {f"{of}{way}": seconds for way, seconds in took.items()}
                figures |= {f"{of}{way} ratio": ratio for way, ratio in ratios.items()}
        same = found.answers == 1
        text.append(
            "equal to the bit" if same else f"{found.answers} answers, {found.answers_without} without"
        )
        yield Result("dependent", f"decode of {name}, 1 at once", same, "; ".join(text), figures)
        del runner
        if not small:
            torch.cuda.empty_cache()


def waking(device: str, out: Path) -> Iterator[Result]:
    """From a model that is not there to its first token, beside what its bytes alone would take."""
    from benchmarks.waking import GOALS, rows

    small = device == "cpu"
    if reason := too_large(device, 18 << 30, 0):
        yield Result("waking", "model", True, reason)
        return
    _, _, copy = measure_limits(device)
    for name, limit, taken in rows(device, Qwen3Config(**TINY) if small else EIGHT_BILLION, copy):
        parts = ", ".join(f"{part} {seconds:.3f}" for part, seconds in taken._asdict().items())
        goal = f" (goal: under {GOALS[name]} s)" if name in GOALS else ""
        found = share("waking", f"{name} to first token", limit, sum(taken), f"{parts}{goal}")
        found.figures |= taken._asdict()
        yield found


def ranks(device: str, out: Path) -> Iterator[Result]:
    """What clients have of a 27B on two GPUs."""
    from benchmarks.ranks import FLOORS, RANKS, rows

    small, count = device == "cpu", torch.cuda.device_count()
    yield from small_sums(device, min(count, RANKS))
    if not small and count < RANKS:
        value = f"not measured: it wants {RANKS} GPUs, and here is {count}"
        yield Result("ranks", "a 27B on several ranks", True, value)
        return
    shape = Qwen3_5TextConfig(**(TINY | TINY_STATES if small else TWENTY_SEVEN_BILLION))
    limits = measure_limits(device)
    if not small:
        torch.cuda.empty_cache()  # the ranks have use for it
    with tempfile.TemporaryDirectory() as folder:
        for name, limit, seconds, rate in rows(Path(folder), device.partition(":")[0], shape, *limits):
            floor = f" (elsewhere: {FLOORS[name]})" if name in FLOORS else ""
            yield share("ranks", name, limit, seconds, f"{rate}{floor}")


def small_sums(device: str, cards: int) -> Iterator[Result]:
    """What ranks add themselves, right and beside the library; on one card two processes take turns at it."""
    from benchmarks import all_reduce

    small = device == "cpu"
    if not small:
        wrong = all_reduce.wrong(cards)
        text = f"{sum(map(len, wrong))} wrong of {len(wrong) * all_reduce.SUMS}"
        yield Result(
            "ranks", f"small sums of two ranks on {cards} GPU{'s' * (cards > 1)}", not any(wrong), text
        )
        if cards < all_reduce.RANKS:
            return
    found = all_reduce.rows(device.partition(":")[0])
    for size in all_reduce.SIZES:
        figures = {name: took[size] for name, took in found.items()}
        text = ", ".join(f"{name} {seconds * 1e6:.1f} µs" for name, seconds in figures.items())
        if "ours" in figures:
            figures["ratio"] = figures["library"] / figures["ours"]
            text = f"{text}: {figures['ratio']:.2f} times as fast"
        name = f"all-reduce of {size >> 10} KiB"
        yield Result("ranks", name, small or "ours" in figures, text, figures)


def of_shape(part: str, device: str, out: Path) -> Iterator[Result]:
    """What a model of that part's shape takes, beside what the device can do at most."""
    model, kind = MODELS[part], device.partition(":")[0]
    small, prompts, batches, context = kind == "cpu", PROMPTS[kind], BATCHES[kind], CONTEXT[kind]
    read, multiply, copy = measure_limits(device)
    if not small:
        torch.cuda.empty_cache()  # what that took is not the engine's
    for name, text, limit in (
        ("memory read", f"{read / 1e9:.0f} GB/s", read),
        ("bfloat16 product", f"{multiply / 1e12:.1f} TFLOP/s", multiply),
        ("copy from the host", f"{copy / 1e9:.1f} GB/s", copy),
    ):
        yield Result(part, f"limit: {name}", True, text, {"per_second": limit})
    pages = pages_for(context + len(batches) * 3 * STEPS[kind] + 1)
    with tempfile.TemporaryDirectory() as folder:
        card = read_card(model.write(Path(folder), model.tiny if small else model.shape))
        [weights] = card.bytes_per_rank(ALONE)
        spec = spec_of(
            device,
            context_length=max(4096, *prompts) + 1,
            max_sequences=max(batches),
            max_step_tokens=max(*prompts, context),
            kv_pages=pages_for(max(prompts)) + max(batches) * pages,
        )
        expected, pool = planned(device, card, spec)
        if reason := too_large(device, expected, pool):
            yield Result(part, "model", True, reason)
            return
        runner = ModelRunner(spec, card)
        began = time.perf_counter()
        loaded = runner.load(lambda fraction, message: None)
        took = time.perf_counter() - began
    if model.write is write_hollow and not small:  # on a CPU they may be packed, and zeros do for a rehearsal
        fill(runner)
    yield share(part, "load", weights / copy, took, f"{weights / took / 1e9:.2f} GB/s of weights")

    measured = loaded.memory.total - loaded.memory.kv_pool
    text = f"{measured / 1e6:.0f} MB measured, {expected / 1e6:.0f} MB planned"
    figures = {"measured": measured, "planned": expected}
    yield Result(part, "memory without its pool", measured <= PLAN_ERROR * expected, text, figures)

    driver = Driver(runner, pages)
    used, parameters = of_each_token(card, weights)
    head = card.config.vocab_size * card.config.hidden_size  # used for the last token alone
    for tokens in prompts:
        took = median(lambda tokens=tokens: driver.prompts([0], tokens), device)
        products = 2 * ((active(card.config, 2 * parameters, 1) / 2 - head) * tokens + head)
        limit = max(products / multiply, active(card.config, used, tokens) / read)
        yield share(part, f"prefill {tokens}", limit, took, f"{tokens / took:,.0f} tokens/s")
    driver.begin(max(batches), context)
    alone = limit_of_one = math.nan
    for count in batches:
        seen = count * (context * card.kv_bytes_per_token(WHOLE) + 2 * state_bytes(card.cache_groups(WHOLE)))
        limit = (active(card.config, used, count) + seen) / read
        goal = GOALS.get(part) if count == 1 else None
        took = driver.decode(count, STEPS[kind])
        alone = took if count == 1 else alone
        rate = f"{count / took:,.0f} tokens/s"
        limit_of_one = limit if count == 1 else limit_of_one
        found = share(part, f"decode {count} at once", limit, took, rate, goal)
        if (graph := driver.graph(count, STEPS[kind])) is not None:
            eager = driver.decode(count, STEPS[kind], eager=True)
            found.value += (
                f"; graph {graph * 1e3:.2f} ms, gap {1 - graph / took:.0%}, eager {eager * 1e3:.2f} ms"
            )
            found.figures |= {"graph": graph, "gap": 1 - graph / took, "eager": eager}
        yield found
    behind = max(prompts) - PAGE_SIZE + 1  # so that its last page has room for the steps
    runner.empty()
    driver.prompts([0], behind)
    took, more = driver.decode(1, STEPS[kind]), (behind - context) * card.kv_bytes_per_token(WHOLE) / read
    found = share(part, f"decode 1 behind {behind}", limit_of_one + more, took, f"{1 / took:,.0f} tokens/s")
    found.value += f"; {took / (alone + more):.3f} of a short step and its bytes (goal: {GROWTH:.2f} at most)"
    found.figures["growth"] = took / (alone + more)
    yield found
    runner.close()


def spec_of(device: str, **limits: int) -> WorkerSpec:
    """A worker of one rank there, on as many threads as this process may have."""
    return one_rank.spec_of(device=device, threads=len(os.sched_getaffinity(0)), **limits)


def planned(device: str, card: ModelCard, spec: WorkerSpec) -> tuple[int, int]:
    """Bytes of a model, its process and its largest step, as a neuron plans them, and those of its pool."""
    kind = device.partition(":")[0]
    runtime = held(device) if kind == "cpu" else UNMEASURED_BYTES[kind]  # builds of PyTorch differ
    [weights] = card.bytes_per_rank(ALONE)
    overhead = Overhead(
        card.config, 2, WHOLE, context_length=spec.context_length, in_blocks=bool(card.formats(ALONE))
    )
    step = overhead.of_step(kind, spec.max_step_tokens, spec.max_sequences)
    return runtime + step + weights, spec.kv_pages * PAGE_SIZE * card.kv_bytes_per_token(WHOLE)


def too_large(device: str, expected: int, pool: int) -> str:
    """That a card has no room for so many bytes; empty where it has."""
    if device == "cpu":
        return ""
    free, _ = torch.cuda.mem_get_info(device)
    if expected + pool <= free:
        return ""
    return f"not measured: it takes {(expected + pool) / 1e9:.1f} GB, and {free / 1e9:.1f} are free"


def share(part: str, name: str, limit: float, took: float, rate: str, goal: float | None = None) -> Result:
    """Seconds that something took, beside the fewest that it could, and the share that it is to reach."""
    text = f"{took * 1e3:.2f} ms, {rate}, {limit / took:.0%} of the limit"
    figures = {"seconds": took, "limit": limit, "share": limit / took}
    if goal is not None:
        text, figures["goal"] = f"{text} (goal: {goal:.0%})", goal
    return Result(part, name, True, text, figures)


PARTS: dict[str, Callable[[str, Path], Iterator[Result]]] = {
    **{name: partial(of_shape, name) for name in MODELS},
    "equalities": equalities,
    "hybrid": hybrid,
    "dependent": dependent,
    "mixed": mixed,
    "waking": waking,
    "products": partial(of_kernels, "products"),
    "attention": partial(of_kernels, "attention"),
    "tests": tests,
    "ranks": ranks,
}
until = math.inf  # by `time.monotonic`, which all processes share: when this part is ended


def _left() -> float:
    """Seconds that this part may still take."""
    return until - time.monotonic()
