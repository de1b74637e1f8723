"""What is each architecture's own: what its metadata is in a `config.json`, and names of its tensors.

What llama.cpp knows of a model without a key for it (every second layer of a Gemma 2 has a window) stands
here as it stands there: `src/models/` and `conversion/` in https://github.com/ggml-org/llama.cpp
"""
