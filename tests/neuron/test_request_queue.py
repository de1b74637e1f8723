"""The queue of one model, with a worker that a test moves by hand."""

import asyncio
import itertools
from math import inf

import pytest

from ipc.errors import Code, CortexError
from ipc.messages.answers import Usage
from ipc.messages.replies import Failed, Progress, Started
from ipc.messages.requests import Generate
from ipc.worker_messages import SequenceReport, Submit
from neuron.admission import request_queue
from neuron.admission.request_queue import RequestQueue
from neuron.config import Queue
from neuron.processes.group import WorkerGroup
from neuron.requests.progress import LoadProgress
from neuron.requests.request import OpenRequest, OpenSequence
from tests.doubles import stands_for

NO_MEMORY = CortexError(Code.INSUFFICIENT_MEMORY, "others have it")
DIED = CortexError(Code.WORKER_DIED, "it died")


@stands_for(OpenSequence)
class Part:
    def __init__(self, key):
        self.submit = Submit(key, b"", 1)
        self.images = []

    def advance(self, report): ...


class Request(OpenRequest):
    """One of so many sequences, each of which costs the same."""

    keys = itertools.count(1)

    def __init__(self, queue, account="", *, priority=0, session="", parts=1, cost=256):
        self.replies = []
        asked = Generate(
            id=1, model="m", prompt="", account=account, priority=priority, session=session, stream=True
        )
        super().__init__(self.keys, asked, self.replies.append, queue.leave)
        self.parts = [Part(next(self.keys)) for _ in range(parts)]
        self.cost, self.tokens = cost, 0

    @property
    def output_tokens(self):
        return self.tokens

    def prepare(self, *args): ...

    def accept(self, *args): ...

    def check_length(self, context_length): ...

    def cost_of(self, part, usual_output):
        return self.cost

    def usage(self):
        return Usage()

    @property
    def tokens_computed(self):
        return self.cost * len(self.parts)

    @property
    def places(self):
        return [(reply.position, reply.waiting) for reply in self.replies if isinstance(reply, Progress)]


@stands_for(WorkerGroup)
class Worker(WorkerGroup):
    """A worker group: what it has, in the order in which that came."""

    def __init__(self, queue):
        self.open = {}
        self.order = []
        self.queue = queue

    def submit(self, submit, sink, images=()):
        self.open[submit.request_id] = sink
        self.order.append(sink)

    def withdraw(self, request_id):
        self.open.pop(request_id, None)

    def begin(self, request):
        request.phase = "running"
        self.queue.begin(request)

    def write(self, request):
        """It has a token more; the step is reported."""
        self.begin(request)
        request.tokens += 1
        self.queue.on_steps(0)

    def end(self, request):
        """It is finished; the next step is reported."""
        for part in request.parts:
            self.open.pop(part.submit.request_id, None)
        request._end("finished", Started(id=1, prompt_tokens=0))
        self.queue.on_steps(0)


def scenario(test):
    """Run a test in an event loop."""

    def run():
        asyncio.run(test())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def ready(limit=512, max_sequences=2, whole=False, adapters=(), **settings):
    """A queue, and the worker that it hands over to, which has these adapters."""
    queue = RequestQueue(
        Queue(limit=limit, **settings), max_sequences, whole, lambda request: request.adapter in adapters
    )
    worker = Worker(queue)
    queue.open(worker, 1000)
    return queue, worker


def admit(queue, *requests):
    for request in requests:
        queue.admit(request)
    return requests


def owners(worker, requests):
    """Whose the sequences are that the worker was given, in order."""
    by_part = {part: request for request in requests for part in request.parts}
    return [by_part[part] for part in worker.order]


def serve_all(queue, worker, requests):
    """Have the worker do one request after the other, in its order."""
    while worker.open:
        part = next(iter(worker.open.values()))
        request = next(request for request in requests if part in request.parts)
        worker.begin(request)
        worker.end(request)


@scenario
async def test_the_worker_gets_what_it_computes_and_a_few_that_are_ready():
    queue, worker = ready(max_sequences=16)
    requests = admit(queue, *(Request(queue) for _ in range(40)))
    assert len(worker.open) == 16 + 2
    assert (queue.running, queue.waiting) == (0, 40)
    worker.begin(requests[0])
    worker.end(requests[0])
    assert len(worker.order) == 16 + 3


@scenario
async def test_where_a_step_is_all_there_is_of_a_sequence_the_next_step_is_ready():
    queue, worker = ready(max_sequences=16, whole=True)
    admit(queue, *(Request(queue) for _ in range(40)))
    assert len(worker.open) == 32


