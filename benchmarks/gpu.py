"""All that waits for a GPU, in ten minutes at most: `python -m benchmarks.gpu OUT [--device cuda:0]`.

* tests: `pytest -m gpu` over the engine's tests.
* equalities: unlike requests answered alone, batched, chunked, cached and preempted; in float32 all of them
  equal, or that is a failure; in bfloat16 how many are.
* attention: right, and at what share of the rate of memory or of products; what is beside it in a layer.
* products: quantised weights in every format, right and at what share of the rate at which memory is read.
* engine, large, experts, gguf, fp8, awq, nvfp4: random weights in the shape of Qwen3-0.6B, of Qwen3-8B, of
  6 of the 48 layers of Qwen3-30B-A3B, and of Qwen3-8B in Q4_K, FP8, AWQ and NVFP4. What the device can do
  at most is measured first (reading memory, multiplying matrices, copying from the host); the load, prefill
  and decode are given as shares of that, and memory as planned and as measured. Of experts, a step is to
  read those that its tokens choose by lot. Beside the decode of one sequence stands the share that it is
  meant to reach; to miss it is no failure. A decode step that is a graph is shown with the time that the
  graph takes when nothing is between two of it, with the share of the step that is not that (the gap), and
  with an eager step's time.
* waking: from files in the page cache, and from parked memory, to the first token of Qwen3-8B.
* ranks: a Qwen3.5 of 27 billion in q6 on two GPUs, through a neuron: its first load, which quantises, and its
  second, a prompt and an answer, beside what a system before this one took on two RTX 5090. With one GPU it
  says that it was not measured.

Each part runs in a process of its own with a time limit, so that one that faults or hangs leaves the rest as
it is, and what it found before that is kept. OUT/gpu.txt has failures first; OUT/gpu.json says the same for
programs. The exit code is 0, 1 after a failure, or 2 where there is no such device. `--device cpu` rehearses
it over tiny shapes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path

import msgspec
import torch
from transformers import PretrainedConfig, Qwen3_5TextConfig, Qwen3Config, Qwen3MoeConfig

from benchmarks.driver import Driver, fill, write_hollow
from benchmarks.engine import SHAPE
from benchmarks.quantised_models import write_awq, write_fp8, write_gguf, write_nvfp4
from ipc.worker_messages import RingHandle, WorkerSpec
from neuron.memory.step_bytes import UNMEASURED_BYTES, Overhead
from workers.checkpoints.caches import state_bytes
from workers.checkpoints.card import ModelCard
from workers.checkpoints.families.llama import EMBEDDING
from workers.checkpoints.model_config import ModelConfig
from workers.checkpoints.reading import read_card
from workers.execution.memory import held
from workers.execution.model_runner import ModelRunner
from workers.step.pages import pages_for

ROOT = Path(__file__).parents[1]
SECONDS = 570.0  # for everything
LIMITS = {
    "tests": 240.0,
    "equalities": 150.0,
    "attention": 100.0,
    "products": 120.0,
    "engine": 120.0,
    "large": 120.0,
    "experts": 150.0,
    "gguf": 150.0,
    "fp8": 150.0,
    "awq": 90.0,
    "nvfp4": 90.0,
    "hybrid": 150.0,
    "waking": 90.0,
    "ranks": 300.0,
}  # of each part, in their order
GOALS = {
    "engine": 0.25,
    "large": 0.70,
    "experts": 0.45,
    "gguf": 0.50,
    "fp8": 0.55,
    "awq": 0.50,
    "nvfp4": 0.50,
    "hybrid": 0.70,
}  # of the limit: the decode of one sequence
PLAN_ERROR = 1.2  # measured memory over planned, at most

CONTEXT = {"cpu": 64, "cuda": 512}  # tokens before the first decode step
PROMPTS = {"cpu": (64,), "cuda": (128, 2048, 16_384)}
BATCHES = {"cpu": (1, 8), "cuda": (1, 8, 32, 128)}
STEPS = {"cpu": 4, "cuda": 16}  # decode steps in a row


class Result(msgspec.Struct):
    """One line of the report."""

    part: str
    name: str
    ok: bool
    value: str
    figures: dict[str, float] = {}
    detail: str = ""  # of a failure


# --- the parts ------------------------------------------------------------------------------------------


def tests(device: str, out: Path) -> Iterator[Result]:
    """What pytest says of each test that asks for a GPU."""
    report = out / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--continue-on-collection-errors"]
    with (out / "tests.txt").open("w") as log:
        subprocess.run([*command, f"--junitxml={report}", "tests/workers"], cwd=ROOT, stdout=log, stderr=log)
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
    value = f"{passed} passed, {skipped} skipped, {failed} failed"
    yield Result("tests", "pytest -m gpu", bool(passed) or device == "cpu", value, figures)


def equalities(device: str, out: Path) -> Iterator[Result]:
    """How many requests are answered in each circumstance as they are alone."""
    from tests.workers.engines import make_runner
    from tests.workers.equalities import VOCABULARY, largest_step, observe
    from tests.workers.oracle import fill
    from tests.workers.tiny_models import qwen3

    torch.manual_seed(11)
    model = qwen3(vocab_size=VOCABULARY, tie_word_embeddings=True)
    fill(model, std=0.3)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        shutil.copy(ROOT / "neuron/demo/tokenizer.json", folder)
        for dtype in ("float32", "bfloat16"):
            runner = make_runner(folder, device=device, dtype=dtype, max_step_tokens=largest_step(1))
            runner.load(lambda fraction, message: None)
            answers = observe(runner).answers
            runner.close()
            for name, given in answers.items():
                alone = answers["single" if name == "choices" else "alone"]
                if given is alone or name == "single":
                    continue
                pairs = zip(given, alone, strict=True)
                equal = sum(ours.token_ids == theirs.token_ids for ours, theirs in pairs)
                figures = {"equal": equal, "requests": len(given)}
                ok = equal == len(given) or dtype != "float32"
                yield Result("equalities", f"{dtype} {name}", ok, f"{equal} of {len(given)}", figures)


def of_kernels(part: str, device: str, out: Path) -> Iterator[Result]:
    """What `benchmarks.attention` or `benchmarks.products` finds; without a device there is nothing."""
    if device == "cpu":
        yield Result(part, "kernels", True, "want a GPU")
        return
    found = import_module(f"benchmarks.{part}")  # which wants Triton
    found.compile_all(device, 60.0)
    for name, ok, error in found.right(device):
        yield Result(part, f"{name} is right", ok, f"error {error:.1e}", {"error": error})
    for name, text, figures in found.rates(device, time.monotonic() + found.SECONDS):
        yield Result(part, name, True, text, figures)


def engine(device: str, out: Path) -> Iterator[Result]:
    """The engine's times beside what the device can do at most, and its memory beside the plan."""
    yield from of_shape("engine", device, Qwen3Config(**TINY) if device == "cpu" else SHAPE, write_hollow)


