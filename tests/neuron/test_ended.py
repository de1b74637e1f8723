"""The lines of the log about requests that ended."""

import asyncio
import logging

from ipc.messages.answers import Usage
from neuron.requests.ended import Ended, EndedLog
from tests.neuron.harness import until


def ended(key: int, outcome: str = "finished", reason: str = "stop") -> Ended:
    return Ended(outcome, key, f"trace-{key}", "m", Usage(prompt_tokens=3, completion_tokens=2), 0.5, reason)


def test_lines_come_in_the_order_of_the_ends_and_at_once_where_one_was_none_that_was_meant(caplog):
    caplog.set_level(logging.INFO)

    async def scenario():
        log = EndedLog()
        log.add(ended(1))
        log.add(ended(2))
        assert caplog.messages == []
        log.add(ended(3, "failed", "worker_died: it died"))
        assert [line.split()[2] for line in caplog.messages] == ["id=1", "id=2", "id=3"]
        assert caplog.messages[2] == (
            "request failed id=3 trace=trace-3 model=m prompt_tokens=3 completion_tokens=2 seconds=0.500 "
            "reason=worker_died: it died"
        )
        log.add(ended(4))
        await until(lambda: len(caplog.messages) == 4)

    asyncio.run(scenario())
