"""In a process that interprets: what Triton computes between products, and models.

bfloat16 is left to devices: the interpreter does not round to the nearest.
"""

from __future__ import annotations

from itertools import product
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor

from ipc.worker_messages import MemoryUse
from tests.workers.engines import make_runner, request, serve
from workers.cache.paged import write_codes
from workers.cache.quantised import CODES, SCALES
from workers.checkpoints.experts import Clamp
from workers.checkpoints.rope import Rope
from workers.kernels import fused
from workers.kernels.attention_triton import Sequences
from workers.kernels.choosing import Choosing
from workers.kernels.fused import Turn
from workers.kernels.gates import ACTIVATIONS, Gates
from workers.layers.norm import over_rms
from workers.layers.rotary import Rotary, rotate_part

CLOSE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
PROMPTS = [[*range(5, 5 + size)] for size in (34, 1)]


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    close = CLOSE[ours.dtype]
    torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=close, atol=close)


def norms(dtype: torch.dtype) -> None:
    for size, offset in ((1, 0.0), (48, 1.0), (130, 0.0)):
        # rows that lie in wider ones
        x, y = (torch.randn(3, size + 7).to(dtype)[:, 3 : size + 3] for _ in range(2))
        weight = torch.randn(size).to(dtype)

        def plain(x: Tensor, weight: Tensor = weight, offset: float = offset) -> Tensor:
            return x.float() * over_rms(x.float(), 1e-5) * (weight.float() + offset)

        assert_close(fused.norm(x, weight, 1e-5, offset), plain(x))
        assert_close(fused.norm(y, weight, 1e-5, offset, x), plain(y) + x.float())
        total, normed = fused.norm_of_sum(x, y, weight, 1e-5, offset)
        assert_close(total, x + y)
        assert_close(normed, plain(x + y))
        assert torch.equal(normed, fused.norm(total, weight, 1e-5, offset))  # of what the next layer reads
    deep = torch.randn(2, 3, 16).to(dtype)
    assert_close(fused.norm(deep, torch.ones(16).to(dtype), 1e-5, 0.0), deep * over_rms(deep.float(), 1e-5))


def choices() -> None:
    """As routers choose without Triton; of equal ones the first."""
    ways = (False, False), (True, False), (True, True)
    for (sigmoid, by_logits), corrected, least, scale in product(
        ways, (False, True), (None, 0.0, 0.25), (1.0, 2.5)
    ):
        logits, correction = torch.randn(3, 13), torch.randn(13) if corrected else None
        logits[2, 4], logits[2, 9] = float("nan"), 40.0
        if by_logits:
            logits[1] += 100.0  # whose sigmoids are equal
        how = Choosing(5, sigmoid, least, scale, by_logits=by_logits)
        weights, numbers = fused.choice(logits, correction, how)
        scores = logits.sigmoid() if sigmoid else logits.softmax(dim=-1)
        ranking = logits if by_logits else scores
        expected = (ranking if correction is None else ranking + correction)[:2].topk(5, dim=-1).indices
        assert torch.equal(numbers[:2], expected)
        found = scores[:2].gather(1, expected)
        found = found if least is None else found / (found.sum(dim=-1, keepdim=True) + least)
        torch.testing.assert_close(weights[:2], found * scale)
        assert 0 <= int(numbers.min()) <= int(numbers.max()) < 13
    _, numbers = fused.choice(torch.zeros(1, 6), None, Choosing(3, False, None, 1.0))
    assert numbers.tolist() == [[0, 1, 2]]
    rest = torch.tensor([[-torch.inf, 1.0, -torch.inf, -torch.inf]])
    _, numbers = fused.choice(rest, None, Choosing(3, True, None, 1.0, by_logits=True))
    assert numbers.tolist() == [[1, 0, 2]]