def large(device: str, out: Path) -> Iterator[Result]:
    """The same of eight billion weights in bfloat16."""
    yield from of_shape("large", device, TINY_BLOCKS if device == "cpu" else EIGHT_BILLION, write_hollow)


def experts(device: str, out: Path) -> Iterator[Result]:
    """The same of a mixture of experts, of which a step reads those that its tokens choose."""
    shape = Qwen3MoeConfig(**TINY | TINY_EXPERTS) if device == "cpu" else MIXTURE
    yield from of_shape("experts", device, shape, write_hollow)


def in_gguf(device: str, out: Path) -> Iterator[Result]:
    """The same of a GGUF file in Q4_K."""
    yield from of_shape("gguf", device, TINY_BLOCKS if device == "cpu" else EIGHT_BILLION, write_gguf)


def fp8(device: str, out: Path) -> Iterator[Result]:
    """The same of a checkpoint in FP8, with a scale for 128 x 128 numbers."""
    yield from of_shape("fp8", device, TINY_BLOCKS if device == "cpu" else EIGHT_BILLION, write_fp8)


def awq(device: str, out: Path) -> Iterator[Result]:
    """The same in AWQ, with a scale and a zero point for 128 numbers of 4 bits."""
    yield from of_shape("awq", device, TINY_BLOCKS if device == "cpu" else EIGHT_BILLION, write_awq)


