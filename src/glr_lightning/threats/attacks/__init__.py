"""Attacks, one function a file, and what they share."""
