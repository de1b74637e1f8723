"""Devices, and who holds how much of them."""
