"""One request without any process: a front end whose token n is the n-th letter of the alphabet."""

import itertools
import string

from ipc.messages.answers import ToolCallDelta
from ipc.messages.conversation import ToolCall
from ipc.messages.replies import Delta
from ipc.messages.requests import Generate
from ipc.messages.sampling import Sampling
from ipc.worker_messages import SequenceReport
from neuron.requests.generation import Generation
from neuron.text.detokenizer import Detokenizer
from neuron.text.frontend import NOTHING_SAID
from neuron.text.parser import AnswerParser
from tests.doubles import stands_for
from tests.neuron.doubles import FrontEnd, described

EOS = 25
MODEL = described(eos_ids=[EOS])


@stands_for(Detokenizer)
class Letters:
    """A detokenizer that holds back "q" until a letter follows it, as real ones do with half characters."""

    def __init__(self):
        self.held = ""

    def push(self, token_ids):
        text = self.held + "".join(string.ascii_lowercase[token] for token in token_ids)
        keep = text.endswith("q")
        self.held = "q" if keep else ""
        return text[:-1] if keep else text

    def finish(self):
        held, self.held = self.held, ""
        return held


@stands_for(AnswerParser)
class Parser:
    """Upper half of the alphabet is reasoning; "z" is a tool call."""

    def __init__(self):
        self.tool_calls = []
        self.in_reasoning = self.counts_tokens = True
        self.ended, self.stop_sequence = False, None

    def push(self, text):
        pieces = []
        for letter in text:
            self.in_reasoning = letter <= "m"
            if letter == "z":
                self.tool_calls.append(ToolCall(id="call", name="f", arguments="{}"))
                pieces.append(("tool", ToolCallDelta(index=0, call_id="call", name="f")))
            else:
                pieces.append(("reasoning" if self.in_reasoning else "text", letter))
        return pieces

    def finish(self, cut=False):
        return []


class Text(FrontEnd):
    def __init__(self):
        super().__init__(26)

    def render(self, messages, tools, args, seconds=None, thinking=NOTHING_SAID):
        return "".join(message.content for message in messages)

    def encode(self, text, special):
        return [26 if letter == " " else string.ascii_lowercase.index(letter) for letter in text]

    def fewest_tokens(self, characters):
        return characters // 10

    def detokenizer(self, after=()):
        return Letters()

    def decode(self, token_ids):
        return "".join(string.ascii_lowercase[token] for token in token_ids)

    def spell(self, token_id):
        return string.ascii_lowercase[token_id].encode()

    def answer_parser(self, thought, request, tools):
        sampling = request.sampling
        return AnswerParser(None, None, sampling.stop, sampling.include_stop) if thought is None else Parser()


class Client:
    """Takes replies; `generation` is prepared for a context of 100 tokens."""

    def __init__(self, *, description=MODEL, context_length=100, text=None, **request):
        self.replies = []
        self.ended = []
        sampling = request.pop("sampling", Sampling())
        request = {"prompt": [0, 1, 2], "stream": True} | request
        self.request = Generate(id=7, model="m", sampling=sampling, **request)
        self.generation = Generation(itertools.count(1), self.request, self.replies.append, self.ended.append)
        self.generation.prepare(text or Text(), description, context_length)

    def feed(self, *steps, finish=""):
        """Hand over, then one report a step; the last one with `finish`."""
        self.generation.hand_over(100)
        for number, ids in enumerate(steps):
            last = number == len(steps) - 1
            self.generation.parts[0].advance(SequenceReport(1, list(ids), finish if last else ""))
        return self.replies

    @property
    def deltas(self):
        return [reply for reply in self.replies if isinstance(reply, Delta)]


def params(**sampling):
    [answer] = Client(sampling=Sampling(**sampling)).generation.hand_over(9)
    return answer.submit.params
