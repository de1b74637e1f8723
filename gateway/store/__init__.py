"""What the gateway keeps for its clients: responses and conversations, in one file for all its processes."""
