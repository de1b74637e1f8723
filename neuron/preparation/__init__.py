"""From a request to what a worker can take: checked, rendered, tokenised; in the event loop or in a child."""
