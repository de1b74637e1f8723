"""GGUF: the files of llama.cpp, each a whole model with config, tokenizer, templates and weights."""