def choices_within_groups() -> None:
    """The same where groups are chosen first, beside sorts that leave equal ones in their order."""
    drawn = Random(7).randint
    for case, (sigmoid, corrected) in product(range(12), product((False, True), repeat=2)):
        size, groups, tokens = drawn(1 + corrected, 16), drawn(2, 9), 70 if case == 6 else 1 + case % 2
        taken, least = drawn(1, groups), (None, 0.0, 0.25)[case % 3]
        how = Choosing(drawn(1, min(9, taken * size)), sigmoid, least, 2.5, groups, taken)
        if case % 2:
            logits, correction = torch.randn(tokens, groups * size), torch.randn(groups * size)
        else:  # many experts are as good as others, and so are groups
            logits = torch.tensor([0.0, 1.0, 3.0])[torch.randint(3, (tokens, groups * size))]
            correction = torch.full((groups * size,), 0.5)
        scores = logits.sigmoid() if sigmoid else logits.softmax(dim=-1)
        ranking = scores + correction if corrected else scores
        of_groups = ranking.view(tokens, groups, size).sort(dim=-1, descending=True).values
        worth = of_groups[..., : 1 + corrected].sum(dim=-1)
        best = worth.argsort(dim=-1, descending=True, stable=True)[:, :taken]
        others = torch.ones_like(worth, dtype=torch.bool).scatter_(1, best, False)
        ranking = ranking.masked_fill(others.repeat_interleave(size, dim=1), -torch.inf)
        expected = ranking.argsort(dim=-1, descending=True, stable=True)[:, : how.chosen]
        weights, numbers = fused.choice(logits, correction if corrected else None, how)
        assert torch.equal(numbers, expected), how
        found = scores.gather(1, expected)
        found = found if least is None else found / (found.sum(dim=-1, keepdim=True) + least)
        torch.testing.assert_close(weights, found * 2.5)
    # groups with fewer experts that are numbers than they are chosen by come last; no expert is out of range
    logits = torch.zeros(3, 12)
    logits[0, :3] = logits[1, 4:6] = logits[2] = torch.nan
    weights, numbers = fused.choice(logits, torch.zeros(12), Choosing(4, True, None, 1.0, 4, 2))
    assert numbers[:2].tolist() == [[3, 4, 5, 6], [0, 1, 2, 6]]
    assert 0 <= int(numbers.min()) <= int(numbers.max()) < 12


def routers(dtype: torch.dtype) -> None:
    """As logits, choice and sorted pairs one after the other, for experts of this rank and of others."""
    from workers.kernels import skinny
    from workers.kernels.pairs_triton import sorted_pairs

    cases = (
        (1, 8, 48, Choosing(3, False, None, 1.0), range(8)),
        (5, 13, 2100, Choosing(5, True, 0.25, 2.5), range(4, 11)),
        (16, 40, 130, Choosing(6, False, 0.0, 1.0), range(40)),
        (3, 13, 130, Choosing(4, True, 0.25, 1.0, by_logits=True), range(13)),
        (7, 24, 60, Choosing(4, True, 0.0, 2.5, 8, 3), range(24)),
        (1, 60, 60, Choosing(6, False, None, 16.0, 5, 2), range(12, 36)),
    )
    for (tokens, experts, columns, how, mine), biased in product(cases, (False, True)):
        x, weight = torch.randn(tokens, columns).to(dtype), torch.randn(experts, columns) / columns**0.5
        bias, correction = (torch.randn(experts) if biased else None for _ in range(2))
        logits = F.linear(x.float(), weight, bias)
        weights, numbers = fused.choice(logits, correction, how)
        own = numbers.flatten() - mine.start
        own[(own < 0) | (own >= len(mine))] = len(mine)
        order, starts = sorted_pairs(own, len(mine))
        found, pairs = fused.routed(x, weight, bias, correction, how, mine)
        torch.testing.assert_close(found, weights.flatten(), rtol=1e-4, atol=1e-5)
        assert torch.equal(pairs.order, order)
        assert torch.equal(pairs.starts, starts)
        alone, _ = fused.routed(x[-1:], weight, bias, correction, how, mine)
        assert torch.equal(alone, found[-how.chosen :])
    assert not skinny.counters(x.device).any()


