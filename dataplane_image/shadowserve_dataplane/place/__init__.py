"""Placement: how restored bytes reach a landing buffer."""
