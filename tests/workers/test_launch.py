"""A kernel that was compiled is found again by as much of its arguments as it was compiled for."""

from __future__ import annotations

import ast
import ctypes
import itertools
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

from ipc.errors import Code, CortexError
from tests.workers.engines import GPU
from workers.process.rank import last_words

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="there is no Triton")


class Kernel:
    """Stands for a `triton.jit` function, and keeps by what Triton would compile it."""

    def __init__(self, function):
        from triton.backends.compiler import GPUTarget
        from triton.compiler import make_backend
        from triton.runtime.jit import create_function_from_signature

        self.params = function.params
        backend = make_backend(GPUTarget("cuda", 90, 32))
        self.binder = create_function_from_signature(function.signature, function.params, backend)
        self.asked, self.dependent = 0, []

    def wanted(self, arguments, options):
        _, specialization, _ = self.binder(*arguments)
        return str(specialization), str(options)

    def warmup(self, *arguments, grid, **options):
        self.asked += 1
        self.dependent.append(options["launch_pdl"])
        return Compiled(self, self.wanted(arguments, options), options)


class Compiled:
    n_spills = 0

    def __init__(self, kernel, wanted, options):
        self.kernel, self.wanted, self.options = kernel, wanted, options
        self.launched = []

    def __getitem__(self, grid):
        def launch(*arguments):
            assert self.kernel.wanted(arguments, self.options) == self.wanted
            self.launched.append((grid, arguments))

        return launch


def variants():
    """Arguments of the norm's kernel: unlike in types, alignment, divisors, constants, and in nothing."""
    wide = torch.zeros(40, dtype=torch.float16)
    tensors = (wide, wide[8:], wide[1:], wide.float(), wide.bfloat16())
    for x, stride, size in itertools.product(tensors, (1, 16, 17, 48, 1 << 32), (16, 30)):
        for eps in (0.5, 1e-6):
            yield x, wide, wide, wide, wide, stride, 16, eps, 0.0, size, False, True, 32


def test_what_is_launched_was_compiled_for_such_arguments_and_is_compiled_once():
    from workers.kernels.launch import Launcher
    from workers.kernels.norm_triton import norm_kernel

    kernel = Kernel(norm_kernel)
    launcher = Launcher(kernel)
    kinds = set()
    for _ in range(2):
        for arguments in variants():
            for num_warps, registers in ((4, None), (8, None), (8, 128)):
                launcher((3, 1, 1), *arguments, num_warps=num_warps, registers=registers)
                options = {"num_warps": num_warps, "num_stages": 3, "maxnreg": registers}
                kinds.add(kernel.wanted(arguments, options))
    assert kernel.asked == len(kinds) == 4 * 4 * 2 * 3  # a view at 16 bytes is like the whole, and 48 like 16


def test_numbers_that_make_no_difference_are_no_kinds():
    from workers.kernels.attention_triton import attention_kernel
    from workers.kernels.launch import Launcher

    kernel = Kernel(attention_kernel)
    launcher = Launcher(kernel)
    x, at = torch.zeros(64, dtype=torch.float16), torch.zeros(8, dtype=torch.int64)
    for number in (0, 1, 16, 33):
        constants = (True, 4, 2, 16, 16, 32, 0, False, False, False, 0, False, 32, 128, 16, 64, 16, 16, 16)
        numbers = (number,) * 5
        strides = (64, 16, 1024, 32)
        launcher((1, 2, 3), *[x] * 9, *[at] * 5, *numbers, *strides, 0.1, 0.0, *constants, num_warps=4)
    assert kernel.asked == 1


@pytest.mark.parametrize("capability", [0, 75, 80, 86, 89, 90, 100, 120])
def test_launches_are_dependent_where_a_card_has_that_and_nobody_compares(monkeypatch, capability):
    from workers.kernels import launch
    from workers.kernels.norm_triton import norm_kernel

    monkeypatch.setattr(launch, "capability_of", lambda device: capability)
    kernel = Kernel(norm_kernel)
    launcher, arguments = launch.Launcher(kernel), next(variants())
    for dependent in (True, False, True, False):
        monkeypatch.setattr(launch, "dependent", dependent)
        launcher((3, 1, 1), *arguments, num_warps=4)
    assert kernel.dependent == [capability >= 90, False]