def activations(dtype: torch.dtype) -> None:
    functions = {"silu": F.silu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "gelu": F.gelu}
    for name in ACTIVATIONS:
        for inner in (3, 1030):
            x = (5 * torch.randn(2, 2 * inner)).to(dtype)
            x[0, 0], x[0, 1] = -300.0, 300.0
            gate, up = x.float().chunk(2, dim=1)
            assert_close(fused.gated(x, Gates(name)), functions[name](gate) * up)
    clamp = Clamp(alpha=1.702, limit=7.0)
    x = (5 * torch.randn(2, 2 * 1030)).to(dtype)
    x[0, 0], x[0, 1], x[1, 2:4] = -300.0, 300.0, torch.nan
    for interleaved in (False, True):
        gate, up = (x[:, ::2], x[:, 1::2]) if interleaved else x.chunk(2, dim=1)
        gate, up = gate.float().clamp(max=clamp.limit), up.float().clamp(-clamp.limit, clamp.limit)
        plain = (up + 1) * gate * torch.sigmoid(gate * clamp.alpha)
        found = fused.gated(x, Gates(clamp, interleaved))
        torch.testing.assert_close(
            found, plain.to(dtype), rtol=CLOSE[dtype], atol=CLOSE[dtype], equal_nan=True
        )


def sums(dtype: torch.dtype) -> None:
    for chosen, columns in ((1, 3), (8, 700), (6, 512)):
        pairs = torch.randn(3 * chosen, columns).to(dtype)
        plain = pairs.view(3, chosen, columns).sum(dim=1, dtype=torch.float32)
        assert_close(fused.sum_of_chosen(pairs, chosen), plain)
        beside, gates = torch.randn(3, columns).to(dtype), torch.tensor([[-9.0], [0.5], [40.0]]).to(dtype)
        assert_close(fused.sum_of_chosen(pairs, chosen, beside), plain + beside.float())
        opened = beside.float() * gates.float().sigmoid()
        assert_close(fused.sum_of_chosen(pairs, chosen, beside, gates), plain + opened)


def delta_gates(dtype: torch.dtype) -> None:
    """Beside what a Gated DeltaNet does in torch; steps are far from zero on both sides, too."""
    tokens, count = 3, 5
    for size in (16, 20, 128):
        projected = torch.randn(tokens, count * size + 2 * count + 1).to(dtype)[:, 1:]
        gates, beta, step = projected.split((count * size, count, count), dim=1)
        step[0] = torch.tensor([-80.0, -20.0, -12.0, 20.0, 60.0])
        bias, rate = torch.randn(count), torch.randn(count)
        decay, opened = fused.decay_and_beta(beta, step, bias, rate)
        torch.testing.assert_close(decay, -rate.exp() * F.softplus(step.float() + bias))
        torch.testing.assert_close(opened, beta.float().sigmoid())
        x, weight = torch.randn(tokens, count, size), torch.randn(size).to(dtype)
        plain = (x * over_rms(x, 1e-6)).to(dtype) * weight
        plain = F.silu(gates.float()) * plain.flatten(1)
        assert_close(fused.gated_norm(x, gates, weight, 1e-6), plain)


