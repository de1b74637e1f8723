"""Runs step plans on one rank's device."""
