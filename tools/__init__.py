"""Programs for those who work on cortex."""
