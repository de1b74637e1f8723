"""Which models this host serves, and where each lies on its disks."""
