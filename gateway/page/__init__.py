"""The page for people, at `/`: the fleet, its models, and a chat. Its files are in `static`, as they are.

It asks this gateway's own addresses and nobody else, with the key of whoever looks at it.
"""
