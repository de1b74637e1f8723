"""Large requests that wait to be prepared have a bound, within which no account takes all."""

from contextlib import ExitStack

import pytest

from ipc.errors import Code, CortexError
from neuron.preparation.held import HeldBodies


def test_there_is_always_room_for_the_request_of_another_account():
    bodies = HeldBodies(160)

    def hold(stack, account, size):
        try:
            stack.enter_context(bodies.hold(account, size))
        except CortexError:
            return False
        return True

    with ExitStack() as held:
        assert [hold(held, "many", 20) for _ in range(5)] == [True] * 4 + [False]
        assert hold(held, "few", 40)
        assert not hold(held, "few", 1)
        assert hold(held, "other", 40)  # one may have all that is left
        with pytest.raises(CortexError, match="have 160 bytes, 0 of them this account's, and 160") as refused:
            held.enter_context(bodies.hold("last", 1))
        assert refused.value.code == Code.QUEUE_FULL
    with ExitStack() as held:  # all of it is free again
        assert [hold(held, "many", 20) for _ in range(4)] == [True] * 4
