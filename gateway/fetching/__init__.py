"""Images that clients name by their address: which may be fetched, and how."""
