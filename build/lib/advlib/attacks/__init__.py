"""Attacks on a network."""
