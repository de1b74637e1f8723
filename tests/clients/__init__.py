"""Clients as they come from PyPI and npm, against the whole system (`make test-clients`)."""
