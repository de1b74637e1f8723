"""Who may ask for what, and how much of it: API keys, their scopes, limits and usage."""
