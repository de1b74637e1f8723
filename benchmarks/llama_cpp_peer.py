"""llama.cpp beside benchmarks.gguf: a program for a Python that has llama-cpp-python, and nothing of ours.

`python llama_cpp_peer.py MODEL` answers each line of its input, `prefill TOKENS` or `decode SEQUENCES`,
with the seconds of CPU time that it took, on one thread or `--threads`. With a second file it writes the
model there instead, in Q8_0 or the format that is named after it.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import time

try:
    import llama_cpp as llama
except ImportError:  # where only the constants are wanted
    llama = None

CONTEXT = 128  # tokens before the first decode step
SEQUENCES = {1: range(1, 2), 8: range(2, 10)}  # that are in decode, by how many they are


class Engine:
    """Greedy, and it keeps one sequence in decode, and eight."""

    def __init__(self, path: str, threads: int) -> None:
        model_params, params = llama.llama_model_default_params(), llama.llama_context_default_params()
        model_params.n_gpu_layers = 0
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = 16_384, 512, 512, 10
        params.n_threads = params.n_threads_batch = threads
        model = llama.llama_model_load_from_file(path.encode(), model_params)
        self.context = llama.llama_init_from_model(model, params)
        self.sampler = llama.llama_sampler_init_greedy()
        self.length = dict.fromkeys(SEQUENCES, CONTEXT)
        self.last = {  # of each batch: sequence and token
            count: [(number, self.prompt(number, CONTEXT)) for number in numbers]
            for count, numbers in SEQUENCES.items()
        }

    def run(self, entries: list[tuple[int, int, int, bool]]) -> list[int]:
        """Tokens, positions and sequences, and whether a token follows: those that do."""
        batch = llama.llama_batch_init(len(entries), 0, 1)
        batch.n_tokens = len(entries)
        for i, (token, position, sequence, followed) in enumerate(entries):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, followed
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        if error := llama.llama_decode(self.context, batch):
            sys.exit(f"llama_decode answers {error}")
        rows = [i for i, entry in enumerate(entries) if entry[3]]
        tokens = [llama.llama_sampler_sample(self.sampler, self.context, i) for i in rows]
        llama.llama_batch_free(batch)
        return tokens

    def prompt(self, sequence: int, tokens: int) -> int:
        llama.llama_memory_seq_rm(llama.llama_get_memory(self.context), sequence, -1, -1)
        return self.run([(100 + i, i, sequence, i == tokens - 1) for i in range(tokens)])[0]

    def prefill(self, tokens: int) -> None:
        self.prompt(0, tokens)

    def decode(self, sequences: int) -> None:
        last, position = self.last[sequences], self.length[sequences]
        tokens = self.run([(token, position, number, True) for number, token in last])
        self.last[sequences] = [(number, token) for (number, _), token in zip(last, tokens, strict=True)]
        self.length[sequences] += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("target", nargs="?")
    parser.add_argument("format", nargs="?", default="Q8_0")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    quiet = llama.llama_log_callback(lambda *ignored: None)
    llama.llama_log_set(quiet, ctypes.c_void_p(0))
    llama.llama_backend_init()
    if arguments.target:
        params = llama.llama_model_quantize_default_params()
        params.ftype = getattr(llama, f"LLAMA_FTYPE_MOSTLY_{arguments.format}")
        params.allow_requantize = True
        sys.exit(llama.llama_model_quantize(arguments.model.encode(), arguments.target.encode(), params))
    engine = Engine(arguments.model, arguments.threads)
    for line in sys.stdin:
        name, count = line.split()
        start = time.process_time()
        getattr(engine, name)(int(count))
        print(time.process_time() - start, flush=True)


if __name__ == "__main__":
    main()
