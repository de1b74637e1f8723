"""Models that are not on this host yet: fetched from a hub, by hand or when somebody asks for one."""