@scenario
async def test_a_worker_that_has_no_room_for_what_it_has_gets_no_more():
    queue, worker = ready(max_sequences=8)
    first = admit(queue, *(Request(queue) for _ in range(5)))
    queue.on_steps(3)  # pages are short
    late = admit(queue, Request(queue))[0]
    assert len(worker.order) == 5
    queue.on_steps(0)
    assert owners(worker, [*first, late])[-1] is late


@scenario
async def test_a_flood_of_one_account_holds_up_no_other():
    queue, worker = ready()
    flood = admit(queue, *(Request(queue, "flood") for _ in range(200)))
    others = admit(queue, Request(queue, "b"), Request(queue, "c"))
    everybody = [*flood, *others]
    serve_all(queue, worker, everybody)
    order = owners(worker, everybody)
    assert len(order) == 202
    assert max(order.index(other) for other in others) <= 3 + 4  # three were in the worker already
    assert queue.idle


@scenario
async def test_sequences_of_one_request_take_turns_with_other_accounts():
    queue, worker = ready()
    batch = Request(queue, "batch", parts=100)
    other = Request(queue, "other")
    admit(queue, batch, other)
    assert len(worker.order) == 3
    worker.begin(batch)
    for number in range(4):
        worker.open.pop(batch.parts[number].submit.request_id, None)
        queue.on_steps(0)
    assert other in owners(worker, [batch, other])


@scenario
async def test_priorities_are_the_order_of_those_who_wait():
    queue, worker = ready()
    running = admit(queue, *(Request(queue, "a") for _ in range(3)))
    late = admit(queue, *(Request(queue, "a", priority=priority) for priority in (100, 0, -1)))
    serve_all(queue, worker, [*running, *late])
    assert owners(worker, [*running, *late])[3:] == [late[2], late[1], late[0]]


@scenario
async def test_one_account_cannot_fill_the_queue():
    queue, _ = ready(limit=10, max_sequences=1)
    admit(queue, *(Request(queue, "flood") for _ in range(6)))
    with pytest.raises(CortexError) as refused:
        admit(queue, Request(queue, "flood"))
    assert refused.value.code == Code.QUEUE_FULL
    assert 1 <= refused.value.retry_after <= 600
    assert queue.waiting == 6
    admit(queue, Request(queue, "other"))


@scenario
async def test_who_waits_is_told_the_place_in_which_it_will_be_served():
    queue, worker = ready()
    first = admit(queue, *(Request(queue, "flood") for _ in range(12)))
    other = admit(queue, Request(queue, "other"))[0]
    await asyncio.sleep(1.5 * request_queue.SOON_SECONDS)
    told = {request: request.places[-1] for request in (*first[3:], other)}  # three are in the worker
    assert {waiting for _, waiting in told.values()} == {13}
    serve_all(queue, worker, [*first, other])
    assert sorted(told, key=told.get) == owners(worker, [*first, other])[3:]


@scenario
async def test_everybody_who_waits_is_told_again():
    queue, _ = ready()
    requests = admit(queue, *(Request(queue) for _ in range(6)))
    queue._watch()  # the timer
    queue._watch()
    assert all(len(request.places) >= 2 for request in requests)
    assert [request.places[-1] for request in requests] == [(place, 6) for place in range(1, 7)]


@scenario
async def test_who_is_in_the_worker_is_not_told_that_it_waits():
    queue, _ = ready(max_sequences=8)
    requests = admit(queue, *(Request(queue) for _ in range(8)))
    queue._watch()
    assert not any(request.places for request in requests)


@scenario
async def test_a_request_whose_client_is_gone_leaves_at_once():
    queue, worker = ready()
    requests = admit(queue, *(Request(queue) for _ in range(6)))
    requests[4].cancel()
    assert queue.waiting == 5
    serve_all(queue, worker, requests)
    assert requests[4] not in owners(worker, requests)
    assert queue.counts == {"finished": 5, "cancelled": 1, "failed": 0}


@scenario
async def test_who_waited_too_long_is_told_where_it_stands_and_when_to_come_again():
    queue, _ = ready(max_sequences=1, wait_seconds=0.01)
    requests = admit(queue, *(Request(queue) for _ in range(5)))
    await asyncio.sleep(0.02)
    queue._watch()
    failed = requests[3].replies[-1]
    assert isinstance(failed, Failed)
    assert failed.code == Code.QUEUE_TIMEOUT
    assert failed.retry_after >= 1
    assert failed.details["waiting"] >= failed.details["position"] >= 1
    assert queue.idle


