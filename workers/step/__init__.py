"""The nouns that scheduling and execution share: a plan, an engine, a batch."""
