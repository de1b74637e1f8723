"""Large requests that wait to be prepared have a bound, within which no account takes all."""

import asyncio
import sys
from contextlib import ExitStack
from unittest.mock import create_autospec

import pytest

from ipc.errors import Code, CortexError
from ipc.server import Peer
from ipc.unread import Unread
from neuron.config import NeuronConfig
from neuron.models.manager import ModelManager
from neuron.preparation.held import HeldBodies
from neuron.preparation.preparation import Preparation
from neuron.recent_log import RecentLog
from neuron.service import Service
from tests.doubles import stands_for
from tests.neuron.harness import until


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


@stands_for(ModelManager)
class NoModels(ModelManager):
    def __init__(self):
        self.searched = True

    def known(self, model_id):
        return None


@pytest.mark.parametrize("verb", ["generate", "embed", "tokenize"])
def test_a_neuron_refuses_what_it_has_no_room_for(verb):
    async def scenario():
        service = Service(NeuronConfig(), "1", NoModels(), Preparation("INFO"), RecentLog(sys.stderr))
        service._bodies = HeldBodies(10)
        replies = []
        peer = create_autospec(Peer, instance=True)
        peer.send = replies.append
        service.handle(peer, Unread(verb=verb, id=1, model="m", body=memoryview(bytes(11))))
        await until(lambda: replies)
        assert [(reply.id, reply.code) for reply in replies] == [(1, Code.QUEUE_FULL)]
        await service.close(0.0)

    asyncio.run(scenario())
