"""What the demo model can explain: one answer a topic, and one more when asked to go on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Topic:
    """One thing that the model can explain.

    `names` are noun phrases ("a neuron", "neurons") that fit every wording in `ABOUT`; `questions` are
    whole questions for what no noun phrase can ask. `answer` comes first, `more` after "Tell me more."
    """

    names: tuple[str, ...]
    answer: str
    more: str
    questions: tuple[str, ...] = ()


ABOUT = (
    "What is {x}?",
    "What is {x}?",
    "What's {x}?",
    "What does {x} do?",
    "What does {x} mean?",
    "What do you know about {x}?",
    "What is {x} for?",
    "What is {x} in cortex?",
    "What can you tell me about {x}?",
    "Tell me about {x}.",
    "Tell me something about {x}.",
    "Tell me what {x} is.",
    "Explain {x}.",
    "Explain {x} to me.",
    "Explain {x} in one sentence.",
    "Can you explain {x}?",
    "Can you tell me what {x} is?",
    "Could you explain what {x} is?",
    "Could you describe {x}?",
    "Describe {x}.",
    "Define {x}.",
    "Do you know what {x} is?",
    "How does {x} work?",
    "How would you explain {x}?",
    "I would like to know what {x} is.",
    "I want to know about {x}.",
    "I do not understand {x}.",
    "Why does cortex need {x}?",
    "What is the job of {x}?",
    "What is meant by {x}?",
    "{x}?",
)
"""Wordings for a noun phrase, alone in a conversation or anywhere in it."""

FOLLOW_UP = (
    "And what does {x} do?",
    "And what is {x}?",
    "And what's {x}?",
    "And {x}?",
    "What about {x}?",
    "How about {x}?",
    "Then what is {x}?",
    "So what is {x}?",
    "So what does {x} do?",
    "OK, and what is {x}?",
    "OK, and what does {x} do?",
    "Now explain {x}.",
    "And can you explain {x}?",
    "Thanks. And what is {x}?",
)
"""Wordings that make sense from the second turn on."""

MORE = (
    "Tell me more.",
    "Can you tell me more?",
    "Please tell me more.",
    "Tell me more about it.",
    "Tell me more about that.",
    "More, please.",
    "Go on.",
    "Please go on.",
    "Can you say more?",
    "Anything else?",
    "What else?",
    "And what else?",
    "Why?",
)
"""Asks for the `more` of the topic just answered."""

TOPICS = (
    Topic(
        ("cortex", "the cortex system", "this system", "this software"),
        "Cortex serves open language models from GPUs that people own. One gateway gives clients one "
        "address, and a neuron on each host runs the models.",
        "Cortex loads a model when someone asks for it and gives the memory back when something else "
        "needs it.",
        ("What is this?", "What is this system?", "What is cortex about?", "What can cortex do?"),
    ),
    Topic(
        ("a gateway", "the gateway", "gateways", "gateway"),
        "The gateway is the front door of cortex. It speaks HTTP with the clients, chooses a neuron for "
        "each request, and streams the tokens back.",
        "The gateway needs no GPU. It listens on port 31313 and knows the OpenAI and Anthropic dialects.",
        ("Where do requests arrive?", "Who talks to the clients?", "What do clients talk to?"),
    ),
    Topic(
        ("a neuron", "the neuron", "neurons", "neuron", "a neuron daemon"),
        "A neuron is the daemon on each GPU host. It loads models on demand, runs them in worker "
        "processes, and keeps the books of the memory.",
        "The neuron listens on port 13131. It never imports torch, so it starts fast and survives a GPU "
        "fault.",
        ("What runs on the GPU host?", "Who loads the models?", "Who starts the workers?"),
    ),
    Topic(
        ("a worker", "the worker", "workers", "worker", "a worker process"),
        "A worker is a process that computes on one GPU. It holds its share of the weights and the KV "
        "pages, and it makes the tokens.",
        "If one worker dies, its whole group is restarted, and the neuron and its other models carry on.",
        ("Which process uses the GPU?", "Who makes the tokens?", "Who does the computing?"),
    ),
    Topic(
        ("a rank", "the rank", "ranks", "rank", "rank 0", "rank zero"),
        "A rank is one worker in a group that shares a model, one for each GPU. Rank 0 plans every step, "
        "and the others follow.",
        "All ranks sample the same token, so no token has to be sent back down.",
        ("Who plans the steps?", "How is a model split over several GPUs?"),
    ),
    Topic(
        ("a worker group", "the worker group", "worker groups", "a group of workers"),
        "A worker group is the set of ranks that run one model together. They start together and end "
        "together.",
        "Each load is proved with one sum over all ranks before the first request.",
    ),
    Topic(
        ("a page", "the page", "pages", "page", "a KV page", "KV pages", "paging"),
        "A page holds the keys and values of 32 tokens. A sequence owns a list of pages, so memory is "
        "shared without gaps.",
        "Full pages are remembered by a hash, so a prompt that starts the same way finds them again.",
        ("How big is a page?", "How many tokens are in a page?", "How many tokens does a page hold?"),
    ),
    Topic(
        ("the KV cache", "a KV cache", "KV cache", "the cache"),
        "The KV cache keeps the keys and values of all past tokens, so that each new token needs only one "
        "short step.",
        "In cortex the KV cache is made of pages of 32 tokens.",
    ),
    Topic(
        ("the prefix cache", "a prefix cache", "prefix caching"),
        "The prefix cache finds pages that were computed before. When two prompts start the same way, the "
        "start is computed only once.",
        "Pages are found by a chain of hashes, so a look-up takes the same short time for each page.",
    ),
    Topic(
        ("prefill", "the prefill", "a prefill", "the prefill phase"),
        "Prefill is the first phase of a request: the model reads the whole prompt and fills the KV cache.",
        "A long prefill is cut into chunks, so that streams that are already running do not stall.",
        ("How does the model read a prompt?", "What happens to the prompt first?"),
    ),
    Topic(
        ("decode", "decoding", "the decode phase", "a decode step"),
        "Decode is the phase after prefill: the model writes one token per step for each running request.",
        "In decode many requests share one step, because reading the weights is what takes the time.",
        ("How does the model write tokens?", "What comes after prefill?"),
    ),
    Topic(
        ("a step", "the step", "an engine step", "steps"),
        "A step is one pass of the model. Each step mixes prefill and decode under one budget of tokens.",
        "A cancelled request leaves within one step.",
    ),
    Topic(
        ("the scheduler", "a scheduler", "scheduling"),
        "The scheduler chooses what the next step computes. It lives in rank 0 and keeps to a token budget.",
        "When pages run out, the scheduler pauses the youngest request and computes it again later.",
    ),
    Topic(
        ("a ring", "the ring", "rings", "ring", "a ring buffer", "shared memory"),
        "A ring is a piece of shared memory between two processes, with one writer. Commands go down a "
        "ring, and tokens come up another.",
        "A full ring makes the writer wait. Nothing is ever lost, and an idle ring uses no CPU.",
        ("How do the processes talk to each other?", "How do workers talk to the neuron?"),
    ),
    Topic(
        ("a heartbeat", "the heartbeat", "heartbeats", "heartbeat", "the heartbeat page"),
        "A heartbeat is a small record that each rank writes: its step, its state and the time. So a "
        "stuck rank is told from an idle one.",
        "Health checks read the heartbeat, so they never wait behind a request.",
        ("How do you know that a worker is alive?", "How is a stuck worker found?"),
    ),
    Topic(
        ("VRAM", "the VRAM", "GPU memory", "video memory"),
        "VRAM is the memory on the GPU. It holds the weights and the KV pages, and it is what runs out "
        "first.",
        "The neuron counts VRAM in a ledger and unloads a model when another one needs the room.",
        ("What happens when the memory is full?", "What if the GPU is full?"),
    ),
    Topic(
        ("the ledger", "a ledger", "the memory ledger"),
        "The ledger is the neuron's account of memory. A load reserves its bytes first, and then it may "
        "start.",
        "After a load the ledger is corrected with what was measured.",
        ("Who decides what fits?", "How is memory counted?"),
    ),
    Topic(
        ("the supervisor", "a supervisor", "supervisor"),
        "The supervisor is the main process of a neuron. It starts the workers, watches them, and turns "
        "text into tokens and back.",
        "The supervisor never imports torch, so a GPU fault cannot take it down.",
        ("Who watches the workers?",),
    ),
    Topic(
        ("eviction", "evicting a model", "the eviction policy"),
        "Eviction unloads a model that is not in use, so that another one gets its memory. The oldest in "
        "use goes first.",
        "Eviction waits for the requests that are running.",
    ),
    Topic(
        ("draining", "drain", "a drain", "the drain command"),
        "Drain means that a neuron takes no new requests and finishes those it has. Resume ends it.",
        "Drain a neuron before you restart its host.",
    ),
    Topic(
        ("a token", "tokens", "token"),
        "A token is a small piece of text, often a word or a part of one. A model reads and writes tokens.",
        "My own vocabulary is small, and every digit is a token of its own.",
    ),
    Topic(
        ("a tokenizer", "the tokenizer", "tokenizers", "tokenization"),
        "A tokenizer cuts text into tokens and joins tokens back into text.",
        "In cortex the tokenizer runs in the neuron, next to the model files.",
    ),
    Topic(
        ("a chat template", "the chat template", "chat templates"),
        "A chat template turns a list of messages into the one text that a model reads.",
        "The chat template comes with the model, because each model was trained on its own.",
    ),
    Topic(
        ("sampling", "the sampler", "a sampler"),
        "Sampling picks the next token from the probabilities of the model.",
        "With temperature 0 the most likely token is always taken.",
    ),
    Topic(
        ("temperature", "the temperature setting", "the temperature"),
        "Temperature says how freely the next token is chosen. At 0 the answer is always the same.",
        "I was made for temperature 0.",
    ),
    Topic(
        ("streaming", "a stream", "token streaming"),
        "Streaming sends each token to the client as soon as it is made.",
        "A stream ends in exactly one way: finished, cancelled, or an error with a code.",
    ),
    Topic(
        ("a dialect", "dialects", "the API", "the OpenAI API", "the Anthropic API"),
        "A dialect is the API that a client speaks, such as that of OpenAI or Anthropic. The gateway "
        "parses and renders each of them.",
        "A new dialect is one new file in the gateway.",
        ("Which APIs does cortex speak?", "Is cortex compatible with OpenAI?", "Which clients can I use?"),
    ),
    Topic(
        ("ZeroMQ", "zmq", "the ZeroMQ link"),
        "ZeroMQ carries the messages between the gateway and the neurons, over one port.",
        "Off this machine the link is encrypted with CURVE keys.",
        ("How does the gateway talk to a neuron?", "What is between the gateway and the neurons?"),
    ),
    Topic(
        ("a CURVE key", "CURVE keys", "the keys", "encryption"),
        "CURVE keys encrypt the link between gateway and neuron, and they prove who is who.",
        "Without keys a neuron only listens on its own machine.",
        ("Is cortex secure?", "Is the link encrypted?"),
    ),
    Topic(
        ("Falcon", "gunicorn", "the web server"),
        "The gateway is a Falcon application on gunicorn. Several processes share the one port.",
        "Falcon is small and fast, and a client that leaves cancels its request.",
        ("Which web framework is used?",),
    ),
    Topic(
        ("Triton", "a kernel", "the kernels", "paged attention"),
        "The kernels of cortex, such as paged attention, are written in Triton, which comes with torch.",
        "One kernel serves prefill and decode.",
    ),
    Topic(
        ("a CUDA graph", "CUDA graphs"),
        "A CUDA graph replays a whole step with one launch, so that small models do not wait for the CPU.",
        "Graphs are captured when they are first needed, so the first answer comes in seconds.",
    ),
    Topic(
        ("tensor parallelism", "splitting a model"),
        "Tensor parallelism splits each weight over several GPUs, and the ranks add up their parts.",
        "Each rank reads only its own rows from the disk.",
    ),
    Topic(
        ("time to first token", "the time to first token", "latency"),
        "Time to first token is the wait from the request to its first token. Most of it is prefill.",
        "After that, the time between tokens is what a reader feels.",
    ),
    Topic(
        ("a model", "models", "the weights", "open weights"),
        "A model is a file of weights and a few files that describe it. Cortex reads safetensors and GGUF.",
        "A model is loaded on the first request and stays until its memory is needed.",
        ("Which models can I use?", "Which files does cortex read?"),
    ),
    Topic(
        ("loading", "a load", "loading a model"),
        "Loading reserves memory, starts the workers, reads the weights, and proves that the ranks can talk.",
        "Two requests for the same model share one load.",
        ("How do I load a model?", "How is a model loaded?"),
    ),
    Topic(
        ("a host", "hosts", "a node"),
        "A host is a machine with GPUs. Each host runs one neuron, and one gateway serves them all.",
        "The hosts may differ: a small card here, two big ones there.",
        ("Can I use several machines?", "Can I use different GPUs?"),
    ),
    Topic(
        ("a tool call", "tool calls", "tools", "function calling"),
        "A tool call is a message in which the model names a function and its arguments. The client runs "
        "it and sends back the result.",
        "Give me a tool with one or two parameters, and I will call it.",
        ("Can you use tools?", "Can you call functions?", "Can you call a tool?"),
    ),
    Topic(
        ("thinking", "a thought", "thinking mode", "reasoning"),
        "Thinking means that the model writes a short thought before its answer. Ask for it with "
        "enable_thinking.",
        "My thoughts are short: I split a sum into tens and units.",
        ("Can you think?", "Do you think before you answer?"),
    ),
    Topic(
        ("the demo model", "a demo model", "this model", "yourself"),
        "I am the demo model of cortex, a tiny Qwen3 with about three million weights. I show that "
        "everything works, even without a GPU.",
        "I was trained on one CPU in less than an hour, on text that a small program wrote.",
        (
            "How big are you?",
            "How many parameters do you have?",
            "How were you trained?",
            "How were you made?",
            "Which model are you?",
            "What model is this?",
            "Why are you so small?",
        ),
    ),
    Topic(
        (),
        "Run the command: make run. It starts a gateway, a neuron and me on this machine, with or without "
        "a GPU.",
        "Then send your requests to port 31313.",
        (
            "How do I start cortex?",
            "How do I run cortex?",
            "How can I start it?",
            "How do I start it?",
            "How do I start the system?",
            "How do I try cortex?",
            "How do I launch cortex?",
            "How to start?",
            "How to run cortex?",
            "Which command starts cortex?",
            "What is the command to start cortex?",
            "How do I get started?",
            "How do I install cortex?",
        ),
    ),
    Topic(
        ("the ports", "the port numbers", "port 31313", "port 31314", "port 13131"),
        "The API is on port 31313, the metrics are on port 31314, and a neuron listens on port 13131.",
        "All three can be changed in the configuration.",
        (
            "Which ports does cortex use?",
            "What ports are used?",
            "Which port is the API on?",
            "Which port does the gateway use?",
            "Which port does the neuron use?",
            "On which port does it listen?",
            "Where are the metrics?",
            "What is the port of the gateway?",
        ),
    ),
    Topic(
        ("the configuration", "the config file", "config files", "configuration"),
        "The configuration is a YAML or TOML file. A mistake in it stops the start and names the file and "
        "the key.",
        "The defaults work for one machine, so you can start without a file.",
        ("How do I configure cortex?", "Where is the configuration?"),
    ),
    Topic(
        ("the metrics", "metrics", "monitoring"),
        "Metrics are served for Prometheus on port 31314. The command cortex top shows them live.",
        "Look at the queue, the free pages and the time to first token.",
        ("How do I watch cortex?", "How do I monitor it?"),
    ),
    Topic(
        ("the license", "the licence", "your license"),
        "Cortex is free software under the GNU General Public License, version 3.",
        "You may use it, study it, share it and change it.",
        ("Is cortex free?", "Is it open source?", "Which license does cortex have?", "What does it cost?"),
    ),
    Topic(
        ("the programming language", "the code"),
        "Cortex is written in Python, with kernels in Triton.",
        "Each file holds one idea, and its name says which.",
        ("Which language is cortex written in?", "What is cortex written in?", "Is it written in Python?"),
    ),
    Topic(
        ("a crash", "crashes", "a fault", "an error"),
        "When a worker dies, every open request gets an error with a code, and the group starts again.",
        "A crash is never read as a normal end, and nobody waits for ever.",
        ("What happens when a worker dies?", "What if a worker crashes?", "What happens after a crash?"),
    ),
    Topic(
        ("cancelling", "a cancel", "cancelling a request"),
        "A cancel walks down the same way as the request and takes effect within one step.",
        "When a client leaves, its request is cancelled, and its pages are free again.",
        ("What happens when a client leaves?", "Can I cancel a request?", "How do I stop a request?"),
    ),
    Topic(
        ("a request", "the way of a request", "requests"),
        "A request goes from the client to the gateway, then to a neuron, then to a worker. Tokens come "
        "back the same way.",
        "Every request ends in exactly one way: finished, cancelled, or an error.",
        ("How does a request travel?", "What happens to my request?"),
    ),
    Topic(
        ("admission", "the queue", "the waiting queue"),
        "Admission is the neuron's queue. It is bounded and fair, and when it is full the client is told "
        "to try again later.",
        "A request that can never fit is refused at once.",
        ("What happens when there are too many requests?",),
    ),
    Topic(
        ("systemd", "the systemd unit", "the service"),
        "With systemd you start a neuron like any service: systemctl start neuron.",
        "The units and example files are in the folder systemd.",
        ("How do I run it as a service?",),
    ),
    Topic(
        ("a GPU", "the GPU", "GPUs", "a graphics card"),
        "A GPU is a processor that multiplies big matrices fast. Cortex runs its models there, and small "
        "ones on the CPU too.",
        "A big model may be split over several GPUs.",
        ("Do I need a GPU?", "Does cortex run on a CPU?", "Can I run it without a GPU?"),
    ),
    Topic(
        ("a language model", "language models", "an LLM", "LLMs"),
        "A language model reads text and guesses the next token, again and again. Cortex serves such models.",
        "I am a very small one. Big ones have a thousand times more weights, and more.",
    ),
)
