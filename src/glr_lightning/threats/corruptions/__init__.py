"""Corruptions, one function a file, and the filters that they share."""