@pytest.fixture
def card(monkeypatch):
    """Stands for a device: `launched` has the options of what was, and `spills` numbers of what is loaded."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    def launcher_of(source, metadata):
        return lambda *given: card.launched.append(metadata)

    utils = SimpleNamespace(load_binary=lambda *given: (1, 1, 40, card.spills.pop(0), 1024))
    utils.get_device_properties = lambda device: {"max_shared_mem": 1 << 20}
    card = SimpleNamespace(utils=utils, launcher_cls=launcher_of, get_current_stream=lambda device: 0)
    card.get_current_device, card.get_current_target = (lambda: 0), (lambda: GPUTarget("cuda", 120, 32))
    card.launched, card.spills = [], []
    monkeypatch.setattr(type(driver), "active", card)
    return card


def test_what_triton_compiled_for_dependent_launches_is_launched_so(card):
    """Also when it is called by itself, as a launcher does it."""
    from benchmarks.small_kernels import compile_norm

    card.spills = [0, 0]
    for found in [compile_norm(capability).kernel for capability in (89, 90)]:
        for _ in range(2):
            found[(1, 1, 1)]("x")
    assert [each.launch_pdl for each in card.launched] == [False, False, True, True]


def test_what_a_device_tells_of_spills_triton_is_asked_to_mend(card):
    from triton.runtime.jit import JITFunction

    from workers.kernels.launch import Launcher
    from workers.kernels.norm_triton import norm_kernel

    launcher = Launcher(JITFunction(norm_kernel.fn))  # another keeps what it has for true devices
    card.spills = [2, 4, 0]
    for _ in range(2):
        launcher((3, 1, 1), *next(variants()), num_warps=4)
    assert card.spills == []
    assert [each.maxnreg for each in card.launched] == [48, 48]


class Spilling:
    """A kernel of which an assembler spills some unless it may have one of some numbers of registers."""

    def __init__(self, enough):
        from workers.kernels.norm_triton import norm_kernel

        self.params, self.enough = norm_kernel.params, enough
        self.built, self.launched = [], []

    def warmup(self, *arguments, maxnreg, **options):
        self.built.append(maxnreg)
        return Built(self, maxnreg)


class Built:
    def __init__(self, kernel, limit):
        self.kernel, self.limit, self.n_regs = kernel, limit, limit or 128
        self.n_spills = None  # not known before it is on a device

    def __getitem__(self, grid):
        self.n_spills = 0 if self.limit in self.kernel.enough else 2
        return lambda *arguments: self.kernel.launched.append(self.limit)


@pytest.mark.parametrize(
    ("num_warps", "first", "enough", "built"),
    [
        (1, None, {None, 136}, [None]),
        (1, 96, {96}, [96]),
        (1, None, {136}, [None, 128, 136]),
        (1, None, {160, 168}, [None, 128, 136, 144, 152, 168]),  # 13 programs have no room for more than 152
        (4, None, {255}, [None, 128, 168, 255]),
        (4, 100, {120, 128}, [100, 128]),
        (8, None, {120, 255}, [None, 128, 255]),
        (8, None, {120}, [None, 128, 255, 120]),
        (16, 112, {128}, [112, 128]),  # all that there are for so many threads
    ],
)
def test_a_kernel_that_spills_is_built_with_other_registers_until_none_is_spilt(
    num_warps, first, enough, built
):
    from workers.kernels.launch import Launcher

    kernel = Spilling(enough)
    launcher = Launcher(kernel)
    for _ in range(3):
        launcher((3, 1, 1), *next(variants()), num_warps=num_warps, registers=first)
    assert kernel.built == built
    assert kernel.launched == built[-1:] * 3


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), CortexError(Code.MODEL_LOAD_FAILED, "no")])
def test_a_kernel_that_spills_is_launched_so_where_another_cannot_be_built(error):
    from workers.kernels.launch import without_spills

    def build(limit):
        if limit == 144:
            raise error
        return SimpleNamespace(limit=limit, n_regs=128, n_spills=2)

    assert without_spills(build, None, 1).limit is None


def test_a_kernel_that_spills_whatever_it_may_have_is_launched_as_the_assembler_has_it():
    from workers.kernels.launch import Launcher

    kernel = Spilling(())
    launcher = Launcher(kernel)
    for _ in range(3):
        launcher((3, 1, 1), *next(variants()), num_warps=4, registers=200)
    assert kernel.built == [200, 255, 192]
    assert kernel.launched == [200] * 3


def kinds_of_edges(graph):
    """Of a graph that was recorded and kept, as the driver numbers them: 1 is that of a dependent launch."""
    driver, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_size_t()
    given = ctypes.c_void_p(graph.raw_cuda_graph())
    assert driver.cuGraphGetEdges_v2(given, None, None, None, ctypes.byref(count)) == 0
    ends = [(ctypes.c_void_p * count.value)() for _ in range(2)]
    data = (ctypes.c_uint8 * (8 * count.value))()
    assert driver.cuGraphGetEdges_v2(given, *ends, data, ctypes.byref(count)) == 0
    return data[2::8]


@pytest.mark.parametrize("device", [pytest.param("cuda:0", marks=GPU)])
def test_launches_that_are_recorded_stay_dependent_and_right(device, monkeypatch):
    """Each counts on from what the one before it wrote, and writes where that one read; some are torch's."""
    from workers.kernels import launch
    from workers.kernels.norm_triton import norm_of_sum

    one = torch.ones(64, 4096, dtype=torch.bfloat16, device=device)

    def chain():
        total = one
        for step in range(200):
            total, _ = norm_of_sum(total, one, one[0], 1e-6, 0.0)
            total = total.clone() if step % 10 == 0 else total
        return total

    expected = torch.full_like(one, 201)  # which bfloat16 counts to
    for dependent in (False, True):
        monkeypatch.setattr(launch, "dependent", dependent)
        assert torch.equal(chain(), expected)
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.graph(graph):
        y = chain()
    for _ in range(20):
        y.zero_()
        graph.replay()
        assert torch.equal(y, expected)
    has_them = launch.capability_of(torch.device(device)) >= launch.DEPENDENT
    assert (1 in kinds_of_edges(graph)) == has_them


