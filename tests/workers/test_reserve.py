"""Memory comes and goes under a tensor that stays where it is."""

from __future__ import annotations

import ctypes
import random

import pytest
import torch

from tests.doubles import stands_for
from tests.workers.engines import GPU
from workers.cache import reserve
from workers.cache.reserve import DeviceReserve, Driver, HostReserve
from workers.execution.memory import held

CHUNK = 1 << 16


def test_a_host_gives_memory_back_and_what_comes_again_is_zero():
    size = 64 << 20
    before = held("cpu")
    memory = HostReserve(1 << 40)  # far more than there is
    memory.tensor[:size] = 7
    assert held("cpu") - before > size - (1 << 20)
    memory.keep(1 << 20)
    assert held("cpu") - before < size // 4  # what torch takes meanwhile for itself is in it
    assert memory.tensor[: 1 << 20].eq(7).all()
    memory.keep(size)
    assert memory.tensor[1 << 20 : size].eq(0).all()
    memory.close()


def test_a_part_of_a_page_that_stays_stays_whole():
    memory = HostReserve(1 << 20)
    memory.tensor[:] = 7
    memory.keep(5000, last=3000)
    assert memory.tensor[:5000].eq(7).all()
    assert memory.tensor[-3000:].eq(7).all()
    assert memory.tensor[3 << 12 : -3 << 12].eq(0).all()


@stands_for(Driver)
class Card:
    """A GPU with so many chunks of memory. What is not mapped holds no value that anybody could mean."""

    UNMAPPED = 0xAB

    def __init__(self, chunks: int) -> None:
        self.chunks = chunks
        self.ranges: dict[int, torch.Tensor] = {}
        self.handles: set[int] = set()
        self.mapped: dict[int, int] = {}  # address to handle
        self.waited = 0
        self._next = 1

    def reserve(self, size: int) -> int:
        assert size % CHUNK == 0
        address = 1 << 40
        self.ranges[address] = torch.full((size,), self.UNMAPPED, dtype=torch.uint8)
        return address

    def free(self, address: int, size: int) -> None:
        assert not self.mapped, "memory is in it"
        assert len(self.ranges.pop(address)) == size

    def create(self, size: int) -> int:
        assert size == CHUNK
        if len(self.handles) == self.chunks:
            raise MemoryError("the card is full")
        self._next += 1
        self.handles.add(self._next)
        return self._next

    def release(self, handle: int) -> None:
        self.handles.remove(handle)

    def map(self, address: int, size: int, handle: int) -> None:
        assert address not in self.mapped
        assert handle in self.handles
        assert (address - (1 << 40)) % size == 0
        self.mapped[address] = handle
        self._fill(address, 0xCD)  # of whoever had it before

    def unmap(self, address: int, size: int) -> None:
        del self.mapped[address]
        self._fill(address, self.UNMAPPED)

    def tensor(self, address: int, size: int) -> torch.Tensor:
        assert address in self.mapped, "a tensor is of no device"
        return self.ranges[address]

    def synchronize(self) -> None:
        self.waited += 1

    def _fill(self, address: int, value: int) -> None:
        [(start, whole)] = self.ranges.items()
        whole[address - start : address - start + CHUNK] = value


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(reserve, "CHUNK_BYTES", CHUNK)


@pytest.mark.parametrize("device", [pytest.param("cuda:0", marks=GPU)])
def test_a_real_card_gives_memory_and_takes_it_back(device):
    device = torch.device(device)
    torch.zeros(1, device=device)
    before, _ = torch.cuda.mem_get_info(device)
    memory = reserve.reserve(1 << 40, device)
    size = 8 * reserve.CHUNK_BYTES
    memory.keep(size, last=100)
    assert before - torch.cuda.mem_get_info(device)[0] >= size
    assert not memory.tensor[:size].any()
    memory.tensor[:size] = 7
    memory.tensor[-100:] = 5
    memory.keep(size // 2, last=100)
    assert before - torch.cuda.mem_get_info(device)[0] < size
    memory.keep(size, last=100)
    half = memory.tensor[:size].view(torch.bfloat16).view(2, -1)
    assert torch.equal(half[0].view(torch.uint8), torch.full_like(half[0].view(torch.uint8), 7))
    assert not half[1].any()
    assert memory.tensor[-100:].eq(5).all()
    memory.close()
    torch.cuda.empty_cache()  # what the comparisons took is kept
    assert before - torch.cuda.mem_get_info(device)[0] < reserve.CHUNK_BYTES


@pytest.mark.usefixtures("small_chunks")
def test_a_card_maps_what_is_kept_and_nothing_else():
    card, nbytes, last, dice = Card(1000), 20 * CHUNK + 100, 3000, random.Random(0)
    memory = DeviceReserve(nbytes, card)
    assert memory.tensor.shape == (nbytes,)
    expected = torch.zeros(nbytes, dtype=torch.uint8)
    for step in range(200):
        first = dice.randint(0, nbytes - last)
        memory.keep(first, last)
        chunks = max(1, -(-first // CHUNK))
        kept = torch.zeros(nbytes, dtype=torch.bool)
        kept[: chunks * CHUNK] = kept[(nbytes - last) // CHUNK * CHUNK :] = True
        expected[~kept] = 0
        assert torch.equal(memory.tensor[kept], expected[kept])
        assert memory.tensor[~kept].eq(Card.UNMAPPED).all()
        assert len(card.handles) == len(card.mapped)
        expected[:first] = memory.tensor[:first] = step
    memory.close()
    assert not card.handles
    assert not card.ranges


@pytest.mark.usefixtures("small_chunks")
def test_what_a_card_has_no_room_for_leaves_the_pool_as_it_was():
    card = Card(6)
    memory = DeviceReserve(20 * CHUNK, card)
    memory.keep(3 * CHUNK)
    memory.tensor[: 3 * CHUNK] = 5
    with pytest.raises(MemoryError):
        memory.keep(9 * CHUNK)
    assert len(card.mapped) == len(card.handles) == 3
    assert memory.tensor[: 3 * CHUNK].eq(5).all()
    memory.keep(6 * CHUNK)
    assert memory.tensor[3 * CHUNK : 6 * CHUNK].eq(0).all()


@pytest.mark.usefixtures("small_chunks")
def test_nothing_is_unmapped_before_the_card_is_done():
    card = Card(6)
    memory = DeviceReserve(6 * CHUNK, card)
    memory.keep(6 * CHUNK)
    assert not card.waited
    memory.keep(2 * CHUNK)
    assert card.waited == 1


@pytest.mark.usefixtures("small_chunks")
def test_a_card_without_one_chunk_keeps_no_addresses():
    card = Card(0)
    with pytest.raises(MemoryError):
        DeviceReserve(CHUNK, card)
    assert not card.ranges


def test_the_drivers_structures_have_the_sizes_of_its_header():
    assert ctypes.sizeof(reserve._Location) == 8
    assert ctypes.sizeof(reserve._Properties) == 32
    assert reserve._Properties.flags.offset == 24
    assert ctypes.sizeof(reserve._Access) == 12
