"""What a double owes its original."""

from __future__ import annotations

from typing import Protocol

import pytest

from tests.doubles import offered, stands_for


class Shop:
    open: bool

    def __init__(self, name: str) -> None:
        self.name, self._till = name, 0

    def sell(self, what: str, price: int = 1, *, wrapped: bool = False) -> None: ...

    async def close(self) -> None: ...

    @property
    def staff(self) -> int:
        return 1


class Selling(Protocol):
    name: str

    def sell(self, what: str, price: int = 1) -> None: ...


def test_what_is_offered_is_all_that_is_public() -> None:
    assert offered(Shop) == {"open", "name", "sell", "close", "staff"}
    assert offered(Selling) == {"name", "sell"}


def test_a_double_that_has_it_all_is_taken() -> None:
    @stands_for(Selling)
    class Stall:
        def __init__(self) -> None:
            self.name = "stall"

        def sell(self, what: str, price: int = 0, *more: int) -> None: ...

    @stands_for(Shop)
    class Kiosk(Shop):
        def sell(self, what: str, *given: int, **named: bool) -> None: ...

    assert Stall().name == "stall"
    assert Kiosk("k").staff == 1


def test_what_is_missing_is_named_with_whose_it_is() -> None:
    with pytest.raises(TypeError, match=r"Stall: name is missing, which .*\.Selling has; sell is missing"):

        @stands_for(Selling)
        class Stall:
            pass


@pytest.mark.parametrize(
    "sell",
    [
        lambda self, what: None,
        lambda self, what, price: None,
        lambda self, goods, price=1, wrapped=False: None,
        lambda self, what, price=1, *, wrapped=False, to: None,
        lambda self, what, price=1: None,
    ],
    ids=["fewer", "needed", "called otherwise", "more", "one by name is missing"],
)
def test_what_is_called_otherwise_is_refused(sell) -> None:
    with pytest.raises(TypeError, match=r"sell\(.* does not take what tests\.test_doubles\.Shop\.sell does"):
        stands_for(Shop)(type("Kiosk", (Shop,), {"sell": sell}))


def test_a_coroutine_is_doubled_by_one() -> None:
    with pytest.raises(TypeError, match=r"of close and tests.test_doubles.Shop.close one is a coroutine"):
        stands_for(Shop)(type("Kiosk", (Shop,), {"close": lambda self: None}))
