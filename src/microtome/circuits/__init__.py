"""Circuits: discovery and evaluation of sets of edges."""
