"""What vLLM serves beside OpenAI's API, and others after it."""