@scenario
async def test_of_those_who_wait_for_memory_those_are_refused_who_came_first_and_have_not_begun():
    queue, worker = ready(adapters=(1,))
    assert queue.waits_since() == -inf
    begun, early = admit(queue, Request(queue), Request(queue))
    worker.begin(begun)
    queue.interrupt(worker)
    queue.shut()
    came = queue.waits_since()
    [late] = admit(queue, Request(queue))
    assert queue.refuse(came, NO_MEMORY)
    assert [request.phase for request in (begun, early, late)] == ["waiting", "ended", "waiting"]
    assert came < queue.waits_since() < inf
    assert queue.refuse(queue.waits_since(), NO_MEMORY)
    assert queue.waits_since() == inf  # what has begun waits for its turn
    assert queue.refuse(came + 1000.0, NO_MEMORY)
    assert begun.phase == "waiting"


@scenario
async def test_those_for_an_adapter_are_refused_apart_and_not_where_that_leaves_nobody():
    queue, _ = ready(max_sequences=1)
    first, other, second = [Request(queue) for _ in range(3)]
    first.adapter, second.adapter, other.adapter = 1, 1, 2
    admit(queue, first, other, second)
    came = queue.waits_since(1)
    assert queue.refuse(came, NO_MEMORY, 1)
    assert [request.phase for request in (first, other, second)] == ["ended", "waiting", "waiting"]
    assert not queue.refuse(queue.waits_since(1), NO_MEMORY, 1)
    assert (second.phase, queue.waits_since(3)) == ("waiting", -inf)


@scenario
async def test_what_was_not_begun_keeps_its_place_for_the_next_worker():
    queue, worker = ready()
    requests = admit(queue, *(Request(queue, f"account {number % 2}") for number in range(7)))
    worker.begin(requests[0])
    order = owners(worker, requests)
    queue.take_back()
    assert len(worker.open) == 1
    worker.end(requests[0])
    following = Worker(queue)
    queue.open(following, 1000)
    serve_all(queue, following, requests)
    assert owners(following, requests)[:2] == order[1:3]
    assert queue.idle


@scenario
async def test_what_a_request_has_begun_with_goes_to_the_worker_that_has_it():
    queue, worker = ready()
    batch = admit(queue, Request(queue, parts=20))[0]
    worker.begin(batch)
    queue.take_back()
    assert len(worker.open) == 20
    assert not queue.quiet


@scenario
async def test_the_end_of_a_request_may_be_the_end_of_the_worker():
    queue, worker = ready(max_sequences=1)
    requests = admit(queue, *(Request(queue) for _ in range(5)))

    def too_long(context_length):
        raise CortexError(Code.CONTEXT_LENGTH_EXCEEDED, "it is too long")

    def leave(request):
        queue.leave(request)
        queue.take_back()  # others wait for this model's memory

    requests[2].check_length, requests[2]._on_end = too_long, leave
    worker.begin(requests[0])
    worker.end(requests[0])
    assert requests[2].replies[-1].code == Code.CONTEXT_LENGTH_EXCEEDED
    assert [request.phase for request in requests[1:]] == ["waiting", "ended", "waiting", "waiting"]


@scenario
async def test_a_dead_worker_costs_those_who_wait_nothing():
    queue, worker = ready()
    requests = admit(queue, *(Request(queue) for _ in range(6)))
    worker.begin(requests[0])
    queue.lose_worker(DIED)
    assert {request.phase for request in requests} == {"waiting"}
    following = Worker(queue)
    queue.open(following, 1000)
    assert owners(following, requests)[0] is requests[0]
    serve_all(queue, following, requests)
    assert queue.counts == {"finished": 6, "cancelled": 0, "failed": 0}


@scenario
async def test_who_can_go_on_elsewhere_at_once_does():
    queue, worker = ready()
    [begun, queued] = admit(queue, *(Request(queue) for _ in range(2)))
    begun.request.replicated = queued.request.replicated = True
    worker.begin(begun)
    queue.lose_worker(DIED)
    assert (begun.phase, queued.phase) == ("ended", "waiting")


@scenario
async def test_so_it_does_where_it_is_interrupted():
    queue, worker = ready()
    requests = admit(queue, *(Request(queue) for _ in range(3)))
    begun, alone, queued = requests
    begun.request.replicated = queued.request.replicated = True
    for each in (begun, alone):
        worker.begin(each)
    queue.shut()
    queue.interrupt(worker)
    assert [each.phase for each in requests] == ["ended", "waiting", "waiting"]
    assert not worker.open
    following = Worker(queue)
    queue.open(following, 1000)
    serve_all(queue, following, [alone, queued])
    assert queue.counts == {"finished": 2, "cancelled": 0, "failed": 1}


