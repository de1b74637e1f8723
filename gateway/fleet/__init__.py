"""The neurons as a gateway process sees them, and which of them gets a request."""
