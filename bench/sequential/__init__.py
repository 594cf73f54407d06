"""Deletion requests one after another."""
