"""Devices, processes, sharding and signals."""