@scenario
async def test_of_those_with_whom_two_workers_died_each_is_tried_alone_and_only_the_guilty_one_fails():
    queue, worker = ready(max_sequences=4)
    requests = admit(queue, *(Request(queue, parts=1 + number % 2) for number in range(3)))
    guilty = requests[1]
    later = Request(queue)
    for deaths in (1, 2):
        worker.begin(requests[0])
        queue.lose_worker(DIED)
        assert [request.deaths for request in requests] == [deaths] * 3
        worker = Worker(queue)
        queue.open(worker, 1000)
    assert set(owners(worker, requests)) == {requests[0]}
    admit(queue, later)
    worker.begin(requests[0])
    queue.on_steps(0)
    assert set(owners(worker, requests)) == {requests[0]}  # it has no more tokens than before
    requests[0].tokens = 1
    queue.on_steps(0)
    assert [request.phase for request in requests] == ["waiting", "queued", "waiting"]
    assert list(worker.open.values()) == guilty.parts
    assert later.phase == "waiting"
    queue.lose_worker(DIED)
    assert guilty.phase == "ended"
    worker = Worker(queue)
    queue.open(worker, 1000)
    serve_all(queue, worker, [*requests, later])
    assert queue.counts == {"finished": 3, "cancelled": 0, "failed": 1}


def die_twice(queue, *requests):
    """Have two workers die with these, of which none begins, and a third one be there."""
    admit(queue, *requests)
    for _ in range(2):
        queue.lose_worker(DIED)
        queue.open(Worker(queue), 1000)


@scenario
async def test_who_waits_to_be_tried_alone_stands_before_the_line_and_is_told_so():
    queue, _ = ready(max_sequences=4)
    suspects = [Request(queue) for _ in range(3)]
    die_twice(queue, *suspects)
    queue._watch()  # the timer
    assert [request.places[-1] for request in suspects] == [(1, 3), (2, 3), (3, 3)]
    later = admit(queue, Request(queue))[0]
    queue._watch()
    assert [request.places[-1] for request in (*suspects, later)] == [(1, 4), (2, 4), (3, 4), (4, 4)]


@scenario
async def test_who_waits_too_long_to_be_tried_alone_is_told_where_it_stands():
    queue, _ = ready(max_sequences=4, wait_seconds=0.01)
    suspects = [Request(queue) for _ in range(3)]
    die_twice(queue, *suspects)  # the first one's prompt is long
    await asyncio.sleep(0.02)
    queue._watch()
    assert [request.replies[-1].code for request in suspects] == [Code.QUEUE_TIMEOUT] * 3
    assert [request.replies[-1].details["waiting"] for request in suspects] == [3, 2, 1]
    assert queue.idle


@pytest.mark.parametrize("passed", [0, 2], ids=["while another is tried", "when the others have passed"])
def test_who_waits_for_its_adapter_after_two_deaths_is_tried_alone_all_the_same(passed):
    async def scenario():
        adapters = {1}
        queue, _ = ready(max_sequences=4, adapters=adapters)
        guilty, *others = suspects = [Request(queue) for _ in range(3)]
        guilty.adapter = 1
        admit(queue, *suspects)
        for request in suspects:
            request.deaths = 1
        adapters.clear()  # of the next worker
        queue.lose_worker(DIED)
        worker = Worker(queue)
        queue.open(worker, 1000)
        assert [request.phase for request in suspects] == ["waiting", "queued", "waiting"]
        for request in others[:passed]:
            worker.write(request)
        adapters.add(1)  # it has been read
        queue.resume()
        while guilty.phase == "waiting":
            there = next(request for request in others if request.phase in ("queued", "running"))
            worker.write(there)
            if there.phase == "running" and guilty.phase == "waiting":
                worker.end(there)
        assert list(worker.open.values()) == guilty.parts
        queue.lose_worker(DIED)
        assert guilty.phase == "ended"
        worker = Worker(queue)
        queue.open(worker, 1000)
        serve_all(queue, worker, others)
        assert queue.counts == {"finished": 2, "cancelled": 0, "failed": 1}

    asyncio.run(scenario())


@scenario
async def test_who_waited_is_told_when_it_begins():
    queue, _ = ready(max_sequences=1)
    requests = admit(queue, *(Request(queue) for _ in range(2)))
    report = SequenceReport(1, [], "")
    for request in requests:
        request.model = queue
        request.take(report)
    assert [any(isinstance(reply, Started) for reply in each.replies) for each in requests] == [False, True]


@scenario
async def test_those_who_wait_for_a_load_are_served_in_turn_once_it_is_there():
    queue = RequestQueue(Queue(), 2)
    flood = [Request(queue, "flood") for _ in range(20)]
    other = Request(queue, "other")
    assert all(queue.admit(request) for request in (*flood, other))
    queue.tell(LoadProgress("loading", 0.5))
    assert other.replies[-1].fraction == 0.5
    worker = Worker(queue)
    queue.open(worker, 1000)
    assert owners(worker, [*flood, other])[1] is other