def heads(dtype: torch.dtype) -> None:
    """Two sequences, of which one goes on in the midst of a page; what the cache had is not finite.

    In 8 bits there is the same as when keys, turned and rounded, are quantised by themselves.
    """
    from workers.kernels.heads_triton import turn_and_write

    num_heads, kv_heads = 5, 2
    cases = (
        (16, 16, {"weights": True}),
        (24, 16, {"weights": True, "offset": 1.0, "interleaved": True}),
        (12, 12, {"then_normed": True, "growth": True}),
        (16, 0, {}),
    )
    for head_dim, angles, wanted in cases:
        starts, contexts = torch.tensor([0, 3, 4]), torch.tensor([34, 1])
        positions = torch.tensor([31, 32, 33, 0])
        owners, pages = torch.tensor([0, 0, 0, 1]), torch.tensor([4, 2, 0])
        tables = torch.tensor([0, 2])
        sequences = Sequences(torch.tensor([0, 1]), starts, contexts, tables, pages)
        qkv = torch.randn(4, num_heads + 2 * kv_heads, head_dim).to(dtype)
        q, keys, values = qkv.split((num_heads, kv_heads, kv_heads), dim=1)
        weights = tuple(torch.randn(head_dim).to(dtype) for _ in range(2)) if "weights" in wanted else None
        interleaved = "interleaved" in wanted
        growth = torch.rand(4, 1, 1) if "growth" in wanted else None
        cos_sin = None
        if angles:
            cos_sin = Rotary(Rope(rope_theta=100.0), angles, qkv.device, interleaved)(positions)
        then_normed = "then_normed" in wanted
        turn = Turn(weights, wanted.get("offset", 0.0), 1e-5, cos_sin, interleaved, then_normed, growth)
        kv = torch.full((2, 5, kv_heads, 32, head_dim), torch.nan).to(dtype)
        turned = turn_and_write(kv, q, keys, values, turn, owners, sequences)

        def plain(x: Tensor, weight: Tensor | None, turn: Turn = turn) -> Tensor:
            x = x.float()
            if weight is not None:
                x = x * over_rms(x, turn.eps) * (weight.float() + turn.offset)
            if turn.angles is not None:
                x = rotate_part(x, *turn.angles, turn.interleaved)
            return x * over_rms(x, turn.eps) if turn.then_normed else x

        of_q, of_k = weights or (None, None)
        assert_close(turned, plain(q, of_q) * (1.0 if growth is None else growth))
        pages, places = torch.tensor([4, 2, 2, 0]), positions % 32
        assert_close(kv[0, pages, :, places], plain(keys, of_k))
        assert torch.equal(kv[1, pages, :, places], values)
        assert kv.isfinite().sum() == 2 * 4 * kv_heads * head_dim  # and nothing else was written
        for codes in CODES.values() if dtype == torch.float16 else ():
            ours, expected = (
                (torch.full(kv.shape, 99, dtype=codes), torch.full(kv.shape[:-1], torch.nan, dtype=SCALES))
                for _ in range(2)
            )
            again = turn_and_write(ours[0], q, keys, values, turn, owners, sequences, ours[1])
            write_codes(*expected, kv[0, pages, :, places], values, pages, places)
            assert torch.equal(again, turned)
            assert torch.equal(ours[0], expected[0])
            torch.testing.assert_close(ours[1], expected[1], rtol=0, atol=0, equal_nan=True)


def latents(dtype: torch.dtype) -> None:
    """As latent attention does without Triton; the product that queries come from has heads before tokens."""
    tokens = 3
    for heads, rank, turned, interleaved in ((1, 16, 2, True), (3, 24, 12, False), (5, 130, 8, True)):
        through = torch.randn(heads, tokens, rank).to(dtype).transpose(0, 1)
        turning = torch.randn(tokens, heads, turned + 5).to(dtype)[..., 5:]
        compressed = torch.randn(tokens, rank + turned + 7).to(dtype)
        angles = Rotary(Rope(rope_theta=100.0), turned, through.device, interleaved)(torch.tensor([0, 9, 33]))
        weight = torch.randn(rank).to(dtype)
        queries, keys = fused.latent_heads(through, turning, compressed, weight, 0.1, angles, interleaved)
        assert torch.equal(queries[..., :rank], through)
        assert_close(queries[..., rank:], rotate_part(turning.float(), *angles, interleaved))
        vector, key = compressed[:, None, : rank + turned].float().split((rank, turned), dim=-1)
        assert_close(keys[..., :rank], vector * over_rms(vector, 0.1) * weight.float())
        assert_close(keys[..., rank:], rotate_part(key, *angles, interleaved))


def between_products(dtype: torch.dtype) -> None:
    """On the default device."""
    norms(dtype)
    activations(dtype)
    delta_gates(dtype)
    sums(dtype)
    routers(dtype)
    heads(dtype)
    latents(dtype)
    choices()
    choices_within_groups()


def all_between_products() -> None:
    """In the types that are interpreted."""
    between_products(torch.float32)
    between_products(torch.float16)


def answers(folder: str) -> list[list[int]]:
    """Of a model to `PROMPTS`, in chunks and batched with each other, and two tokens behind each."""
    limits = {"max_sequences": 2, "max_step_tokens": 12, "kv_pages": 20, "context_length": 96}
    runner = make_runner(folder, **limits)
    runner._measure = lambda weights: MemoryUse(weights=weights)  # two more steps, that take the longest
    runner.load(lambda fraction, message: None)
    found = serve(runner, [request(number, prompt, 2) for number, prompt in enumerate(PROMPTS)], **limits)
    runner.close()
    return found