def nvfp4(device: str, out: Path) -> Iterator[Result]:
    """The same in NVFP4."""
    yield from of_shape("nvfp4", device, TINY_BLOCKS if device == "cpu" else EIGHT_BILLION, write_nvfp4)


def hybrid(device: str, out: Path) -> Iterator[Result]:
    """The same of a Qwen3.5 of 27 billion, as many of its layers as take 14 GB with the head."""
    shape = Qwen3_5TextConfig(**TINY | TINY_STATES) if device == "cpu" else HYBRID
    yield from of_shape("hybrid", device, shape, write_hollow)
    from benchmarks.states import KINDS, measure

    for kind, shape in KINDS.items():
        found = measure(device, shape, 2048 if device == "cpu" else 16_384)
        text = ", ".join(f"{name} {took * 1e3:.1f} ms" for name, took in found.items() if name != "ratio")
        yield Result("hybrid", f"a prompt through the states of a layer of {kind}", True, text, found)


def waking(device: str, out: Path) -> Iterator[Result]:
    """From a model that is not there to its first token, beside what its bytes alone would take."""
    from benchmarks.waking import GOALS, rows

    small = device == "cpu"
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

    small = device == "cpu"
    if not small and (count := torch.cuda.device_count()) < RANKS:
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


def of_shape(
    part: str, device: str, shape: PretrainedConfig, write: Callable[[Path, PretrainedConfig], Path]
) -> Iterator[Result]:
    """What a model of that shape takes; `write` makes its files, and returns what to read them by."""
    kind = device.partition(":")[0]
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
        card = read_card(write(Path(folder), shape))
        [weights] = card.bytes_per_rank(1)
        spec = WorkerSpec(
            model="benchmark",
            engine="transformer",
            epoch=1,
            rank=0,
            world_size=1,
            device=device,
            threads=len(os.sched_getaffinity(0)),
            context_length=max(4096, *prompts) + 1,
            max_sequences=max(batches),
            max_step_tokens=max(*prompts, context),
            kv_pages=pages_for(max(prompts)) + max(batches) * pages,
            reports=RingHandle(memory_fd=-1, data_fd=-1, space_fd=-1),
            heartbeat_fd=-1,
        )
        runner = ModelRunner(spec, card)
        runtime = held(device) if small else UNMEASURED_BYTES[kind]  # builds of PyTorch differ
        began = time.perf_counter()
        loaded = runner.load(lambda fraction, message: None)
        took = time.perf_counter() - began
    if write is write_hollow and not small:  # on a CPU they may be packed, and zeros do for a rehearsal
        fill(runner)
    yield share(part, "load", weights / copy, took, f"{weights / took / 1e9:.2f} GB/s of weights")

    overhead = Overhead(
        card.config, 2, 1, context_length=spec.context_length, in_blocks=bool(card.formats(1))
    )
    step = overhead.of_step(kind, spec.max_step_tokens, spec.max_sequences)
    planned = runtime + step + weights
    measured = loaded.memory.total - loaded.memory.kv_pool
    text = f"{measured / 1e6:.0f} MB measured, {planned / 1e6:.0f} MB planned"
    figures = {"measured": measured, "planned": planned}
    yield Result(part, "memory without its pool", measured <= PLAN_ERROR * planned, text, figures)

    driver = Driver(runner, pages)
    used, parameters = of_each_token(card, weights)
    head = card.config.vocab_size * card.config.hidden_size  # used for the last token alone
    for tokens in prompts:
        took = median(lambda tokens=tokens: driver.prompts([0], tokens), device)
        products = 2 * ((active(card.config, 2 * parameters, 1) / 2 - head) * tokens + head)
        limit = max(products / multiply, active(card.config, used, tokens) / read)
        yield share(part, f"prefill {tokens}", limit, took, f"{tokens / took:,.0f} tokens/s")
    driver.begin(max(batches), context)
    for count in batches:
        seen = count * (context * card.kv_bytes_per_token(1) + 2 * state_bytes(card.cache_groups(1)))
        limit = (active(card.config, used, count) + seen) / read
        goal = GOALS.get(part) if count == 1 else None
        took = driver.decode(count, STEPS[kind])
        rate = f"{count / took:,.0f} tokens/s"
        found = share(part, f"decode {count} at once", limit, took, rate, goal)
        if (graph := driver.graph(count, STEPS[kind])) is not None:
            eager = driver.decode(count, STEPS[kind], eager=True)
            found.value += (
                f"; graph {graph * 1e3:.2f} ms, gap {1 - graph / took:.0%}, eager {eager * 1e3:.2f} ms"
            )
            found.figures |= {"graph": graph, "gap": 1 - graph / took, "eager": eager}
        yield found
    runner.close()


