"""What a model that embeds or ranks makes of its hidden states, as the files of sentence-transformers say."""