class Unbuilt:
    """A kernel that Triton does not build for this card, or that a device does not load."""

    __name__ = "norm_kernel"

    def __init__(self, error, is_built=False):
        from workers.kernels.norm_triton import norm_kernel

        self.params, self.error, self.is_built, self.asked = norm_kernel.params, error, is_built, 0

    def warmup(self, *arguments, **options):
        self.asked += 1
        if not self.is_built:
            raise self.error
        return self

    def __getitem__(self, grid):
        raise self.error


def compilation_error():
    """As of a kernel that calls another one: where, and by its cause why."""
    from triton.compiler.errors import CompilationError

    node = ast.parse("x = f(x)\ny = x @ x").body[1]
    error = CompilationError("x = f(x)\ny = x @ x", node, None)
    error.__cause__ = CompilationError("y = x @ x", node, "ValueError('no such\n  product')")
    return error


def out_of_resources():
    from triton.runtime.errors import OutOfResources

    return OutOfResources(240_000, 101_376, "shared memory")


@pytest.mark.parametrize(
    ("make", "is_built", "reason"),
    [
        (compilation_error, False, "CompilationError: ValueError('no such product')"),
        (out_of_resources, True, "OutOfResources: out of resource: shared memory, Required: 240000"),
    ],
)
def test_a_kernel_that_cannot_be_built_says_which_and_why_on_one_line_each_time(make, is_built, reason):
    from workers.kernels.launch import Launcher

    kernel = Unbuilt(make(), is_built)
    launcher = Launcher(kernel)
    for _ in range(2):
        with pytest.raises(CortexError) as caught:
            launcher((3, 1, 1), *next(variants()), num_warps=4)
        told = last_words(caught.value)
        assert told.code == Code.MODEL_LOAD_FAILED
        assert told.message.startswith(f"norm_kernel cannot be built here: {reason}")
        assert "\n" not in told.message
    assert kernel.asked == 2


def test_what_a_device_says_of_a_kernel_stays_what_it_is():
    from workers.kernels.launch import Launcher

    launcher = Launcher(Unbuilt(RuntimeError("Triton Error [CUDA]: out of memory"), is_built=True))
    with pytest.raises(RuntimeError, match="out of memory"):
        launcher((3, 1, 1), *next(variants()), num_warps=4)
