"""Attacks on a network, and on all images of a data set."""