TINY = {
    "vocab_size": 1024,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}
TINY_EXPERTS = {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
}
TINY_BLOCKS = Qwen3Config(  # whose columns are blocks of 256
    **TINY | {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "tie_word_embeddings": False}
)
EIGHT_BILLION = Qwen3Config(
    vocab_size=151_936,
    hidden_size=4096,
    intermediate_size=12_288,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    tie_word_embeddings=False,
    dtype="bfloat16",
)
TINY_STATES = {
    "num_hidden_layers": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
TWENTY_SEVEN_BILLION = {
    "vocab_size": 248_320,
    "hidden_size": 5120,
    "intermediate_size": 17_408,
    "num_hidden_layers": 64,
    "num_attention_heads": 24,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 48,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
HYBRID = Qwen3_5TextConfig(**TWENTY_SEVEN_BILLION | {"num_hidden_layers": 12})
MIXTURE = Qwen3MoeConfig(  # with a vocabulary that leaves most of a step to the layers
    vocab_size=32_768,
    hidden_size=2048,
    moe_intermediate_size=768,
    num_hidden_layers=6,
    num_attention_heads=32,
    num_key_value_heads=4,
    head_dim=128,
    num_experts=128,
    num_experts_per_tok=8,
    norm_topk_prob=True,
    tie_word_embeddings=True,
    dtype="bfloat16",
)


def of_each_token(card: ModelCard, weights: int) -> tuple[int, int]:
    """What a token that chose all experts would go through, of all `weights`: bytes, and how many numbers.

    Of an embedding that is no head it reads one row.
    """
    numbers = sum(math.prod(tensor.shape) for tensor in card.tensors.values())
    if card.config.tied_head:
        return weights, numbers
    embedding = card.tensors[EMBEDDING]
    return weights - embedding.nbytes, numbers - math.prod(embedding.shape)


def active(config: ModelConfig, weights: int, tokens: int) -> float:
    """Bytes of weights that so many tokens go through, who choose experts as if by lot."""
    if (experts := config.experts) is None:
        return weights
    each = len(experts.layers) * 3 * config.hidden_size * experts.intermediate_size * 2  # in bfloat16
    chosen = experts.count * (1 - (1 - experts.chosen / experts.count) ** tokens)
    return weights - each * (experts.count - chosen)


def share(part: str, name: str, limit: float, took: float, rate: str, goal: float | None = None) -> Result:
    """Seconds that something took, beside the fewest that it could, and the share that it is to reach."""
    text = f"{took * 1e3:.2f} ms, {rate}, {limit / took:.0%} of the limit"
    figures = {"seconds": took, "limit": limit, "share": limit / took}
    if goal is not None:
        text, figures["goal"] = f"{text} (goal: {goal:.0%})", goal
    return Result(part, name, True, text, figures)


def measure_limits(device: str) -> tuple[float, float, float]:
    """Bytes read a second, operations a second in bfloat16, and bytes copied from the host a second."""
    small = device == "cpu"
    memory = torch.ones((64 if small else 4096) << 18, device=device)
    read = memory.nbytes / median(memory.sum, device)
    size = 256 if small else 8192
    left = torch.ones(size, size, dtype=torch.bfloat16, device=device)
    multiply = 2 * size**3 / median(lambda: left @ left, device)
    host = torch.ones((16 if small else 512) << 20, dtype=torch.uint8, pin_memory=not small)
    target = torch.empty_like(host, device=device)
    copy = host.nbytes / median(lambda: target.copy_(host), device)
    return read, multiply, copy


def median(function: Callable[[], object], device: str, rounds: int = 5) -> float:
    """Seconds, the device's work included; the first round is not counted."""
    times = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        function()
        if device != "cpu":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


PARTS: dict[str, Callable[[str, Path], Iterator[Result]]] = {
    "tests": tests,
    "equalities": equalities,
    "attention": partial(of_kernels, "attention"),
    "products": partial(of_kernels, "products"),
    "engine": engine,
    "large": large,
    "experts": experts,
    "gguf": in_gguf,
    "fp8": fp8,
    "awq": awq,
    "nvfp4": nvfp4,
    "hybrid": hybrid,
    "waking": waking,
    "ranks": ranks,
}


# --- the run --------------------------------------------------------------------------------------------


def run_part(name: str, command: Sequence[str], found: Path, seconds: float) -> list[Result]:
    """The results that `command` writes to `found`; what goes wrong with it is one, too."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        try:
            code = process.wait(seconds)
            problem = f"ended with {code}" if code else ""
        except subprocess.TimeoutExpired:
            problem = f"not done within {seconds:.0f} s"
        finally:
            with suppress(ProcessLookupError):  # and whatever it started
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.seek(0)
        said = log.read()[-4000:]
    results: list[Result] = []
    with suppress(FileNotFoundError, msgspec.DecodeError):
        results = msgspec.json.decode(found.read_bytes(), type=list[Result])
    if problem or not results:
        results.append(Result(name, name, False, problem or "it said nothing", detail=said))
    return results


def report(results: Sequence[Result], facts: dict[str, str]) -> str:
    """The text: failures first, in full, then everything in its order."""
    failures = [result for result in results if not result.ok]
    lines = [f"{key}: {value}" for key, value in facts.items()]
    lines += ["", f"{len(failures)} failures" if failures else "no failures"]
    for result in failures:
        lines += ["", f"FAILED {result.part}: {result.name}: {result.value}", result.detail.rstrip()]
    lines.append("")
    width = max((len(result.name) for result in results), default=0)
    for result in results:
        lines.append(
            f"{result.part:11} {'ok' if result.ok else 'FAILED':7} {result.name:{width}}  {result.value}"
        )
    return "\n".join(lines) + "\n"


def absent(device: str) -> str:
    """Why `device` cannot be used; empty when it can."""
    if device == "cpu":
        return ""
    if not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} finds no GPU here"
    count, _, number = torch.cuda.device_count(), *device.partition(":")[1:]
    return "" if int(number or 0) < count else f"there are {count} GPUs, and {device} is none of them"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "out", type=Path, help="a folder for gpu.txt and gpu.json; it is made where it is missing"
    )
    parser.add_argument("--device", default="cuda:0", help="cuda:N, or cpu to rehearse it over tiny shapes")
    parser.add_argument("--only", choices=PARTS, action="append", help="this part, as often as you like")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)  # be that part's process
    arguments = parser.parse_args()
    device, out = arguments.device, arguments.out.resolve()
    if reason := absent(device):
        print(f"benchmarks.gpu: {reason}; --device cpu rehearses it", file=sys.stderr)
        return 2
    if arguments.part:
        results = []
        for result in PARTS[arguments.part](device, out):
            results.append(result)
            (out / f"{arguments.part}.json").write_bytes(msgspec.json.encode(results))
        return 0

    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    facts = {"device": device, "torch": torch.__version__, "started": time.strftime("%Y-%m-%d %H:%M:%S %Z")}
    if device != "cpu":
        facts["name"] = torch.cuda.get_device_name(device)
    results: list[Result] = []
    for name in arguments.only or PARTS:
        found = out / f"{name}.json"
        found.unlink(missing_ok=True)
        command = [sys.executable, "-m", "benchmarks.gpu", str(out), "--device", device, "--part", name]
        left = SECONDS - (time.monotonic() - began)
        print(f"{name} …", flush=True)
        results += run_part(name, command, found, max(1.0, min(LIMITS[name], left)))
    facts["seconds"] = f"{time.monotonic() - began:.0f}"
    text = report(results, facts)
    (out / "gpu.txt").write_text(text)
    (out / "gpu.json").write_text(
        json.dumps({"facts": facts, "results": msgspec.to_builtins(results)}, indent=1)
    )
    print(text)
    return 0 if all(result.ok for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
