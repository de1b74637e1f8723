"""Open requests, from what was asked to the last reply."""
