"""Images of requests, made fit for a model that sees."""
