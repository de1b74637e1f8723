"""The adapters of a model on one rank: read while steps run, and given back when others need their place.

Who may use which, the supervisor decides: it hands over no sequence before all ranks have its adapter, and
has none given back that a sequence uses. So ranks need not meet for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from ipc.errors import Code, CortexError
from ipc.worker_messages import AdapterReport, DropAdapter, LoadAdapter
from workers.checkpoints.adapter import AdapterCard
from workers.checkpoints.stored_tensors import StoredTensor
from workers.execution.device import is_out_of_memory
from workers.execution.memory import trim
from workers.layers.linear import Linear
from workers.layers.lora import StepAdapters, place, take_away
from workers.weights.blocks import Empty
from workers.weights.loader import Shard, WeightFiles, bytes_filled


class Adapters:
    """Those of one model.

    Args:
        cards: of all that there are, in memory or not; their numbers count from 1.

    Attributes:
        step: whose rows of the step that runs have which.
    """

    def __init__(self, cards: Sequence[AdapterCard]) -> None:
        self.cards = cards
        self.step = StepAdapters()
        self._linears: list[Linear] = []
        self._known: dict[object, list[int]] | None = None  # of their products; None: they need not be exact
        self._sizes: dict[int, int] = {}  # bytes of those that are in memory, by number
        self._threads: ThreadPoolExecutor | None = None

    def __bool__(self) -> bool:
        """Whether there is any, in memory or not."""
        return bool(self.cards)

    @property
    def nbytes(self) -> int:
        """Of all that are in memory."""
        return sum(self._sizes.values())

    def stand_beside(self, linears: Sequence[Linear], empty: Empty, exact: bool = False) -> None:
        """Put adapters beside these projections from now on.

        Args:
            empty: makes their tensors.
            exact: what they add to a row has the same bits in any company.
        """
        self._linears, self._empty = linears, empty
        self._known = {} if exact else None

    def check(self, number: int) -> None:
        """See that a sequence can use it: without it, the answer would be the base's."""
        if number and number not in self._sizes:
            raise RuntimeError(f"a sequence uses adapter {number}, which is not in memory")

    @contextmanager
    def largest(self) -> Iterator[int]:
        """The one that takes most memory, as number 1 and all of zeros, for steps that are only measured; its
        bytes."""
        if not self.cards:
            yield 0
            return
        card = max(self.cards, key=lambda card: sum(map(_elements, card.tensors.values())))
        parts = self._place(1, card)
        for piece in (piece for part in parts for piece in part.pieces):
            piece.into.zero_()
        self._sizes[1] = bytes_filled(parts)
        try:
            yield self._sizes[1]
        finally:
            self._remove(1)

    def follow(self, order: LoadAdapter | DropAdapter, tell: Callable[[AdapterReport], None]) -> None:
        """Begin to read an adapter, in another thread, or give the memory of one back.

        Args:
            tell: hears once, in whatever thread, how that ended.
        """
        if isinstance(order, LoadAdapter):
            if self._threads is None:
                self._threads = ThreadPoolExecutor(1, thread_name_prefix="adapters")
            self._threads.submit(self._load, order.number, tell)
            return
        self._remove(order.number)
        trim(self._empty.device.type)
        tell(AdapterReport(order.number))

    def close(self) -> None:
        """End what reads."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)

    def _load(self, number: int, tell: Callable[[AdapterReport], None]) -> None:
        try:
            report = AdapterReport(number, self._read(number))
        except Exception as error:
            report = AdapterReport(number, 0, *_reason(error))
        if report.code:
            self._remove(number)
        tell(report)

    def _read(self, number: int) -> int:
        card = self.cards[number - 1]
        parts = self._place(number, card)
        WeightFiles(card).load(parts, lambda fraction: None)
        self._sizes[number] = bytes_filled(parts)
        return self._sizes[number]

    def _place(self, number: int, card: AdapterCard) -> list[Shard]:
        beside = self._empty, self.step, self._known
        places = (place(linear, number, card, *beside) for linear in self._linears)
        return [shard for shards in places for shard in shards]

    def _remove(self, number: int) -> None:
        self._sizes.pop(number, None)
        for linear in self._linears:
            take_away(linear, number)


def _elements(tensor: StoredTensor) -> int:
    rows, columns = tensor.shape
    return rows * columns


def _reason(error: Exception) -> tuple[str, str]:
    if isinstance(error, CortexError):
        return error.code, error.message
    code = Code.INSUFFICIENT_MEMORY if is_out_of_memory(error) else Code.MODEL_LOAD_FAILED
    return code, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
